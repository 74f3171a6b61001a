"""`python -m evaluation compare`: results side by side."""

import argparse
from pathlib import Path

from fiducial.evaluation.commands.common import check_outputs


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
        "--json",
        type=Path,
        metavar="FILE",
        help="write the comparison there; - is standard output, on which nothing else is then",
    )
    compare.add_argument(
        "--group-by",
        choices=["checkpoint"],
        help="runs that differ by their checkpoint and seed alone, as those of trainings from several seeds, count as one, with "
        "how their numbers vary from training to training beside from seed to seed",
    )
    compare.add_argument("--html", type=Path, metavar="FILE", help="write it there as a page")
    compare.set_defaults(carry_out=compare_all)


def compare_all(args: argparse.Namespace) -> None:
    from fiducial.evaluation.report import write_comparison
    from fiducial.evaluation.results.choice import choose_results, find_results
    from fiducial.evaluation.results.compare import compare

    files, without = find_results(args.runs)
    check_outputs(args, [*files, *args.runs])
    comparison = compare(*choose_results(args.runs, files, without), args.group_by)
    write_comparison(comparison, args.json, args.html)
