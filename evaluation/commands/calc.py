"""`python -m evaluation calc`: metrics of samples."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fiducial import Group, UserError, printable, say
from fiducial.evaluation.commands.common import (
    add_common,
    add_outputs,
    check_image_size,
    listed,
    others,
    with_ranks,
)
from fiducial.evaluation.metrics import METRICS, OPTIONS, named
from fiducial.evaluators import FOLLOWED

if TYPE_CHECKING:
    from fiducial.evaluation.settings import Settings


def add_parser(commands: argparse._SubParsersAction) -> None:
    by_default = [metric.name for metric in METRICS.values() if metric.by_default]
    calc = commands.add_parser("calc", help="metrics of samples", allow_abbrev=False)
    calc.add_argument(
        "samples",
        type=Path,
        help="npz with arr_0, or a folder, zip or Hugging Face dataset of images; or statistics, where --ref is some too, for "
        "the FID between the two",
    )
    calc.add_argument(
        "--ref",
        help="npz with mu and sigma (ADM's, pytorch-fid's, ours), images as for samples, a name from above, or digits for the "
        "embedded ones",
    )
    calc.add_argument(
        "--protocol",
        choices=FOLLOWED,
        default=next(iter(FOLLOWED)),
        help=f"whose definitions to follow: {listed(list(FOLLOWED.values()), 'or')} (default %(default)s)",
    )
    calc.add_argument(
        "--metrics",
        help=f"comma-separated: {', '.join(named())} (default: the protocol's, {listed(by_default)}, "
        "as far as --ref and the number of samples allow)",
    )
    calc.add_argument(
        "--train",
        type=Path,
        metavar="IMAGES",
        help="training images, as for samples, files cropped to their size: how many samples are copies of one (AuthPct), and "
        "the closest pairs",
    )
    calc.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="what the samples' classes are called, as for sample_ddp.py, to tell which folder of a reference is which class "
        "(default: what the run beside the samples says)",
    )
    calc.add_argument(
        "--fp16-compat", action="store_true", help="distances of precision and recall rounded to float16 as ADM's evaluator does"
    )
    for option in OPTIONS.values():
        calc.add_argument(option.typed, type=int, default=option.default, help=f"{option.help} (default %(default)s)")
    calc.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="crop files of images of any size and colour, samples and those of --ref, to this as ADM does (default: they have "
        "one size)",
    )
    add_outputs(calc, "the whole result", "the report", with_events=True)
    calc.add_argument(
        "--dry-run",
        action="store_true",
        help="check options, reference and weights for samples that need not be there yet, fetching what is missing, and compute "
        "nothing",
    )
    add_common(calc)
    calc.set_defaults(carry_out=partial(with_ranks, work=calculate))


def calculate(args: argparse.Namespace, settings: "Settings", group: Group) -> None:
    from fiducial.evaluation.data.remarks import SAMPLES, look_at, open_samples, require_levels
    from fiducial.evaluation.distance import are_statistics
    from fiducial.evaluation.evaluate import Evaluation
    from fiducial.evaluation.report import write
    from fiducial.evaluation.report.scalars import write_tensorboard

    check_image_size(args.image_size)
    if len(args.extractor) > 1:
        raise UserError(f"--extractor: calc takes one, and {len(args.extractor)} are named; --metrics fdr6 takes its six unasked")
    extractor = args.extractor[0] if args.extractor else None
    if are_statistics(args.samples, args.ref):
        tell_distance(args, settings, group, extractor)
        return
    to_come = args.dry_run and not args.samples.exists()
    images = None if to_come else open_samples(args.samples, args.image_size)
    said = look_at(images, SAMPLES, group)  # before the weights, which take longer
    require_levels(images, SAMPLES, group)
    size = args.image_size if images is None else images.height if images.height == images.width else None
    how = {"training": args.train, "crop": args.image_size, "class_names": args.class_names}
    evaluation = Evaluation.prepare(args.ref, group, settings, extractor, args.weights, size, **how)
    if args.dry_run:
        if images:
            evaluation.check(images)
        if group.is_main:
            say(f"{args.samples} can be evaluated: {', '.join(evaluation.metrics)} by {evaluation.extractor.name}")
        return
    result = evaluation.evaluate(images)
    if result:
        write(result, args.json, args.html, (*said, *evaluation.said), others(args))
        if args.tensorboard is not None:
            write_tensorboard(result, args.tensorboard, args.step)


def tell_distance(args: argparse.Namespace, settings: "Settings", group: Group, extractor: str | None) -> None:
    """Print the FID between two files of statistics, and write it where `--json` says."""
    from fiducial.evaluation.distance import between
    from fiducial.evaluation.report.delivery import deliver

    given = {"--html": args.html, "--train": args.train, "--class-names": args.class_names, "--image-size": args.image_size}
    given["--tensorboard"] = args.tensorboard
    if unfit := [option for option, value in given.items() if value is not None]:
        raise UserError(
            f"{unfit[0]}: {args.samples} and {args.ref} are both statistics, of which there is FID alone; leave it out"
        )
    found = between(str(args.samples), args.ref, group, settings, extractor)
    if group.is_main:
        lines = [f"{found.label} between {args.samples} and {args.ref}: {found.value:.4f}"]
        lines += [f"note: {note}" for note in found.notes]
        deliver("\n".join(map(printable, lines)), {args.json: found.to_json})
