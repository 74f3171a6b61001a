"""Signs of what each rank does, in the store that all ranks share: each leaves its own, and rank 0 looks at all of them."""

import json
import threading
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from fiducial import Group, Stopped, life
from fiducial.sampling import memory

NEWEST = 32  # images that are kept for a sheet
GONE = (RuntimeError, Stopped)  # of a store that does not answer: the work hears of that by itself


@dataclass(frozen=True)
class Sign:
    """The last that a rank has told; `number` goes up with each time."""

    state: str
    done: int
    assigned: int
    memory: int
    number: int


class Signs:
    """This rank's sign, and where all ranks' are. Making it is a collective; it costs a block two or three words in the store.

    Args:
        assigned: images that this rank is to draw.
    """

    def __init__(self, group: Group, assigned: int):
        self._group, self._board, self._assigned = group, group.board(), assigned
        self._state, self._done, self._number, self._lock = "loading", 0, 0, threading.Lock()
        self.newest: np.ndarray | None = None  # pixels (n, H, W, 3), those of the last block first
        self.tell("loading")

    def __enter__(self) -> "Signs":
        life.listeners.append(self.tell)
        return self

    def __exit__(self, *_: object) -> None:
        life.listeners.remove(self.tell)

    def tell(self, state: str) -> None:
        """Tell what this rank does from now on."""
        with self._lock:
            self._state = state
            self._publish()

    def drew(self, images: int) -> None:
        """Tell that so many more images are kept; from any thread."""
        with self._lock:
            self._done += images
            self._publish()

    def show(self, pixels: np.ndarray) -> None:
        """Keep pixels (n, H, W, 3) of a block, so that a sheet can be made of the newest; on the rank that makes one."""
        if self._group.is_main and len(pixels):
            before = () if self.newest is None else (self.newest,)
            self.newest = np.concatenate([pixels[:NEWEST], *before])[:NEWEST]

    def _publish(self) -> None:
        self._number += 1
        sign = Sign(self._state, self._done, self._assigned, memory.peak(self._group.device), self._number)
        with suppress(*GONE):
            self._board.publish(str(self._group.rank), json.dumps(vars(sign)))

    def all(self) -> list[Sign | None]:
        """The sign of each rank; None of those that have told nothing yet."""
        told = [self._board.glance(str(rank)) for rank in range(self._group.world_size)]
        return [Sign(**json.loads(one)) if one else None for one in told]
