"""What every command says, and how: one sentence for a mistake, once for all ranks."""

import argparse
import errno
import os
import sys
from contextlib import suppress
from functools import partial

from tqdm import tqdm

from distributed.opening import NotAFile

SHOWN = 200  # characters of a path in a message
# A path that nobody can use, whatever it was given as.
UNUSABLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)


class UserError(Exception):
    """A mistake that its one-sentence message lets the person correct: what was given, what was expected."""


def as_mistake(error: BaseException) -> BaseException:
    """A `UserError` in the place of what the system says of a path that nobody can use; everything else as it is."""
    unusable = isinstance(error, NotAFile) or (isinstance(error, OSError) and error.errno in UNUSABLE)
    if unusable and error.filename is not None:
        return UserError(f"{str(error.filename)[:SHOWN]}: {error.strerror or error}")
    return error


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are reported like all others: one sentence, once for all ranks."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.register("type", int, partial(_parsed, int, "a whole number"))
        self.register("type", float, partial(_parsed, float, "a number"))

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see --help)")


def _parsed(kind: type, name: str, text: str) -> int | float:
    """`text` as a number; argparse itself would name Python's type and not say what is expected."""
    try:
        return kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not {name}") from error


def environment_rank() -> int:
    """The rank that the launcher gave this process; 0 without a launcher."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0


def progress_bar(total: int, desc: str, unit: str = "image", **options) -> tqdm:
    """A progress bar on rank 0: lively on a terminal, a line every ten seconds in a log."""
    interval = 0.3 if sys.stderr.isatty() else 10.0
    scaled = unit != "image"
    return tqdm(
        total=total,
        desc=printable(desc),
        unit=unit,
        unit_scale=scaled,
        mininterval=interval,
        disable=environment_rank() != 0,
        **options,
    )


def tell_launcher(message: str) -> None:
    """Hands the cause of the end to torchrun, if there is one, which prints the first as its root cause, as it is."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return
    from torch.distributed.elastic.multiprocessing.errors import record

    def fail() -> None:
        raise UserError(printable(message)) from None

    with suppress(Exception):
        record(fail)()


def printable(text: str) -> str:
    """The same text in one line of valid UTF-8, without a terminal's commands: names of files may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(*lines: str) -> None:
    """Prints lines on standard output at once, each made `printable`: what others wrote may be in them.

    Raises:
        UserError: if nobody can read it there.
    """
    try:
        print(*map(printable, lines), sep="\n", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again at its end
        raise UserError(f"standard output cannot be written ({error.strerror})") from error


def warn(*lines: str) -> None:
    """The same on standard error, where it is no matter if nobody can read it."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or never there
        print(*map(printable, lines), sep="\n", file=sys.stderr, flush=True)
