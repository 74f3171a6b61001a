"""`python -m evaluation compare`: results side by side."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fiducial import UserError, printable
from fiducial.evaluation.commands.common import add_outputs, check_outputs, others

if TYPE_CHECKING:
    from fiducial.evaluation.report.comparison import Pictures
    from fiducial.evaluation.results.compare import Comparison
    from fiducial.evaluation.results.reading import Known


def add_parser(commands: argparse._SubParsersAction) -> None:
    compare = commands.add_parser(
        "compare", help="results side by side, and which differences their intervals decide", allow_abbrev=False
    )
    compare.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="a result that calc wrote as JSON, or RUN.html, RUN.npz or the folder RUN beside its RUN.json, which are one run, "
        "so that samples/RUN-* will do; the others are compared with the first, runs that differ by their seed alone are taken "
        "together, and what cannot be compared with most of them is left out and named",
    )
    compare.add_argument(
        "--base", type=Path, metavar="RUN", help="the one that the others are compared with (default: the first that is taken)"
    )
    compare.add_argument(
        "--group-by",
        choices=["checkpoint"],
        help="runs that differ by their checkpoint and seed alone, as those of trainings from several seeds, count as one, with "
        "how their numbers vary from training to training beside from seed to seed",
    )
    add_outputs(compare, "the comparison", "it as a page")
    compare.set_defaults(carry_out=compare_all)


def compare_all(args: argparse.Namespace) -> None:
    from fiducial.evaluation.report import write_comparison
    from fiducial.evaluation.results.choice import choose_results, find_results
    from fiducial.evaluation.results.compare import compare
    from fiducial.evaluation.results.reading import find_result

    files, without = find_results([*([args.base] if args.base else []), *args.runs])
    check_outputs(args, [*files, *args.runs])
    results, left_out = choose_results(args.runs, files, without)
    if args.base and find_result(args.base).resolve() != results[0].path.resolve():
        raise UserError(f"--base {args.base}: cannot be compared with most of the others")
    comparison = compare(results, left_out, args.group_by)
    write_comparison(comparison, args.json, args.html, args.html and pictures_of(comparison, results), others(args))


def pictures_of(comparison: "Comparison", results: "list[Known]") -> "Pictures":
    """Small pictures of the same indices of each row's first run."""
    from fiducial.evaluation.pictures import same_indices

    known = {printable(str(one.path)): one for one in results}
    first = {row.name: known[row.files[0]] for row in comparison.rows}
    return same_indices({name: (one.path, one.pixels_sha256) for name, one in first.items()}, comparison.basis["N"])
