"""A process until its ranks watch each other (`fiducial.ranks.watch`): one whose launcher is gone ends, whatever it is doing.

Importing torch and waiting for others to join take seconds to minutes, in which nobody else would tell it. So who the launcher
is, is noted when this is first imported, and nothing heavy is imported here.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ELASTIC = "TORCHELASTIC_RUN_ID"  # in the environment of what torchrun starts
LOOK_SECONDS = 0.5
RESUMABLE = 75  # exit code, also of `python -m sampling status`: the same command continues (EX_TEMPFAIL)
# Without torchrun, the parent is a shell, which may go. 0 is one that cannot be seen from inside a container.
LAUNCHER = (os.getppid() or None) if ELASTIC in os.environ else None


class Lookout:
    """A thread that ends this process when its launcher is gone, while somebody has asked for that and none does it better."""

    def __init__(self):
        self.relieved = False  # by a watch, which lets the work end in order
        self._asked = 0
        self._thread: threading.Thread | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """In here an orphan is ended."""
        self._asked += 1
        if LAUNCHER and not self._thread:
            self._thread = threading.Thread(target=self._look, name="lookout", daemon=True)
            self._thread.start()
        try:
            yield
        finally:
            self._asked -= 1

    def _look(self) -> None:
        pause = threading.Event()
        while True:
            if self._asked and not self.relieved and is_orphan():
                self._end()
            pause.wait(LOOK_SECONDS)

    def _end(self) -> None:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            with suppress(OSError, ValueError):  # nobody reads it
                os.write(2, f"error: {gone()}; the same command continues\n".encode())
        os._exit(RESUMABLE)


def is_orphan() -> bool:
    """Whether the launcher of this process is gone."""
    return LAUNCHER is not None and (os.getppid() != LAUNCHER or BORN_ORPHAN)


def gone() -> str:
    """A sentence where the launcher is gone."""
    return "the launcher is gone" if BORN_ORPHAN else f"the launcher (process {LAUNCHER}) is gone"


def _is_born_orphan() -> bool:
    """Whether the launcher was killed before anything was noted: then the parent is process 1, which takes in all orphans,
    and is neither Python's nor what a container was told to run in the place of a worker."""
    if LAUNCHER != 1 or sys.platform != "linux":
        return False
    with suppress(OSError):
        words = Path("/proc/1/cmdline").read_bytes().split(b"\0")  # not its name, which torch changes
        if any(os.path.basename(word).startswith((b"python", b"torchrun", b"accelerate")) for word in words):
            return False
        return ELASTIC.encode() not in Path("/proc/1/environ").read_bytes()
    return True


BORN_ORPHAN = _is_born_orphan()
LOOKOUT = Lookout()
