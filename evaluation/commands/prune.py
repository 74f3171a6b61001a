"""`python -m evaluation prune`: what the cache holds, and removing what was not used for long."""

import argparse
import re
from pathlib import Path

from fiducial import UserError, default_cache, say
from fiducial.cache import KINDS, PUBLISHED, Entry, chosen, entries, remove

SECONDS = {"h": 3600, "d": 86400, "w": 604800}
BYTES = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "prune",
        help="what the cache holds, and removing what was not used for long",
        description="Says what the cache holds, and removes what --older-than or --keep say. Features and compiled kernels are "
        "made anew when they are needed; published files, which would be downloaded anew, stay unless --published is given. What "
        "a process on any host uses, or is making, stays in any case, and so does the hub's cache, which its own client prunes.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--older-than", type=duration, metavar="TIME", help="remove what was not used for so long, such as 12h, 30d or 4w"
    )
    parser.add_argument(
        "--keep",
        type=size,
        metavar="SIZE",
        help="remove what was not used for longest, until the rest is at most this, such as 10GB",
    )
    parser.add_argument("--published", action="store_true", help="published weights and references may go too")
    parser.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="the cache (default ~/.cache/fiducial)")
    parser.set_defaults(carry_out=run)


def duration(text: str) -> float:
    """Seconds."""
    if not (match := re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([hdw])", text.strip())):
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 12h, 30d or 4w")
    return float(match[1]) * SECONDS[match[2]]


def size(text: str) -> int:
    """Bytes."""
    if not (match := re.fullmatch(r"(\d{1,6}(?:\.\d+)?)\s*([kMGT]?)B?", text.strip())):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500MB or 10GB")
    return int(float(match[1]) * BYTES[match[2]])


def run(args: argparse.Namespace) -> None:
    """Print each kind with its size, then each entry that goes or cannot go.

    Raises:
        UserError: if there is no such cache.
    """
    cache = args.cache_dir or default_cache()
    if not cache.is_dir():
        raise UserError(f"--cache-dir {cache}: no such folder, so there is nothing to remove")
    found = list(entries(cache))
    for kind, anew in KINDS.items():
        of_kind = [entry for entry in found if entry.kind == kind]
        say(f"{kind}: {shown(sum(entry.size for entry in of_kind))} in {len(of_kind):,}, which {anew}")
    if args.older_than is None and args.keep is None:
        say(f"nothing is removed from {cache}: say what may go, by --older-than 30d or --keep 10GB")
        return
    may_go = [entry for entry in found if args.published or entry.kind != PUBLISHED]
    gone = sum(entry.size for entry in chosen(may_go, args.older_than, args.keep) if goes(entry, args.dry_run))
    say(f"{shown(gone)} {'would be' if args.dry_run else 'were'} removed from {cache}")


def goes(entry: Entry, dry: bool) -> bool:
    """Remove an entry, or only say that it would be; False if it stays."""
    why = remove(entry, really=not dry)
    what = f"stays ({why})" if why else "would be removed" if dry else "removed"
    say(f"{entry.path}: {entry.kind}, {shown(entry.size)}, {what}")
    return not why


def shown(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
