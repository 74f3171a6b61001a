"""`python -m evaluation calc`: metrics of samples."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fiducial import Group, say
from fiducial.evaluation.commands.common import add_common, add_outputs, check_image_size, listed, others, with_ranks
from fiducial.evaluation.metrics import KID_SUBSET_SIZE, METRICS, named
from fiducial.evaluation.protocols import PROTOCOLS

if TYPE_CHECKING:
    from fiducial.evaluation.settings import Settings


def add_parser(commands: argparse._SubParsersAction) -> None:
    by_default = [metric.name for metric in METRICS.values() if metric.by_default]
    calc = commands.add_parser("calc", help="metrics of samples", allow_abbrev=False)
    calc.add_argument("samples", type=Path, help="npz with arr_0, or a folder, zip or Hugging Face dataset of images")
    calc.add_argument(
        "--ref",
        help="npz with mu and sigma (ADM's, pytorch-fid's, ours), images as for samples, a name from above, or digits for the "
        "embedded ones",
    )
    calc.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="adm",
        help="whose definitions to follow: ADM's evaluator's, torch-fidelity's, clean-fid's (with its resize), or EDM2's and "
        "dgm-eval's FD-DINOv2 (default %(default)s)",
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
    calc.add_argument("--kid-subset-size", type=int, default=KID_SUBSET_SIZE, help="images a subset (default %(default)s)")
    calc.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="crop files of images of any size and colour, samples and those of --ref, to this as ADM does (default: they have "
        "one size)",
    )
    add_outputs(calc, "the whole result", "the report")
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
    from fiducial.evaluation.evaluate import Evaluation
    from fiducial.evaluation.report import write

    check_image_size(args.image_size)
    to_come = args.dry_run and not args.samples.exists()
    images = None if to_come else open_samples(args.samples, args.image_size)
    said = look_at(images, SAMPLES, group)  # before the weights, which take longer
    require_levels(images, SAMPLES, group)
    size = args.image_size if images is None else images.height if images.height == images.width else None
    how = {"training": args.train, "crop": args.image_size, "class_names": args.class_names}
    evaluation = Evaluation.prepare(args.ref, group, settings, args.extractor, args.weights, size, **how)
    if args.dry_run:
        if images:
            evaluation.check(images)
        if group.is_main:
            say(f"{args.samples} can be evaluated: {', '.join(evaluation.metrics)} by {evaluation.extractor.name}")
        return
    result = evaluation.evaluate(images)
    if result:
        write(result, args.json, args.html, (*said, *evaluation.said), others(args))
