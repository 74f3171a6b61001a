"""Rank 0's telling of how far a run is: RUN/progress.json every few seconds and RUN.newest.png, by a thread beside the work."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from fiducial import Cause, Group, Stopped
from fiducial.sampling.run.pace import Pace
from fiducial.sampling.run.sheet import write_sheet
from fiducial.sampling.run.signs import GONE, Sign, Signs
from fiducial.sampling.store import progress
from fiducial.sampling.store.folder import sheet_path
from fiducial.sampling.store.progress import DRAWING, DRAWN, ENDED, EVALUATED, EVALUATING, Progress, Rank
from fiducial.sampling.store.task import Task

TELL_SECONDS = 3.0
SHEET_SECONDS = 10.0


class Hearer(Protocol):
    """Hears how far a run is, on rank 0, from a thread beside the work; what it raises is lost."""

    def progress(self, now: Progress) -> None: ...

    def pictures(self, sheet: np.ndarray, images: int) -> None:
        """The sheet (H, W, 3) uint8 of the newest images when all are drawn, which are so many."""


class Teller:
    """The thread of rank 0."""

    def __init__(self, task: Task, signs: Signs, group: Group, hearer: Hearer | None):
        self._task, self._signs, self._hearer = task, signs, hearer
        self._hosts = [fellow["host"] for fellow in group.fellows] or group.hosts()
        self._before, self._of = len(task.done) - task.missing, len(task.done)
        now = time.monotonic()
        self._paces = [Pace(now) for _ in range(group.world_size)]
        self._heard = [(0, now)] * group.world_size  # the number of each rank's last sign, and when that was new
        self._beat, self._shown, self._sheet_at = 0, None, -SHEET_SECONDS
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="telling", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while True:
            with suppress(OSError, *GONE):
                self._tell(DRAWING)
            with suppress(OSError):
                self._show()
            if self._stopped.wait(TELL_SECONDS):
                return

    def _tell(self, stage: str) -> None:
        now = self.look(time.monotonic(), stage)
        now.write(self._task.folder)
        if self._hearer:
            self._hearer.progress(now)

    def look(self, now: float, stage: str = DRAWING) -> Progress:
        """The progress by the signs of all ranks, and how fast they are."""
        ranks = tuple(self._rank(rank, sign, now) for rank, sign in enumerate(self._signs.all()))
        drawing = [rank for rank in ranks if rank.done < rank.assigned]
        rates, self._beat = [rank.rate for rank in drawing if rank.rate], self._beat + 1
        left = [(rank.assigned - rank.done) / rank.rate for rank in drawing if rank.rate]
        return Progress(
            session=self._task.session,
            beat=self._beat,
            stage=stage,
            images=min(self._before + sum(rank.done for rank in ranks), self._of),
            of=self._of,
            ranks=ranks,
            rate=sum(rates) if rates else None,
            left=max(left) if drawing and len(left) == len(drawing) else None if drawing else 0.0,
        )

    def _rank(self, rank: int, sign: Sign | None, now: float) -> Rank:
        host = self._hosts[rank] if rank < len(self._hosts) else "?"
        if sign is None:
            return Rank(rank, host, "loading", 0, 0, None, now - self._heard[rank][1])
        number, heard = self._heard[rank]
        if sign.number != number:
            self._heard[rank] = (sign.number, heard := now)
        if sign.state == "loading" and not sign.done:
            self._paces[rank] = Pace(now)  # loading is not drawing
        self._paces[rank].note(now, sign.done)
        rate = self._paces[rank].rate(now)
        return Rank(rank, host, sign.state, sign.done, sign.assigned, rate, round(now - heard, 1), sign.memory)

    def _show(self, at_last: bool = False) -> None:
        """Write the sheet, if there is a newer block and the last sheet is old enough."""
        newest, now = self._signs.newest, time.monotonic()
        if newest is None or (newest is self._shown and not at_last):
            return
        if at_last or now - self._sheet_at >= SHEET_SECONDS:
            self._shown, self._sheet_at = newest, now
            made = write_sheet(sheet_path(self._task.folder), newest)
            if at_last and self._hearer:
                self._hearer.pictures(made, self._of)

    def end(self, whole: bool) -> None:
        """The end of the session, which is `whole` or not; the last word of one that is not stands in ended.json."""
        self._stopped.set()
        self._thread.join(TELL_SECONDS)
        if not whole:  # the store may not answer any more
            return
        with suppress(OSError, *GONE):
            self._tell(DRAWN)
        with suppress(OSError):
            self._show(at_last=True)


@contextmanager
def telling(task: Task, assigned: int, group: Group, hearer: Hearer | None) -> Iterator[Signs]:
    """In here the run tells how far it is; by all ranks, of which this one is to draw `assigned` images."""
    with Signs(group, assigned) as signs:
        teller = Teller(task, signs, group, hearer) if group.is_main else None
        whole = False
        try:
            yield signs
            whole = True
        finally:
            if teller:
                teller.end(whole)


@contextmanager
def evaluating(folder: Path, group: Group) -> Iterator[None]:
    """In here what was drawn into `folder` is evaluated, of which rank 0 goes on to tell; by all ranks."""
    now = progress.read(folder) if group.is_main else None
    if now is None:
        yield
        return
    ranks = tuple(replace(rank, state="evaluating", rate=None, silent=0.0) for rank in now.ranks)
    now = replace(now, stage=EVALUATING, ranks=ranks, rate=None, left=None)
    stopped, end = threading.Event(), replace(now, stage=EVALUATED)

    def follow(beat: int = now.beat) -> None:
        while not stopped.is_set():
            beat += 1
            write(folder, replace(now, beat=beat))
            stopped.wait(TELL_SECONDS)

    thread = threading.Thread(target=follow, name="telling", daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        cause = error.cause if isinstance(error, Stopped) else Cause.of(error, group.rank)
        end = replace(now, stage=ENDED, kind=cause.kind, message=cause.message)
        raise
    finally:
        stopped.set()
        thread.join(TELL_SECONDS)
        write(folder, end)


def write(folder: Path, now: Progress) -> None:
    """Write it, if that can be: no number depends on it."""
    with suppress(OSError):
        now.write(folder)
