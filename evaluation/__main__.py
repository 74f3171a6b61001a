"""Evaluates images: FID and Inception score against a reference, as a table, JSON and an HTML page.

python -m evaluation calc samples/RUN.npz --ref VIRTUAL_imagenet256_labeled.npz --inception-weights FILE --html report.html
python -m evaluation calc samples/RUN.npz --ref digits --metrics fid --json result.json
python -m evaluation ref photographs/ --out reference.npz --inception-weights FILE
"""

import argparse
import os
from pathlib import Path

import distributed
from distributed import Parser, UserError


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--extractor", choices=["inception", "digits"], help="default: what the reference was made with, or inception"
    )
    parser.add_argument(
        "--inception-weights", type=Path, metavar="FILE", help="the TF-ported Inception weights of torch-fidelity"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="(default %(default)s)")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto", help="(default %(default)s)")


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    calc = commands.add_parser("calc", help="metrics of samples", allow_abbrev=False)
    calc.add_argument("samples", type=Path, help="npz with arr_0, or a folder of images")
    calc.add_argument("--ref", help="npz with mu and sigma, npz or folder of images, or digits for the embedded reference")
    calc.add_argument("--metrics", default="fid,is", help="comma-separated: fid, is (default %(default)s)")
    calc.add_argument("--json", type=Path, metavar="FILE", help="write the whole result there")
    calc.add_argument("--html", type=Path, metavar="FILE", help="write the report there")
    add_common(calc)
    ref = commands.add_parser("ref", help="reference statistics of images", allow_abbrev=False)
    ref.add_argument("images", type=Path, help="npz with arr_0, or a folder of images")
    ref.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="where to write them")
    add_common(ref)
    return parser


def run(args: argparse.Namespace) -> None:
    import torch

    from evaluation.calc import Evaluator, reference_from
    from evaluation.features import load_extractor
    from evaluation.images import open_images
    from evaluation.references import write_reference

    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: must be at least 1")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU can be seen here")
    for path in filter(None, (getattr(args, "json", None), getattr(args, "html", None), getattr(args, "out", None))):
        if not path.resolve().parent.is_dir():
            raise UserError(f"{path} cannot be written: there is no folder {path.resolve().parent}")
        if path.is_dir() or not os.access(path.resolve().parent, os.W_OK):
            raise UserError(f"{path} cannot be written: it is a folder, or its folder is write-protected")

    if args.command == "ref":
        images = open_images(args.images)
        extractor = load_extractor(args.extractor or "inception", args.inception_weights, torch.device(device))
        reference = reference_from(images, extractor, args.batch_size)
        write_reference(args.out, reference.mu, reference.sigma, reference.provenance)
        print(f"{args.out}: {images.count:,} images, {extractor.name}")
        return
    open_images(args.samples)
    metrics = [name.strip() for name in args.metrics.split(",") if name.strip()]
    evaluator = Evaluator.prepare(args.ref, metrics, args.extractor, args.inception_weights, device, args.batch_size)
    evaluator.evaluate(args.samples).write(args.json, args.html)


if __name__ == "__main__":
    with distributed.user_errors():
        run(build_parser().parse_args())
