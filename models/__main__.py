"""Looks at checkpoints and autoencoders, changes the form that a checkpoint is in, and fetches what a run needs.

    python -m models inspect DiT-XL-2-256x256.pt
    python -m models convert 0400000.pt my-dit --to diffusers
    python -m models fetch dit-xl-2-256 --cache-dir /shared/fiducial

inspect exits with 0 if sample_ddp.py takes what it looked at, 1 if not, with the reason; every command exits with 2 if a file
cannot be used or had.
"""

import argparse
import sys

from fiducial import Parser, user_errors
from fiducial.models.commands import conversion, fetch, inspection

COMMANDS = {"inspect": inspection, "convert": conversion, "fetch": fetch}


def main() -> int:
    parser = Parser(
        prog="python -m models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS.values():
        command.add_parser(commands)
    args = parser.parse_args()
    return COMMANDS[args.command].run(args)


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
