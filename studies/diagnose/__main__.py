"""Why two sets of images have different FIDs, largest cause first, each with FID where that cause is undone.

    fiducial diagnose mine.npz theirs.npz --ref digits

Exit code 0 where nothing was found or causes are listed; 1 is an error.
"""

import argparse
import json
from pathlib import Path

import fiducial
from fiducial import Parser, UserError
from fiducial.evaluation.commands.common import add_common, check_outputs


def build_parser() -> Parser:
    parser = Parser(
        prog="fiducial diagnose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("a", type=Path, metavar="A", help="npz, run, or folder or zip of images")
    parser.add_argument("b", type=Path, metavar="B", help="the same of the other, whose FID A's should agree with")
    parser.add_argument("--ref", required=True, metavar="REF", help="the reference of FID, as evaluate takes it")
    parser.add_argument("--ref-b", metavar="REF", help="the one that B was evaluated with, if it was another")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the causes there")
    add_common(parser)
    return parser


def main() -> int:
    args = build_parser().parse_args()
    for path in (args.a, args.b):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
    check_outputs(args, [args.a, args.b])
    fiducial.launched()
    from fiducial.studies.diagnose.measure import diagnose, table

    found = diagnose(args)
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    with fiducial.user_errors():
        main()
