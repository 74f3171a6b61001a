"""A board where ranks leave values for each other under keys: the store that they share, which some rank may take with it."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from fiducial.console import UserError, one_line
from fiducial.ranks.beats import BEAT_SECONDS, LEFT, beat_key
from fiducial.ranks.cause import Stopped
from fiducial.ranks.watch import Watch

if TYPE_CHECKING:
    import torch

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Board:
    """Values by key, in the store of all ranks. `watches` is the rank's watch, which is heard while something is waited for;
    empty while it has none."""

    store: "torch.distributed.Store"
    rank: int
    fellows: list[dict]
    watches: list[Watch]
    prefix: str = ""  # of all keys

    def within(self, name: str) -> "Board":
        """A part of it, whose keys are its own."""
        return replace(self, prefix=f"{self.prefix}{name}/")

    def publish(self, key: str, value: str) -> None:
        """Make `value`, which may be a path of any bytes, available to every rank."""
        self.ask(lambda: self.store.set(self.prefix + key, value.encode(errors="surrogateescape")))

    def receive(self, key: str, needed: Iterable[int] = ()) -> str:
        """Wait until some rank has published `key`.

        Args:
            needed: without these ranks nobody will.

        Raises:
            UserError: if one of them has left.
        """
        pause, looked = 0.002, time.monotonic()
        while not self._has(key):
            for watch in self.watches:
                watch.check()
            if time.monotonic() > looked + BEAT_SECONDS:
                self._require(needed, key)
                looked = time.monotonic()
            time.sleep(pause)
            pause = min(2 * pause, 0.25)
        return self.ask(lambda: self.store.get(self.prefix + key)).decode(errors="surrogateescape")

    def add(self, key: str, number: int) -> int:
        """Add to a counter; return its value."""
        return self.ask(lambda: self.store.add(self.prefix + key, number))

    def glance(self, key: str) -> str | None:
        """The value under `key` as it is now; None where nobody has published one. Waits for nobody."""
        if not self._has(key):
            return None
        return self.ask(lambda: self.store.get(self.prefix + key)).decode(errors="surrogateescape")

    def _has(self, key: str) -> bool:
        return self.ask(lambda: self.store.check([self.prefix + key]))

    def _require(self, ranks: Iterable[int], key: str) -> None:
        """Raise UserError if one of these has left, and so will not publish `key` any more."""
        if not self.ask(lambda: self.store.add(LEFT, 0)):
            return
        for rank in ranks:
            has_left = rank != self.rank and self.ask(lambda rank=rank: self.store.get(beat_key(rank))).decode() == LEFT
            if has_left and not self._has(key):
                raise UserError(
                    f"rank {self.rank} waits for rank {rank} on {self.fellows[rank]['host']}, which has left; what takes all "
                    "ranks, such as Evaluator.compute, has to be called by every one of them, not by rank 0 alone"
                )

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """The answer of the store or another rank. Where they are gone, work ends.

        Raises:
            Stopped: then; UserError where there is no watch.
        """
        try:
            return question()
        except RuntimeError as error:  # as are all that torch raises of connections
            if not self.watches:
                raise UserError(
                    f"rank {self.rank} has lost its connection to another, which may have ended ({one_line(error)})"
                ) from error
            raise Stopped(self.watches[0].lost_connection(error)) from error


@dataclass(frozen=True)
class Count:
    """A number that all ranks share and add to, also from threads beside the work."""

    board: Board
    key: str

    def add(self, number: int) -> int:
        """Add to it; return its value."""
        return self.board.add(self.key, number)

    @property
    def value(self) -> int:
        return self.add(0)
