"""Fiducial: sampling of class-conditional generative models, and how good the samples are.

Here is the ground that its packages (`fiducial.models`, `fiducial.evaluation` ...) stand on: ranks that find each other, talk
through a store, add arrays and end together, of which none waits for one that will not come (see `fiducial.watch`); and what
every command shares because several processes run it: `fiducial.console`, `decoding`, `files`, `leftovers` and `opening`.
"""

import fiducial.interrupts  # noqa: F401, I001 (before what takes time)
import atexit
import itertools
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from fiducial.cache import CHECKPOINTS, REFERENCES
from fiducial.console import (
    QUOTED,
    STDOUT,
    Parser,
    UserError,
    as_mistake,
    end,
    environment_rank,
    printable,
    progress_bar,
    quoted,
    ready,
    require_ending,
    say,
    say_result,
    shown,
    stdout_kept,
    tell_launcher,
    warn,
)
from fiducial.decoding import decode_json, is_decodable, read_json
from fiducial.files import (
    CLASSES_BESIDE,
    MIRROR,
    OFFLINE,
    ZIPPED,
    default_cache,
    download,
    download_nothing,
    fetch_each,
    file_sha256,
    write_whole,
)
from fiducial.folders import check_lengths, make_folder, nearest, unwritable
from fiducial.joining import connect, give_up, launched
from fiducial.joining import meet as _meet
from fiducial.leftovers import in_the_making, remove_leftovers
from fiducial.opening import (
    NO_FILE,
    NotAFile,
    no_file,
    open_new,
    open_regular,
    open_to_write,
    read_bytes,
    read_text,
    require_file,
    require_place,
)
from fiducial.processes import is_running, is_visible, own_process
from fiducial.startup import LOOKOUT, RESUMABLE
from fiducial.version import about, described
from fiducial.watch import BEAT_SECONDS, LEFT, Cause, Stopped, Watch
from fiducial.wings import find_wings

if TYPE_CHECKING:
    import numpy as np
    import torch

find_wings()

__all__ = [
    "CHECKPOINTS",
    "CLASSES_BESIDE",
    "MIRROR",
    "NO_FILE",
    "OFFLINE",
    "QUOTED",
    "REFERENCES",
    "RESUMABLE",
    "STDOUT",
    "ZIPPED",
    "Cause",
    "Group",
    "NotAFile",
    "Parser",
    "Stopped",
    "UserError",
    "Watch",
    "about",
    "check_lengths",
    "decode_json",
    "default_cache",
    "described",
    "download",
    "download_nothing",
    "environment_rank",
    "fetch_each",
    "file_sha256",
    "in_the_making",
    "init",
    "is_decodable",
    "is_running",
    "is_visible",
    "launched",
    "make_folder",
    "nearest",
    "no_file",
    "open_new",
    "open_regular",
    "open_to_write",
    "own_process",
    "printable",
    "progress_bar",
    "quoted",
    "read_bytes",
    "read_json",
    "read_text",
    "remove_leftovers",
    "require_ending",
    "require_file",
    "require_place",
    "say",
    "say_result",
    "shown",
    "stdout_kept",
    "tell_launcher",
    "unwritable",
    "user_errors",
    "warn",
    "write_whole",
]

YIELD_SECONDS = 10.0
Value = TypeVar("Value")  # that JSON has


@dataclass(frozen=True)
class Group:
    """This process among its fellows. `store` is shared by all of them: counters and small values.

    `once`, `wait` and `sum` have to be called by every rank, in the same order. As a context manager it watches over the
    others, hears signals, and announces the exception that ends it.
    """

    rank: int
    world_size: int
    local_rank: int
    node: str
    device: "torch.device"
    store: "torch.distributed.Store"
    fellows: list[dict] = field(default_factory=list, repr=False)  # all ranks' processes, as `own_process` tells them; none alone
    _calls: Iterator[int] = field(default_factory=itertools.count, repr=False)
    _watch: list["Watch"] = field(default_factory=list, repr=False)  # at most one
    _gloo: list["torch.distributed.ProcessGroup | None"] = field(default_factory=list, repr=False)  # None is torch's default

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> "Group":
        atexit.unregister(self._depart)
        self._watch.append(Watch(self))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        watch = self._watch[0]
        if error is None or (isinstance(error, SystemExit) and not error.code):
            watch.leave()
            self._watch.clear()
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
        for watch in self._watch:
            watch.check()

    def heed(self) -> None:
        """As `check`, but says nothing of progress: for where this rank waits."""
        for watch in self._watch:
            watch.heed()

    def on_end(self, keep: Callable[[Cause], object] | None, hang_seconds: float) -> None:
        """From here on, the cause of an end is handed to `keep`, and a rank whose `check` was not called for so long ends all."""
        for watch in self._watch:
            watch.keep, watch.hang_beats = keep, hang_seconds / BEAT_SECONDS

    @contextmanager
    def allowing(self, seconds: float) -> Iterator[None]:
        """In here a rank may make no progress for so many seconds more before it ends all."""
        before = [watch.hang_beats for watch in self._watch]
        for watch, beats in zip(self._watch, before, strict=True):
            watch.hang_beats = beats and beats + seconds / BEAT_SECONDS
        try:
            yield
            self.check()
        finally:
            for watch, beats in zip(self._watch, before, strict=True):
                watch.hang_beats = beats

    def publish(self, key: str, value: str) -> None:
        """Make `value`, which may be a path of any bytes, available to every rank."""
        self._ask(lambda: self.store.set(key, value.encode(errors="surrogateescape")))

    def receive(self, key: str, needed: Iterable[int] = ()) -> str:
        """Wait until some rank has published `key`.

        Args:
            needed: without these ranks nobody will.

        Raises:
            UserError: if one of them has left.
        """
        pause, looked = 0.002, time.monotonic()
        while not self._ask(lambda: self.store.check([key])):
            self.check()
            if time.monotonic() > looked + BEAT_SECONDS:
                self._require(needed, key)
                looked = time.monotonic()
            time.sleep(pause)
            pause = min(2 * pause, 0.25)
        return self._ask(lambda: self.store.get(key)).decode(errors="surrogateescape")

    def _require(self, ranks: Iterable[int], key: str) -> None:
        """Raise UserError if one of these has left, and so will not publish `key` any more."""
        if not self._ask(lambda: self.store.add(LEFT, 0)):
            return
        for rank in ranks:
            has_left = rank != self.rank and self._ask(lambda rank=rank: self.store.get(f"beat/{rank}")).decode() == LEFT
            if has_left and not self._ask(lambda: self.store.check([key])):
                raise UserError(
                    f"rank {self.rank} waits for rank {rank} on {self.fellows[rank]['host']}, which has left; what takes all "
                    "ranks, such as Evaluator.compute, has to be called by every one of them, not by rank 0 alone"
                )

    def count(self, key: str, number: int) -> int:
        """Add to a counter that all ranks share; return its value."""
        self.check()
        return self.tally(key, number)

    def tally(self, key: str, number: int) -> int:
        """As `count`, for threads beside the work."""
        return self._ask(lambda: self.store.add(key, number))

    def once_per_node(self, asked: Sequence[object], make: Callable[[], str], main_first: bool = False) -> str:
        """What `make` returns, called on the first rank of each node only; the node's other ranks wait for it.

        Args:
            asked: what it is, and all that it depends on: another question in the same group has another answer.
            main_first: on rank 0 before all others, so that nodes that share a cache find there what it has fetched.
        """
        key = "/".join(quote(os.fsencode(str(part)), safe="") for part in asked)
        if self.local_rank == 0:
            if main_first and not self.is_main:
                self.receive(f"{key}/main")
            self.publish(f"{key}/{self.node}", value := make())
            if main_first and self.is_main:
                self.publish(f"{key}/main", value)
            return value
        return self.receive(f"{key}/{self.node}")

    def once(self, make: Callable[[], Value]) -> Value:
        """What `make` returns, called on rank 0 only; the others wait for it. It travels as JSON, so a tuple comes as a list."""
        key = f"once/{next(self._calls)}"
        if self.is_main:
            self.publish(key, json.dumps(make()))
        return json.loads(self.receive(key, [0]))

    def wait(self) -> None:
        """Return when every rank has come here."""
        key = f"wait/{next(self._calls)}"
        if self.count(key, 1) == self.world_size:
            self.publish(f"{key}/all", "here")
        self.receive(f"{key}/all", range(self.world_size))

    def sum(self, array: "np.ndarray") -> "np.ndarray":
        """The sum over ranks of a float64 array of one shape, on every rank.

        The one collective, over gloo, whose connections are made when it is first called; ranks meet at the store first,
        so that none sits in it for longer than the addition takes.
        """
        if self.world_size == 1:
            return array
        import torch
        import torch.distributed as dist

        self.wait()
        if not self._gloo and dist.is_initialized():
            # Somebody else's, such as a training loop's over NCCL, which takes no arrays of the host's memory.
            self._gloo.append(self._ask(lambda: dist.new_group(backend="gloo")))
        elif not self._gloo:
            # A connection of its own, because gloo's waiting would hold up this rank's beats.
            store = dist.PrefixStore("gloo", self.store.clone())
            try:
                dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.world_size)
            except RuntimeError as error:
                remedy = "GLOO_SOCKET_IFNAME can name the network interface that the nodes share"
                raise UserError(
                    f"the ranks cannot connect to each other ({str(error).splitlines()[0][:120]}); {remedy}"
                ) from error
            self._gloo.append(None)
            atexit.register(self.close)  # where nobody else does; a process that ends with connections open may abort
        total = torch.from_numpy(array.copy())
        self._ask(lambda: dist.all_reduce(total, group=self._gloo[0]))
        return total.numpy()

    def _depart(self) -> None:
        """Tell the others that this process ends, where no watch does."""
        if os.getpid() == self.fellows[self.rank]["pid"]:  # not a copy of it
            with suppress(RuntimeError):
                self.store.set(f"beat/{self.rank}", LEFT)
                self.store.add(LEFT, 1)

    def close(self) -> None:
        import torch.distributed as dist

        if self._gloo and dist.is_initialized():
            dist.destroy_process_group(self._gloo[0])
            self._gloo.clear()

    def _ask(self, question: Callable[[], object]) -> object:
        """What the store or another rank answers. Where they are gone, work ends."""
        try:
            return question()
        except RuntimeError as error:  # as are all that torch raises of connections
            if not self._watch:
                reason = str(error).splitlines()[0][:120]
                raise UserError(
                    f"rank {self.rank} has lost its connection to another, which may have ended ({reason})"
                ) from error
            raise Stopped(self._watch[0].lost_connection(error)) from error


def init(device: str = "auto") -> Group:
    """Find the other ranks of the launcher, or stand alone without a launcher.

    Raises:
        UserError: if `device` asks for a GPU that this rank does not have, the launcher's environment is not one, or the others
            cannot be found.
        Stopped: if others, or the launcher, are gone; that has been said.
    """
    here = launched()
    import torch
    import torch.distributed as dist

    require_uninterrupted()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    local_rank = here.local_rank
    place = torch.device(device, local_rank) if device == "cuda" else torch.device(device)
    if here.is_alone:
        _take_device(place)
        return Group(0, 1, 0, "0", place, dist.HashStore())
    rank, world_size = here.rank, here.world_size
    with LOOKOUT.kept():
        try:
            store = _meet(dist.PrefixStore("fiducial", connect(here)), rank, world_size)
            fellows = [json.loads(value) for value in store.multi_get([f"process/{other}" for other in range(world_size)])]
        except RuntimeError as error:  # as are all that torch raises of connections
            give_up(rank, f"the connection to rank 0's host is lost ({str(error).splitlines()[0][:120]})")
    node = os.environ.get("GROUP_RANK", socket.gethostname())
    group = Group(rank, world_size, local_rank, node, place, store, fellows)
    atexit.register(group._depart)
    try:
        _take_device(place)
    except UserError:
        with group:  # so that the ranks of other nodes hear of it
            raise
    return group


def _take_device(place: "torch.device") -> None:
    """Raise UserError if `place` is a GPU that this rank does not have."""
    import torch

    if place.type == "cuda":
        if place.index >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise UserError(
                f"local rank {place.index} needs a GPU of its own, but {found} can be seen here; or choose --device cpu"
            )
        torch.cuda.set_device(place)


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
