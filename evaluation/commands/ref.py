"""`python -m evaluation ref`: reference statistics of images."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fiducial import Group, UserError, make_folder, say
from fiducial.evaluation.commands.common import add_common, check_image_size, listed, with_ranks
from fiducial.evaluation.features import DEFAULT, file_of
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
    ref.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE.npz",
        help="where to write them; a folder for several extractors, with a file of each",
    )
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
    add_common(ref, several=True)
    ref.set_defaults(carry_out=partial(with_ranks, work=make))


def make(args: argparse.Namespace, settings: "Settings", group: Group) -> None:
    from fiducial.evaluation.data.opening import open_images
    from fiducial.evaluation.data.references import holds_statistics, write_reference
    from fiducial.evaluation.data.remarks import look_at, remarks, repeated, require_levels, tell, weights_unlike_published
    from fiducial.evaluation.features.load import given_for, load_extractor, require_taken
    from fiducial.evaluation.making import make_references
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
    names = args.extractor or (DEFAULT,)
    require_taken(names, args.weights)
    extractors = [load_extractor(name, args.weights, group, settings.dtype, settings.cache_dir) for name in names]
    for extractor in extractors:
        if (unlike := weights_unlike_published(extractor, given_for(extractor.name, args.weights))) and group.is_main:
            tell(unlike)
    files = [args.out / file_of(name) for name in names] if len(names) > 1 else [args.out]
    if group.is_main:
        make_folder(files[0].parent)
    made = make_references(images, extractors, group, settings, args.features)
    if group.is_main:
        for reference, file in zip(made, files, strict=True):
            write_reference(reference, file)
            keep_beside(images, file)
        cropped = f", cropped to {images.crop} x {images.crop}" if images.crop else ""
        lines = [f"{file}: {images.count:,} images{cropped}, {name}" for file, name in zip(files, names, strict=True)]
        found, provenance = remarks(images, "images"), made[0].provenance
        if provenance.different:
            found.append(repeated(provenance.different, images.count, "images"))
        if provenance.no_classes:
            found.append(f"FID by class cannot be had of it: {provenance.no_classes}.")
        say(*lines, *warnings_left(found, said))
