"""Measures what an autoencoder makes of images: rFID, PSNR, SSIM and LPIPS, each with a 95 % interval over images.

    fiducial reconstruct ImageNet/val --vae ema --image-size 256 --json vae.json --html vae.html
    torchrun --nproc_per_node=8 -m fiducial reconstruct ImageNet/val --vae stabilityai/sdxl-vae --image-size 256
    fiducial reconstruct val.npz --vae vae.ckpt --posterior sample --seed 0 --metrics psnr,ssim
    fiducial reconstruct val.npz --vae mse --ref adm-imagenet-256
    fiducial compare ema.json mse.json

Images are read, encoded, decoded and compared in batches, shared out over the ranks; none is kept. rFID is between the features
of the reconstructions and of the very same originals, unless --ref names a reference. docs/reconstruction.md has the definitions.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import fiducial
from fiducial import STDOUT, Group, Parser, UserError, stdout_kept
from fiducial.evaluation.commands.common import add_common, check_image_size, listed, with_ranks
from fiducial.evaluation.metrics import of_pairs
from fiducial.evaluators import FOLLOWED
from fiducial.models.decoders.rounding import ROUNDING

if TYPE_CHECKING:
    from fiducial.evaluation.settings import Settings

BATCH = (16, "images encoded and decoded at once; they may depend on it in the last bits, which is recorded")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
POSTERIOR = MODE, SAMPLE = "mode", "sample"
MOST_SEED = 2**63 - 1


def build_parser() -> Parser:
    parser = Parser(
        prog="fiducial reconstruct",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "images",
        type=Path,
        help="npz with arr_0, or a folder (flat, or with folders in it), zip or Hugging Face dataset of images",
    )
    add_codec(parser.add_argument_group("autoencoder"))
    add_measures(parser.add_argument_group("measures"))
    outputs = parser.add_argument_group("output")
    outputs.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the whole result there, and beside it the file that compare pairs images by; - is standard output, on which "
        "nothing else is then (docs/results.md has its keys)",
    )
    outputs.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page there, with images beside their reconstructions, the worst too"
    )
    add_common(parser, batch=BATCH, lower=False)
    return parser


def add_codec(codec: argparse._ArgumentGroup) -> None:
    codec.add_argument(
        "--vae",
        required=True,
        help="as for sample: ema, mse, a local diffusers folder (AutoencoderKL, AutoencoderTiny), a hub id, a file in "
        "latent-diffusion's form, published:NAME, hf:OWNER/NAME/FILE, or pixels; one that has an encoder",
    )
    codec.add_argument(
        "--posterior",
        choices=POSTERIOR,
        default=MODE,
        help="decode the mode of an image's latents, or a sample of them (default %(default)s)",
    )
    codec.add_argument("--seed", type=int, help="of the samples, each a function of it and of the image's index (default 0)")
    codec.add_argument(
        "--precision", choices=PRECISIONS, default=PRECISIONS[0], help="of the autoencoder's products (default %(default)s)"
    )
    codec.add_argument(
        "--rounding",
        choices=list(ROUNDING),
        default=next(iter(ROUNDING)),
        help="pixels to uint8 as for sample, or none: floats are compared (default %(default)s)",
    )


def add_measures(measures: argparse._ArgumentGroup) -> None:
    measures.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="crop files of images of any size and colour to this as ADM does (default: they have one size)",
    )
    measures.add_argument(
        "--metrics",
        dest="wanted",
        metavar="NAMES",
        help=f"comma-separated: {', '.join(of_pairs())} (default: rfid,psnr,ssim,lpips)",
    )
    measures.add_argument("--ref", help="of rFID, as for evaluate, in the place of the originals")
    measures.add_argument(
        "--protocol",
        choices=FOLLOWED,
        default=next(iter(FOLLOWED)),
        help=f"whose features and resize rFID is of: {listed(list(FOLLOWED.values()), 'or')} (default %(default)s)",
    )


def main() -> None:
    args = build_parser().parse_args()
    with fiducial.user_errors(), stdout_kept(args.json == STDOUT):
        with_ranks(args, reconstruct)


def reconstruct(args: argparse.Namespace, settings: "Settings", group: Group) -> None:
    """On all ranks: everything is checked, then measured, then written by rank 0."""
    from fiducial.evaluation.reconstruction.making import reconstruct_all
    from fiducial.evaluation.reconstruction.preparing import open_originals, parse_metrics, prepare
    from fiducial.evaluation.reconstruction.report import write
    from fiducial.models.decoders.rounding import NONE
    from fiducial.studies.roundtrip import How, Roundtrip, check_size, open_codec

    check_image_size(args.image_size)
    if args.seed is not None and args.posterior != SAMPLE:
        raise UserError(f"--seed {args.seed}: without --posterior {SAMPLE} nothing is drawn; leave it out")
    if not 0 <= (args.seed or 0) <= MOST_SEED:
        raise UserError(f"--seed {args.seed}: must be 0 to {MOST_SEED:,}")
    metrics = parse_metrics(args.wanted)
    how = How(args.precision, args.rounding, None if args.posterior == MODE else args.seed or 0)
    how.check(group.device)
    codec = open_codec(args.vae, group, settings.cache_dir)
    if how.seed is not None and not codec.posterior:
        raise UserError(f"--posterior {SAMPLE}: latents of --vae {args.vae} are no distribution to draw from; leave it out")
    images, said = open_originals(args.images, args.image_size, metrics, group)
    check_size(codec, args.vae, images.height, images.width)
    extractor = args.extractor[0] if args.extractor else None
    if len(args.extractor) > 1:
        raise UserError(f"--extractor: reconstruct takes one, and {len(args.extractor)} are named")
    prepared = prepare(images, metrics, args.ref, group, settings, extractor, args.weights, said)
    roundtrip = Roundtrip(codec, how, group.device)
    result = reconstruct_all(prepared, roundtrip, roundtrip.recorded(args.vae), rounded=args.rounding != NONE)
    if result:
        write(result, args.json, args.html, prepared.said)
