"""How a command ends: a person's mistake in one line, Ctrl-C by the signal, and what ended all ranks by its exit code."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fiducial.console import UserError, as_mistake, end, environment_rank, ready, tell_launcher, warn
from fiducial.ranks.cause import Stopped
from fiducial.ranks.joining import launched
from fiducial.startup import LOOKOUT

YIELD_SECONDS = 10.0


@contextmanager
def _mistakes() -> Iterator[None]:
    """Raise a `UserError` for what the system says of a path that nobody can use."""
    try:
        yield
    except OSError as error:
        raise as_mistake(error) from error


def _is_launched() -> bool:
    """Whether the launcher's environment is one."""
    try:
        launched()
    except UserError:
        return False
    return True


_interrupted: list[int] = []  # signals that were raised as KeyboardInterrupt, which an import may have swallowed


def _interrupt(number: int, frame: FrameType | None) -> None:
    _interrupted.append(number)
    signal.default_int_handler(number, frame)


def require_uninterrupted() -> None:
    """Raise KeyboardInterrupt if that was raised before, and somebody's `except` has swallowed it."""
    if _interrupted:
        _interrupted.clear()
        raise KeyboardInterrupt


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn what ends the work into one line and an exit code: 2 for a `UserError`, else the announced cause's.

    Before there is a group, all ranks make the same mistake, so rank 0 prints it at once; the others give the launcher time to
    end them and speak only if they are still there: then the mistake was theirs alone. Where the launcher's environment cannot
    be, there may be no rank 0, so all speak at once.
    """
    ready()
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, _interrupt)  # in order from here on: `interrupts` had it end at once
        with LOOKOUT.kept(), _mistakes():
            try:
                yield
            finally:  # also at sys.exit, and where the error is but what was made of the interruption
                require_uninterrupted()
    except Stopped as stopped:
        end(stopped.cause.exit_code, stopped.cause.signal)
    except UserError as error:
        rank = environment_rank()
        if rank and _is_launched():
            time.sleep(YIELD_SECONDS)
        where = f" (rank {rank})" if rank else ""
        warn(f"error{where}: {error}")
        tell_launcher(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        if environment_rank() == 0:
            warn("interrupted")
        end(130, signal.SIGINT)
