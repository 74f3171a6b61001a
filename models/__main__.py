"""Networks' files: what a run needs, brought to where there is no internet.

python -m models fetch dit-xl-2-256 --cache-dir /shared/fiducial
"""

import argparse

import distributed
from distributed import Parser
from models import fetch

COMMANDS = {"fetch": fetch}


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS.values():
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    with distributed.user_errors():
        args = build_parser().parse_args()
        COMMANDS[args.command].run(args)
