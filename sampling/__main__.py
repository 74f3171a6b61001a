"""Looks at runs: what state one is in, and whether its images are what was drawn. And at machines, before there is one.

    python -m sampling status samples/RUN
    python -m sampling verify samples/RUN
    python -m sampling doctor --sample-dir samples
    torchrun --nproc_per_node=8 -m sampling doctor --sample-dir samples

status exits with 0 if the run is complete, 75 if the same command continues it (or it is being drawn), 1 if a person has to put
something right first. verify exits with 0 if all that was drawn is as it was drawn, else with 1; the next run of the same
command restores or redraws what is damaged, unless it says what is in the way. Both exit with 2 if there is no such run. doctor
tries what a run needs, says what to do about each problem, and exits with 1 if there is one.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import fiducial
from fiducial import Parser, UserError, progress_bar, say, user_errors

SHOWN = 20  # damaged images that are named


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m sampling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("status", "whether a run is complete"), ("verify", "whether its images are what was drawn")):
        command = commands.add_parser(name, help=text, allow_abbrev=False)
        command.add_argument("run", type=Path, help="the folder of a run")
        if name == "status":
            command.add_argument("--json", action="store_true", help="print it as JSON")
    command = commands.add_parser("doctor", help="what a run will meet on this machine", allow_abbrev=False)
    command.add_argument("--sample-dir", type=Path, default=Path("samples"), help="folder of runs (default samples)")
    command.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="where downloaded files are looked for, as a run with this option would"
    )
    command.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto", help="auto takes CUDA where there is one")
    command.add_argument(
        "--numerics",
        action=argparse.BooleanOptionalAction,
        help="compare what each precision, compiled and not, makes of two networks with fp32, which takes minutes (default: "
        "fiducial doctor does)",
    )
    return parser


def show_doctor(args: argparse.Namespace, more: Callable | None) -> int:
    fiducial.launched()  # before torch is imported
    from fiducial.sampling.commands.doctor import doctor

    with fiducial.init(args.device) as group:
        with_numerics = more is not None if args.numerics is None else args.numerics
        return doctor(group, args.sample_dir, args.cache_dir, with_numerics, more)


def show_status(folder: Path, as_json: bool) -> int:
    from fiducial.sampling.commands.status import status

    found = status(folder)
    if as_json:
        say(json.dumps({**asdict(found), "exit_code": found.exit_code}))
    else:
        reason = f": {found.reason}" if found.reason else ""
        say(f"{found.folder}: {found.state}, {found.images:,} of {found.of:,} images after {found.sessions} session(s){reason}")
    return found.exit_code


def show_verify(folder: Path) -> int:
    from fiducial.sampling.commands.status import as_named, require_manifest, status
    from fiducial.sampling.commands.verify import verify
    from fiducial.sampling.store.manifest import mixed_up
    from fiducial.sampling.store.places import check_places

    count, wrong, in_the_way = require_manifest(folder).num_fid_samples, 0, ""
    with progress_bar(count, "verifying") as bar:
        for line in verify(folder, bar.update):
            wrong += 1
            in_the_way = in_the_way or line * line.endswith(": it is a folder, not a file")  # others are replaced
            if wrong <= SHOWN:
                bar.clear()
                say(line)
    found, damage = status(folder), "all as they were drawn"
    if wrong:
        damage = f"{wrong:,} damaged copies; the next run of the same command restores or redraws them"
        try:
            check_places(as_named(folder))
        except UserError as error:
            in_the_way = str(error)
        if in_the_way:
            damage = f"{wrong:,} damaged copies, and the next run is refused: {in_the_way}"
    if mixed_up(folder, require_manifest(folder)):
        damage = found.reason
    say(f"{folder}: {found.images:,} of {found.of:,} images drawn, {damage}")
    return 1 if wrong else 0


def main(more: Callable | None = None) -> int:
    """Do what the command line says. Return the exit code.

    Args:
        more: findings of `doctor` that this package knows nothing of.
    """
    args = build_parser().parse_args()
    if args.command == "doctor":
        return show_doctor(args, more)
    from fiducial.sampling.store.disk import explained

    try:
        return look(args)
    except OSError as error:
        raise explained(error, args.run) from error


def look(args: argparse.Namespace) -> int:
    return show_status(args.run, args.json) if args.command == "status" else show_verify(args.run)


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
