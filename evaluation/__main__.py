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

Published references are downloaded by name:
{references}
FIDUCIAL_MIRROR=http://host/folder has downloads come from there, under the paths that they have on their own hosts.
"""

import argparse

import fiducial
from fiducial import STDOUT, Parser, stdout_kept
from fiducial.evaluation.commands import calc, compare, fetch, prune, ref
from fiducial.evaluation.data.published import PUBLISHED

COMMANDS = (calc, ref, compare, fetch, prune)


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m evaluation",
        description=__doc__.format(references="\n".join(f"    {name:<22}{entry.url}" for name, entry in PUBLISHED.items())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def run(args: argparse.Namespace) -> None:
    """Do what the command line says; with `--json -` nothing but the JSON is on standard output."""
    with stdout_kept(getattr(args, "json", None) == STDOUT):
        args.carry_out(args)


def main() -> None:
    run(build_parser().parse_args())


if __name__ == "__main__":
    with fiducial.user_errors():
        main()
