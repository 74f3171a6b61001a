"""What can stand in the place of a file, and a guard against tests that wait for it."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fiducial import in_the_making, own_process

KINDS = ("folder", "named pipe", "socket", "device")  # the last as a link to one
GUARD_SECONDS = 60


def put(kind: str, path: Path) -> Path:
    """Has something of that kind stand at `path`, in the place of what was there."""
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "named pipe":
        os.mkfifo(path)
    elif kind == "socket":
        folder = os.open(path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{folder}/{path.name}")  # a socket's own path may not be long
        os.close(folder)
    else:
        path.symlink_to("/dev/zero")
    return path


def make_sparse(path: Path, size: int = 1 << 40) -> Path:
    """Gives a file so many bytes, of which none is on the disk beyond those that it has."""
    path.touch()
    os.truncate(path, size)
    return path


@contextmanager
def no_waiting() -> Iterator[None]:
    """Ends what hangs, by an exception that nobody takes for an answer of the system's."""

    def end(*_) -> None:
        pytest.fail(f"it waited for {GUARD_SECONDS} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(GUARD_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def left_by_a_dead_process(path: Path) -> Path:
    """What a process of this machine was making for `path` that was killed since: a name that nobody alive has."""
    beside = in_the_making(path)
    return beside.with_name(beside.name.replace(f"-{own_process()['started']}-", "-1-"))
