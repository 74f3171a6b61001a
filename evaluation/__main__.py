"""Evaluates images: FID, sFID, Inception score, precision, recall, KID, FD-DINOv2; as a table, JSON and an HTML page.

python -m evaluation calc samples/RUN.npz --ref VIRTUAL_imagenet256_labeled.npz --json result.json --html report.html
torchrun --nproc_per_node=8 -m evaluation calc samples/RUN.npz --ref adm-imagenet-256
python -m evaluation calc samples/RUN.npz --ref digits --metrics fid,precision,recall
python -m evaluation calc generated --ref train --image-size 256 --metrics fid
python -m evaluation ref ImageNet/train --image-size 256 --out reference.npz
python -m evaluation ref ImageNet/train --image-size 256 --extractor dinov2 --out dinov2.npz
python -m evaluation calc samples/RUN.npz --ref dinov2.npz --protocol dino
python -m evaluation compare samples/RUN samples/OTHER samples/THIRD --html comparison.html
python -m evaluation fetch adm-imagenet-256 dinov2
python -m evaluation prune --older-than 30d --keep 20GB

References published by ADM are downloaded by name:
{references}
FIDUCIAL_MIRROR=http://host/folder has downloads come from there, under the paths that they have on their own hosts.
"""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import fiducial
from fiducial import STDOUT, Group, Parser, UserError, fetch_each, require_ending, say, stdout_kept
from fiducial.evaluation import prune
from fiducial.evaluation.published import PUBLISHED

if TYPE_CHECKING:
    from fiducial.evaluation.checks import Settings

OUTPUTS = {"json": (".json",), "html": (".html", ".htm"), "out": (".npz",)}  # options of files to write, and what these end in


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--extractor",
        choices=["inception", "inception-clean", "dinov2", "digits"],
        help="default: the protocol's, or what the reference was made with, or inception",
    )
    parser.add_argument(
        "--inception-weights",
        type=Path,
        metavar="FILE",
        help="the TF-ported Inception weights of torch-fidelity (default: downloaded, see --cache-dir)",
    )
    parser.add_argument(
        "--dinov2-weights",
        type=Path,
        metavar="FILE",
        help="DINOv2's ViT-L/14, the official file or timm's (default: downloaded, 1.2 GB, see --cache-dir)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="of Inception's convolutions; bfloat16 prints what it does to FID; not run on a GPU yet (default %(default)s)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=64, help="images read at once; features do not depend on it (default %(default)s)"
    )
    parser.add_argument(
        "--device",
        choices=["auto", "cuda", "cpu"],
        default="auto",
        help="auto takes CUDA where there is one; not run on a GPU yet",
    )
    add_cache_dir(parser)
    parser.add_argument("--no-cache", action="store_true", help="neither use nor leave features there")


def add_cache_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where features, references fetched by name and the extractors' weights are kept, seen by all ranks "
        "(default ~/.cache/fiducial, and torch's hub cache for the weights)",
    )


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m evaluation",
        description=__doc__.format(references="\n".join(f"    {name:<22}{entry.url}" for name, entry in PUBLISHED.items())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (add_calc, add_ref, add_compare, add_fetch, prune.add_parser):
        add(commands)
    return parser


def add_calc(commands: argparse._SubParsersAction) -> None:
    calc = commands.add_parser("calc", help="metrics of samples", allow_abbrev=False)
    calc.add_argument("samples", type=Path, help="npz with arr_0, or a folder, zip or Hugging Face dataset of images")
    calc.add_argument(
        "--ref",
        help="npz with mu and sigma (ADM's, pytorch-fid's, ours), images as for samples, a name from above, or digits for the "
        "embedded ones",
    )
    calc.add_argument(
        "--protocol",
        choices=["adm", "torch-fidelity", "clean", "dino"],
        default="adm",
        help="whose definitions to follow: ADM's evaluator's, torch-fidelity's, clean-fid's (with its resize), or EDM2's and "
        "dgm-eval's FD-DINOv2 (default %(default)s)",
    )
    calc.add_argument(
        "--metrics",
        help="comma-separated: fid, sfid, is, precision, recall, kid, density, coverage, fid-infinity, vendi (default: the "
        "protocol's, density, coverage and fid-infinity, as far as --ref and the number of samples allow)",
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
    calc.add_argument("--kid-subset-size", type=int, default=1000, help="images a subset (default %(default)s)")
    calc.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="crop files of images of any size and colour, samples and those of --ref, to this as ADM does (default: they have "
        "one size)",
    )
    calc.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the whole result there; - is standard output, on which nothing else is then",
    )
    calc.add_argument("--html", type=Path, metavar="FILE", help="write the report there")
    calc.add_argument(
        "--dry-run",
        action="store_true",
        help="check options, reference and weights for samples that need not be there yet, fetching what is missing, and compute "
        "nothing",
    )
    add_common(calc)


def add_ref(commands: argparse._SubParsersAction) -> None:
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
        help="random images whose features are stored for precision, recall and KID; 0 for none (default %(default)s)",
    )
    add_common(ref)


def add_compare(commands: argparse._SubParsersAction) -> None:
    compare = commands.add_parser(
        "compare", help="results side by side, and which differences their intervals decide", allow_abbrev=False
    )
    compare.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="a result that calc wrote as JSON, or RUN.html, RUN.npz or the folder RUN beside its RUN.json, which are one run, "
        "so that samples/RUN-* will do; the others are held against the first, runs that differ by their seed alone are taken "
        "together, and what cannot be compared is left out and named",
    )
    compare.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the comparison there; - is standard output, on which nothing else is then",
    )
    compare.add_argument("--html", type=Path, metavar="FILE", help="write it there as a page")


def add_fetch(commands: argparse._SubParsersAction) -> None:
    fetch = commands.add_parser(
        "fetch", help="download Inception's weights, dinov2's, and references by name", allow_abbrev=False
    )
    fetch.add_argument(
        "names", nargs="*", metavar="NAME", help="dinov2, or references from the list that --help of all commands gives"
    )
    add_cache_dir(fetch)


def check_outputs(args: argparse.Namespace, inputs: list[Path]) -> None:
    """Raises UserError if one of the files to write could not be in the end, would replace something else, or is misnamed."""
    taken = [path.resolve() for path in inputs]
    for option, endings in OUTPUTS.items():
        path = getattr(args, option, None)
        if path is None or (option, path) == ("json", STDOUT):
            continue
        if path == STDOUT:
            raise UserError(f"--{option} -: is written to a file; only --json can go to standard output")
        if path.resolve() in taken:
            raise UserError(f"{path} is named twice: it cannot be written as well")
        taken.append(path.resolve())
        if path.is_symlink() and (path.is_file() or not path.exists()):
            raise UserError(f"{path} cannot be written: it is a link; give the file that it leads to, or another name")
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} cannot be written: it is no ordinary file")
        folder = path.resolve().parent
        if not folder.is_dir():
            raise UserError(f"{path} cannot be written: there is no folder {folder}")
        if path.is_dir() or not os.access(folder, os.W_OK):
            raise UserError(f"{path} cannot be written: it is a folder, or its folder is write-protected")
        require_ending(f"--{option}", path, *endings)


def run(args: argparse.Namespace) -> None:
    """Does what the command line says; with `--json -` nothing but the JSON is on standard output."""
    with stdout_kept(getattr(args, "json", None) == STDOUT):
        carry_out(args)


def carry_out(args: argparse.Namespace) -> None:
    if args.command == "fetch":
        return fetch_all(args.names, args.cache_dir)
    if args.command == "compare":
        return compare_all(args)
    if args.command == "prune":
        return prune.run(args)
    fiducial.launched()  # before torch is imported
    from fiducial.evaluation.checks import Settings

    names = ("protocol", "fp16_compat", "kid_subset_size", "dtype", "batch_size", "cache_dir")
    settings = {name: getattr(args, name) for name in names if hasattr(args, name)} | {"keep_features": not args.no_cache}
    if getattr(args, "metrics", None) is not None:
        settings["metrics"] = tuple(name.strip() for name in args.metrics.split(",") if name.strip())
    settings = Settings(**settings)
    settings.check()
    inputs = [
        Path(path)
        for name in ("samples", "images", "ref", "train", "inception_weights", "dinov2_weights")
        if (path := getattr(args, name, None))
    ]
    check_outputs(args, inputs)
    with fiducial.init(args.device) as group:
        (calculate if args.command == "calc" else make)(args, settings, group)


def fetch_all(names: list[str], cache_dir: Path | None) -> None:
    """Downloads Inception's weights, DINOv2's if they are named, and the references; what fails is said, and the rest is tried.

    Raises:
        UserError: if a name is unknown, or in the end, if some failed.
    """
    if unknown := [name for name in names if name not in (*PUBLISHED, "dinov2")]:
        raise UserError(f"fetch {unknown[0]}: no such reference; choose from {', '.join(PUBLISHED)}, or dinov2 for its weights")
    from fiducial.evaluation import dinov2, inception, published

    wanted = {"Inception": partial(inception.fetch, cache_dir)}
    for name in names:
        wanted[name] = partial(dinov2.fetch, cache_dir) if name == "dinov2" else partial(published.fetch, name, cache_dir)
    if failed := fetch_each(wanted):
        raise UserError(f"not fetched: {', '.join(failed)}; what stands above says why and what to do")


def compare_all(args: argparse.Namespace) -> None:
    from fiducial.evaluation.choice import choose_results, find_results
    from fiducial.evaluation.compare import compare
    from fiducial.evaluation.wording import deliver

    files, without = find_results(args.runs)
    check_outputs(args, [*files, *args.runs])
    comparison = compare(*choose_results(args.runs, files, without))
    deliver(comparison.table(), {args.json: comparison.to_json, args.html: comparison.to_html})


def calculate(args: argparse.Namespace, settings: "Settings", group: Group) -> None:
    from fiducial.evaluation.calc import Evaluation
    from fiducial.evaluation.remarks import SAMPLES, look_at, open_samples, require_levels

    check_image_size(args.image_size)
    to_come = args.dry_run and not args.samples.exists()
    images = None if to_come else open_samples(args.samples, args.image_size)
    said = look_at(images, SAMPLES, group)  # before the weights, which take longer
    require_levels(images, SAMPLES, group)
    size = args.image_size if images is None else images.height if images.height == images.width else None
    files = args.inception_weights, size, args.dinov2_weights, args.train
    evaluation = Evaluation.prepare(args.ref, group, settings, args.extractor, *files, args.image_size, args.class_names)
    if args.dry_run:
        if images:
            evaluation.check(images)
        if group.is_main:
            say(f"{args.samples} can be evaluated: {', '.join(evaluation.metrics)} by {evaluation.extractor.name}")
        return
    result = evaluation.evaluate(images)
    if result:
        result.write(args.json, args.html, (*said, *evaluation.said))


def check_image_size(size: int | None) -> None:
    if size is not None and not 8 <= size <= 4096:
        raise UserError(f"--image-size {size}: must be 8 to 4,096")


def make(args: argparse.Namespace, settings: "Settings", group: Group) -> None:
    from fiducial.evaluation.calc import make_reference
    from fiducial.evaluation.features import load_extractor, weights_of
    from fiducial.evaluation.images import open_images
    from fiducial.evaluation.references import holds_statistics, write_reference
    from fiducial.evaluation.remarks import look_at, remarks, repeated, require_levels, tell, weights_unlike_published
    from fiducial.evaluation.wording import warnings_left

    check_image_size(args.image_size)
    if args.features < 0:
        raise UserError(f"--features {args.features}: must not be negative")
    if holds_statistics(args.images):
        raise UserError(f"{args.images} holds statistics, so it is a reference already; give it to calc as --ref")
    images = open_images(args.images, args.image_size)
    said = look_at(images, "images", group)
    require_levels(images, "images", group)
    name = args.extractor or "inception"
    weights = weights_of(name, args.inception_weights, args.dinov2_weights)
    extractor = load_extractor(name, weights, group, settings.dtype, settings.cache_dir)
    if (unlike := weights_unlike_published(extractor, weights)) and group.is_main:
        tell(unlike)
    made = make_reference(images, extractor, group, settings, args.features)
    if group.is_main:
        write_reference(made, args.out)
        cropped = f", cropped to {images.crop} x {images.crop}" if images.crop else ""
        lines = [f"{args.out}: {images.count:,} images{cropped}, {extractor.name}"]
        found = remarks(images, "images")
        if made.provenance.different:
            found.append(repeated(made.provenance.different, images.count, "images"))
        if made.provenance.no_classes:
            found.append(f"FID by class cannot be had of it: {made.provenance.no_classes}.")
        say(*lines, *warnings_left(found, said))


def main() -> None:
    run(build_parser().parse_args())


if __name__ == "__main__":
    with fiducial.user_errors():
        main()
