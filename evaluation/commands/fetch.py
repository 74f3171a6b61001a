"""`python -m evaluation fetch`: downloads weights and references."""

import argparse
from functools import partial
from pathlib import Path

from fiducial import UserError, fetch_each
from fiducial.evaluation.commands.common import add_cache_dir
from fiducial.evaluation.data.published import PUBLISHED, fetch
from fiducial.evaluation.features import DEFAULT, WEIGHTS

OTHERS = tuple(name for name in WEIGHTS if name != DEFAULT)  # weights that have to be named


def add_parser(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "fetch", help="download Inception's weights, dinov2's, and references by name", allow_abbrev=False
    )
    command.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"{', '.join(OTHERS)}, or references from the list that --help of all commands gives",
    )
    add_cache_dir(command)
    command.set_defaults(carry_out=lambda args: fetch_all(args.names, args.cache_dir))


def fetch_all(names: list[str], cache_dir: Path | None) -> None:
    """Download Inception's weights, DINOv2's if they are named, and the references; what fails is said, and the rest is tried.

    Raises:
        UserError: if a name is unknown, or in the end, if some failed.
    """
    if unknown := [name for name in names if name not in (*PUBLISHED, *WEIGHTS)]:
        last = " or ".join(OTHERS)
        raise UserError(f"fetch {unknown[0]}: no such reference; choose from {', '.join(PUBLISHED)}, or {last} for its weights")
    wanted = {WEIGHTS[DEFAULT].title: partial(WEIGHTS[DEFAULT].fetch, cache_dir)}
    for name in names:
        if name != DEFAULT:
            wanted[name] = partial(WEIGHTS[name].fetch, cache_dir) if name in WEIGHTS else partial(fetch, name, cache_dir)
    if failed := fetch_each(wanted):
        raise UserError(f"not fetched: {', '.join(failed)}; what stands above says why and what to do")
