"""Protocol of a sink, which keeps the images of a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fiducial import Group
from fiducial.sampling.plan import Plan
from fiducial.sampling.run.signs import Signs
from fiducial.sampling.run.telling import Hearer
from fiducial.sampling.source.protocol import ResolvedRun
from fiducial.sampling.store.lock import Lock
from fiducial.sampling.store.manifest import Manifest
from fiducial.sampling.store.task import Task


@dataclass(frozen=True)
class RunFolder:
    """A run's folder as one rank has it in this session."""

    task: Task
    group: Group
    lock: Lock | None  # on rank 0, which must not lose it
    began: float  # when its checks began, of `time.monotonic`
    hearer: Hearer | None = None  # of how far the run is
    signs: Signs | None = None  # where this rank tells of that

    def check(self) -> None:
        """Say that this rank makes progress.

        Raises:
            Stopped: if work has to end.
            UserError: if the folder is not this run's any more.
        """
        self.group.check()
        if self.lock:
            self.lock.check()


OnWritten = Callable[[np.ndarray], object]  # called with a row for each of some images
Redraw = Callable[[np.ndarray, np.ndarray, OnWritten], object]  # where blocks begin, and what of them is wanted, (N,) bool


class Sink(Protocol):
    """Keeps what is drawn. The first five are called on rank 0 before anything is drawn, the others on every rank."""

    made: str  # the format of its manifest
    suffix: str  # of its folder's name
    with_png: bool

    def check_lengths(self, folder: Path) -> None:
        """Raise UserError if a path would be too long."""

    def look(self, folder: Path, manifest: Manifest | None, run: ResolvedRun) -> np.ndarray:
        """(N,) bool: the images that are done, without a look at all that is there.

        Raises:
            UserError: if what is there is another run's, or there is too little room.
        """

    def claim(self, folder: Path, manifest: Manifest) -> np.ndarray:
        """(N,) bool: the images that are done, for whoever holds the folder's lock."""

    def begin(self, folder: Path, plan: Plan, image_size: int) -> Path | None:
        """Make the files that are filled while drawing; the npz among them, if there is one."""

    def open(self, folder: RunFolder, group: Group) -> None:
        """Take its place on this rank."""

    @contextmanager
    def writing(self, on_written: OnWritten) -> Iterator[None]:
        """In here images are put; left when they are on the disk. `on_written` hears of them."""

    def put(self, indices: np.ndarray, pixels: np.ndarray) -> None:
        """Keep the images `indices` of one block, pixels (len(indices), H, W, 3) uint8."""

    def mend(self, draw: Redraw) -> None:
        """Once all are drawn: compares what is there with what was recorded of it, and has drawn again what is lost."""

    def finish(self, manifest: Manifest) -> str:
        """On rank 0, when all is as it should be: completes the files and the manifest; what is to be said of it."""

    def clear(self) -> None:
        """On rank 0, when the manifest says that the run is finished: removes what only drawing needed."""

    def gather(self) -> Path:
        """When all is finished: what the command goes on with."""
