"""Output of every command: one sentence for a mistake, once for all ranks; and where to what it makes goes."""

import argparse
import atexit
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from fiducial.opening import NotAFile
from fiducial.spelling import spelled
from fiducial.version import about, described

SHOWN = 200  # characters of a path, or of what an exception says, in a message
STDOUT = Path("-")  # in the place of a file's name
QUOTED = 60  # characters of a value of a file in a message
LONGEST_INTEGER = 128  # bits of one that is written out
# Where a launcher dies, torch would write a hundred lines of stack frames around the one that says so; errors are raised anyhow.
TORCHS_WARNINGS = ("TORCH_CPP_LOG_LEVEL", "ERROR")
# A path that nobody can use, whatever it was given as.
UNUSABLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)


class UserError(Exception):
    """A mistake that its one-sentence message lets the person correct: what was given, what was expected."""


class Unfailing(io.FileIO):
    """Standard error, which loses what nobody can read instead of ending the work."""

    def write(self, content: bytes) -> int:
        try:
            return super().write(content)
        except OSError:
            return len(content)


def ready() -> None:
    """Make the standard streams of a command fit for what it says, also where they are closed, full or of another encoding."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # or the next file, such as an npz, would have this number, and what libraries say be written to it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stderr in (None, sys.__stderr__):
        raw = io.BufferedWriter(Unfailing(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, getattr(sys.stderr, "encoding", None), "backslashreplace", line_buffering=True)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a result is not lost for want of a character
    os.environ.setdefault(*TORCHS_WARNINGS)
    if not _signal:
        _signal.append(0)
        atexit.register(_die)  # before others are, so that it comes after them


def ends_by_signal(number: int) -> bool:
    """Whether a process that was stopped by this signal ends as by the signal itself.

    A shell goes on with its loop unless Ctrl-C has ended the command so. A launcher waits for exit codes instead, and job
    scripts for the one that says that the same command continues.
    """
    return number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ


def end(code: int, number: int = 0) -> NoReturn:
    """Exit with `code`, or in the end by the signal of that number."""
    if _signal and ends_by_signal(number):
        _signal[0] = number
    sys.exit(code)


_signal: list[int] = []  # one, by which this process is to die; 0 for none


def _die() -> None:
    if _signal[0]:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        signal.signal(_signal[0], signal.SIG_DFL)
        os.kill(os.getpid(), _signal[0])


def as_mistake(error: BaseException) -> BaseException:
    """A `UserError` in the place of what the system says of a path that nobody can use; everything else as it is."""
    unusable = isinstance(error, NotAFile) or (isinstance(error, OSError) and error.errno in UNUSABLE)
    if unusable and error.filename is not None:
        return UserError(f"{shown(error.filename)}: {error.strerror or error}")
    return error


def shown(path: object) -> str:
    """A path as a sentence has it, cut short."""
    return text if len(text := str(path)) <= SHOWN else f"{text[:SHOWN]}…"


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are reported like all others: one sentence, once for all ranks. It has --version."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.register("type", int, partial(_parsed, int, "a whole number"))
        self.register("type", float, partial(_parsed, float, "a number"))
        self.add_argument("--version", action=_Version, help="print Fiducial's version, and the commit of a checkout")

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see --help)")

    def format_usage(self) -> str:
        return spelled(super().format_usage())

    def format_help(self) -> str:
        return spelled(super().format_help())


def _parsed(kind: type, name: str, text: str) -> int | float:
    """`text` as a number; argparse itself would name Python's type and not say what is expected."""
    try:
        return kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not {name}") from error


class _Version(argparse.Action):
    """As --help is: nothing that a file of options could hold. Git is asked when it is given, and not before."""

    def __init__(self, option_strings: list[str], **settings):
        super().__init__(option_strings, **{**settings, "dest": "help", "default": argparse.SUPPRESS, "nargs": 0})

    def __call__(self, parser: argparse.ArgumentParser, *_) -> None:
        if environment_rank() == 0:
            say(described(about()))
        parser.exit()


def require_ending(option: str, path: Path, *endings: str) -> None:
    """Raise UserError if a file to be written is called what another kind of file is; a name without an ending will do."""
    if path.suffix and not path.name.lower().endswith(endings):
        raise UserError(f"{option} {path}: what is written there is {endings[0]}, not {path.suffix}; name it so")


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


def live_bar() -> bool:
    """Whether a progress bar of this process stands unfinished in its line."""
    return any(not bar.disable for bar in list(getattr(tqdm, "_instances", ())))


def tell_launcher(message: str) -> None:
    """Hand the cause of the end to torchrun, if there is one, which prints the first as its root cause, as it is."""
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


def one_line(error: BaseException) -> str:
    """An exception in a few words, for use inside a sentence: its first line, cut short."""
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0][:SHOWN]


def quoted(value: object, letters: int = QUOTED) -> str:
    """A value of someone's file as a sentence has it, in one line and cut short.

    No more of it is looked at than is shown: lists of lists of lists may be small in a file and endless when written out.
    """
    text = ""
    for piece in _pieces(value, letters):
        text += piece
        if len(text) > letters:
            break
    return printable(text[:letters])


def _pieces(value: object, letters: int) -> Iterator[str]:
    """Python's way to write plain values, bit by bit; of all others, what kind they are."""
    if isinstance(value, str | bytes):
        yield repr(value[:letters])
    elif isinstance(value, int) and value.bit_length() > LONGEST_INTEGER:
        yield f"an integer of {value.bit_length():,} bits"
    elif value is None or isinstance(value, int | float):
        yield repr(value)
    elif isinstance(value, dict):
        yield "{"
        for number, (key, one) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _pieces(key, letters)
            yield ": "
            yield from _pieces(one, letters)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "[" if isinstance(value, list) else "("
        for number, one in enumerate(value):
            yield ", " if number else ""
            yield from _pieces(one, letters)
        yield "]" if isinstance(value, list) else ",)" if len(value) == 1 else ")"
    else:
        yield f"<{type(value).__name__}>"


def say(*lines: str) -> None:
    """Print lines on standard output at once, each made `printable`: what others wrote may be in them.

    Raises:
        UserError: if nobody can read it there.
    """
    try:
        print(*map(printable, map(spelled, lines)), sep="\n", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again at its end
        raise UserError(f"standard output cannot be written ({error.strerror})") from error


def warn(*lines: str) -> bool:
    """The same on standard error, where it is no matter if nobody can read it; not in the line where a progress bar stands.

    Whether somebody could, as far as it is known here.
    """
    if sys.stderr is None:  # for which print would take standard output
        return False
    before = [""] if live_bar() else []
    with suppress(OSError, ValueError):  # closed
        print(*before, *map(printable, map(spelled, lines)), sep="\n", file=sys.stderr, flush=True)
        return True
    return False


_results: list[Callable[[str], None]] = []  # at most one


@contextmanager
def stdout_kept(keep: bool = True) -> Iterator[None]:
    """In here standard output is for `say_result` alone: all else that is printed, by libraries too, goes to standard error.

    Raises:
        UserError: if standard output is closed.
    """
    if not keep:
        yield
        return
    stream = sys.stdout
    try:
        stream.flush()
        kept = os.dup(1)
    except (AttributeError, OSError) as error:
        raise UserError("standard output is closed, and the result is to go there") from error

    def point(descriptor: int) -> None:
        try:
            os.dup2(descriptor, 1)
        except OSError:  # standard error is closed
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def say_result(text: str) -> None:
        point(kept)
        sys.stdout = stream
        try:
            say(*text.split("\n"))
        finally:
            sys.stdout = sys.stderr
            point(2)

    point(2)
    sys.stdout = sys.stderr
    _results.append(say_result)
    try:
        yield
    finally:
        _results.clear()
        sys.stdout = stream
        point(kept)
        os.close(kept)


def say_result(text: str) -> None:
    """Print on standard output what `stdout_kept` keeps it for."""
    _results[0](text)
