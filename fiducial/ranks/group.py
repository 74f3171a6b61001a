"""This process among its fellows: what all ranks find out, wait for and add up together."""

import atexit
import itertools
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from fiducial.ranks.adding import Adder
from fiducial.ranks.beats import LEFT, beat_key
from fiducial.ranks.board import Board, Count
from fiducial.ranks.cause import Cause, Stopped
from fiducial.ranks.fellows import Fellows
from fiducial.ranks.watch import Watch

if TYPE_CHECKING:
    import numpy as np
    import torch

Value = TypeVar("Value")  # that JSON has


@dataclass(frozen=True)
class Group:
    """This process among its fellows. `store` is shared by all of them: counters and small values.

    `scope`, `counter`, `board`, `once`, `gather`, `wait` and `sum` are collectives: to be called by every rank, in the same
    order. So each call has keys of its own in the store, and no second run of the group reads what a first one left. As a context
    manager it watches over the others, hears signals, and announces the exception that ends it.
    """

    rank: int
    world_size: int
    local_rank: int
    node: str
    device: "torch.device"
    store: "torch.distributed.Store"
    fellows: list[dict] = field(default_factory=list, repr=False)  # all ranks' processes, as `own_process` tells them; none alone
    _prefix: str = field(default="", repr=False)  # of keys in the store
    _calls: Iterator[int] = field(default_factory=itertools.count, repr=False)
    _watches: list[Watch] = field(default_factory=list, repr=False)  # at most one
    _adder: Adder = field(default_factory=Adder, repr=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @cached_property
    def _board(self) -> Board:
        return Board(self.store, self.rank, self.fellows, self._watches, self._prefix)

    def __enter__(self) -> "Group":
        atexit.unregister(self.depart)
        self._watches.append(Watch(self.store, Fellows(self.rank, self.world_size, self.fellows)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        watch = self._watches[0]
        if error is None or (isinstance(error, SystemExit) and not error.code):
            watch.leave()
            self._watches.clear()
            self.close()
        elif isinstance(error, SystemExit):
            watch.end(error)  # the others hear of it, and this one exits as it was to
        else:
            raise Stopped(watch.end(error)) from error

    def hosts(self) -> list[str]:
        """The names of the machines that the ranks are on."""
        return sorted({fellow["host"] for fellow in self.fellows}) or [socket.gethostname()]

    def check(self) -> None:
        """Say that this rank makes progress. To be called in every loop that takes long.

        Raises:
            Stopped: if work has to end, here or everywhere.
        """
        for watch in self._watches:
            watch.check()

    def heed(self) -> None:
        """As `check`, but says nothing of progress: for where this rank waits."""
        for watch in self._watches:
            watch.heed()

    def on_end(self, keep: Callable[[Cause], object] | None, hang_seconds: float) -> None:
        """From here on, the cause of an end is handed to `keep`, and a rank whose `check` was not called for so long ends all."""
        for watch in self._watches:
            watch.on_end(keep, hang_seconds)

    def allowing(self, seconds: float) -> AbstractContextManager:
        """In here a rank may make no progress for so many seconds more before it ends all."""
        return self._watches[0].allowing(seconds) if self._watches else nullcontext()

    def scope(self) -> "Group":
        """The same ranks where nothing has been asked yet, so that `once_per_node` is answered anew. A collective."""
        return replace(self, _prefix=f"{self._prefix}{self._next('scope')}/", _calls=itertools.count())

    def _next(self, kind: str) -> str:
        """A key of this call alone, the same on every rank."""
        return f"{kind}/{next(self._calls)}"

    def counter(self) -> Count:
        """A new number, 0, that all ranks share. A collective."""
        return Count(self._board, self._next("count"))

    def board(self) -> Board:
        """A part of the store that all ranks share, where nothing stands yet. A collective."""
        return self._board.within(self._next("board"))

    def once_per_node(self, asked: Sequence[object], make: Callable[[], str], main_first: bool = False) -> str:
        """The value of `make`, called on the first rank of each node only; the node's other ranks wait for it.

        Args:
            asked: what it is, and all that it depends on; in one scope, one question has one answer.
            main_first: on rank 0 before all others, so that nodes that share a cache find there what it has fetched.
        """
        board = self._board.within("/".join(quote(os.fsencode(str(part)), safe="") for part in asked))
        if self.local_rank == 0:
            if main_first and not self.is_main:
                board.receive("main")
            board.publish(self.node, value := make())
            if main_first and self.is_main:
                board.publish("main", value)
            return value
        return board.receive(self.node)

    def once(self, make: Callable[[], Value]) -> Value:
        """The value of `make`, called on rank 0 only; the others wait for it. It travels as JSON, so a tuple comes as a list."""
        key = self._next("once")
        if self.is_main:
            self._board.publish(key, json.dumps(make()))
        return json.loads(self._board.receive(key, [0]))

    def gather(self, value: Value) -> list[Value] | None:
        """On rank 0, the values of all ranks in their order, which travel as JSON; None on the others, which go on at once."""
        key = self._next("gather")
        self._board.publish(f"{key}/{self.rank}", json.dumps(value))
        if not self.is_main:
            return None
        return [json.loads(self._board.receive(f"{key}/{rank}", [rank])) for rank in range(self.world_size)]

    def wait(self) -> None:
        """Return when every rank has come here."""
        key = self._next("wait")
        self.check()
        if self._board.add(key, 1) == self.world_size:
            self._board.publish(f"{key}/all", "here")
        self._board.receive(f"{key}/all", range(self.world_size))

    def sum(self, array: "np.ndarray") -> "np.ndarray":
        """The sum over ranks of a float64 array of one shape, on every rank.

        Ranks meet at the store first, so that none sits in the addition for longer than it takes.
        """
        if self.world_size == 1:
            return array
        self.wait()
        return self._adder.sum(array, self._board, self.world_size)

    def depart(self) -> None:
        """Tell the others that this process ends, where no watch does."""
        if os.getpid() == self.fellows[self.rank]["pid"]:  # not a copy of it
            with suppress(RuntimeError):
                self.store.set(beat_key(self.rank), LEFT)
                self.store.add(LEFT, 1)

    def close(self) -> None:
        self._adder.close()
