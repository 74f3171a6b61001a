"""`python -m evaluation ref`: reference statistics of images."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fiducial import Group, UserError, say
from fiducial.evaluation.commands.common import add_common, check_image_size, listed, with_ranks
from fiducial.evaluation.features import DEFAULT
from fiducial.evaluation.metrics import METRICS, Need

if TYPE_CHECKING:
    from fiducial.evaluation.settings import Settings


def add_parser(commands: argparse._SubParsersAction) -> None:
    of_features = [metric.label for metric in METRICS.values() if metric.needs is Need.FEATURES]
    ref = commands.add_parser("ref", help="reference statistics of images", allow_abbrev=False)
    ref.add_argument(
        "images",
        type=Path,
        help="npz with arr_0, a folder of images, a zip of images, or a Hugging Face dataset: a folder of save_to_disk, or of "
        "the parquet files of one split (needs pip install datasets)",
    )
    ref.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="where to write them")
    ref.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="crop images of any size to this as ADM does (default: they have one size)",
    )
    ref.add_argument(
        "--features",
        type=int,
        default=10_000,
        help=f"random images whose features are stored for {listed(of_features)}; 0 for none (default %(default)s)",
    )
    add_common(ref)
    ref.set_defaults(carry_out=partial(with_ranks, work=make))


def make(args: argparse.Namespace, settings: "Settings", group: Group) -> None:
    from fiducial.evaluation.data.opening import open_images
    from fiducial.evaluation.data.references import holds_statistics, write_reference
    from fiducial.evaluation.data.remarks import look_at, remarks, repeated, require_levels, tell, weights_unlike_published
    from fiducial.evaluation.features.load import load_extractor, weights_of
    from fiducial.evaluation.making import make_reference
    from fiducial.evaluation.pictures import keep_beside
    from fiducial.evaluation.report.delivery import warnings_left

    check_image_size(args.image_size)
    if args.features < 0:
        raise UserError(f"--features {args.features}: must not be negative")
    if holds_statistics(args.images):
        raise UserError(f"{args.images} holds statistics, so it is a reference already; give it to calc as --ref")
    images = open_images(args.images, args.image_size)
    said = look_at(images, "images", group)
    require_levels(images, "images", group)
    name = args.extractor or DEFAULT
    given = weights_of(name, args.weights)
    extractor = load_extractor(name, args.weights, group, settings.dtype, settings.cache_dir)
    if (unlike := weights_unlike_published(extractor, given)) and group.is_main:
        tell(unlike)
    made = make_reference(images, extractor, group, settings, args.features)
    if group.is_main:
        write_reference(made, args.out)
        kept = keep_beside(images, args.out)
        cropped = f", cropped to {images.crop} x {images.crop}" if images.crop else ""
        lines = [f"{args.out}: {images.count:,} images{cropped}, {extractor.name}", f"{kept}: a few of them, for reports to show"]
        found = remarks(images, "images")
        if made.provenance.different:
            found.append(repeated(made.provenance.different, images.count, "images"))
        if made.provenance.no_classes:
            found.append(f"FID by class cannot be had of it: {made.provenance.no_classes}.")
        say(*lines, *warnings_left(found, said))
