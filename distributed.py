"""Ranks: finding each other, talking through a store, adding arrays, and ending together.

No rank waits for one that will not come: each says every second that it is there, and who hears nothing, or is told why
another ended, ends too. The cause is printed once, kept where the work is, and handed to the launcher.

Also what every command shares because several processes run it: `UserError`, the one exception for what a person can put
right; `write_whole`, by which no process ever sees half a file; and `file_sha256`.
"""

import argparse
import hashlib
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    import numpy as np
    import torch

JOIN_SECONDS = 600.0  # for all ranks to start
BEAT_SECONDS = 1.0
LOST_BEATS = 15  # own beats without one of the other's; counted, so that a machine that slept does not blame its fellows
GRACE_BEATS = 10  # for the work to end in order, then the process is ended
YIELD_SECONDS = 10.0
RESUMABLE = 75  # exit code, also of `python -m sampling status`: the same command continues (EX_TEMPFAIL)
TRACEBACK = 20_000  # characters that are kept of one
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
LEFT = "left"


class UserError(Exception):
    """A mistake that its one-sentence message lets the person correct: what was given, what was expected."""


class Stopped(Exception):
    """Raised where this rank's work has to end because of what `cause` says; that has been announced already."""

    def __init__(self, cause: "Cause"):
        super().__init__(cause.message)
        self.cause = cause


@dataclass(frozen=True)
class Cause:
    """Why all ranks end.

    `kind` is `failed` if a person has to put something right, `stopped` after a signal, `lost` if a process, host or
    connection is gone; after the latter two the same command continues.
    """

    kind: str
    message: str
    rank: int
    host: str
    exit_code: int = RESUMABLE
    traceback: str = ""
    lost_rank: int | None = None

    @classmethod
    def of(cls, error: BaseException, rank: int) -> "Cause":
        if isinstance(error, UserError):
            return cls("failed", str(error), rank, socket.gethostname(), 2)
        words = "; ".join([f"{type(error).__name__}: {error}".removesuffix(": "), *getattr(error, "__notes__", [])])
        return cls("failed", words, rank, socket.gethostname(), 1, "".join(traceback.format_exception(error))[-TRACEBACK:])


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are reported like all others: one sentence, once for all ranks."""

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see --help)")


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
    _calls: Iterator[int] = field(default_factory=itertools.count, repr=False)
    _watch: list["Watch"] = field(default_factory=list, repr=False)  # at most one

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> "Group":
        self._watch.append(Watch(self))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        watch = self._watch[0]
        if error is None:
            watch.leave()
            self._watch.clear()
            self.close()
        elif not isinstance(error, SystemExit):
            raise Stopped(watch.end(error)) from error

    def hosts(self) -> list[str]:
        """The names of the machines that the ranks are on."""
        if self.world_size == 1:
            return [socket.gethostname()]
        found = self._ask(lambda: self.store.multi_get([f"process/{rank}" for rank in range(self.world_size)]))
        return sorted({json.loads(value)["host"] for value in found})

    def check(self) -> None:
        """Says that this rank makes progress. To be called in every loop that takes long.

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

    def publish(self, key: str, value: str) -> None:
        """Makes `value` available to every rank."""
        self._ask(lambda: self.store.set(key, value))

    def receive(self, key: str) -> str:
        """Waits until some rank has published `key`."""
        pause = 0.002
        while not self._ask(lambda: self.store.check([key])):
            self.check()
            time.sleep(pause)
            pause = min(2 * pause, 0.25)
        return self._ask(lambda: self.store.get(key)).decode()

    def count(self, key: str, number: int) -> int:
        """Adds to a counter that all ranks share; returns its value."""
        self.check()
        return self.tally(key, number)

    def tally(self, key: str, number: int) -> int:
        """As `count`, for threads beside the work."""
        return self._ask(lambda: self.store.add(key, number))

    def once_per_node(self, key: str, make: Callable[[], str]) -> str:
        """What `make` returns, called on the first rank of each node only; the node's other ranks wait for it."""
        if self.local_rank == 0:
            self.publish(f"{key}/{self.node}", value := make())
            return value
        return self.receive(f"{key}/{self.node}")

    def once(self, make: Callable[[], str]) -> str:
        """What `make` returns, called on rank 0 only; the others wait for it."""
        key = f"once/{next(self._calls)}"
        if self.is_main:
            self.publish(key, value := make())
            return value
        return self.receive(key)

    def wait(self) -> None:
        """Returns when every rank has come here."""
        key = f"wait/{next(self._calls)}"
        if self.count(key, 1) == self.world_size:
            self.publish(f"{key}/all", "here")
        self.receive(f"{key}/all")

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
        if not dist.is_initialized():
            # A connection of its own, because gloo's waiting would hold up this rank's beats.
            store = dist.PrefixStore("gloo", self.store.clone())
            try:
                dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.world_size)
            except RuntimeError as error:
                remedy = "GLOO_SOCKET_IFNAME can name the network interface that the nodes share"
                raise UserError(
                    f"the ranks cannot connect to each other ({str(error).splitlines()[0][:120]}); {remedy}"
                ) from error
        total = torch.from_numpy(array.copy())
        self._ask(lambda: dist.all_reduce(total))
        return total.numpy()

    def close(self) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()

    def _ask(self, question: Callable[[], object]) -> object:
        """What the store or another rank answers. Where they are gone, work ends."""
        try:
            return question()
        except RuntimeError as error:  # as are all that torch raises of connections
            if not self._watch:
                raise
            raise Stopped(self._watch[0].lost_connection(error)) from error


class Watch:
    """What sees to it that no rank waits for one that will not come: signals, and two threads beside the work.

    One thread talks: it sends this rank's beats and listens for the others' (rank 0 for all, the others for rank 0). It may
    hang where the network does; so the other only counts, and ends the process if the work does not end by itself.
    """

    def __init__(self, group: Group):
        self._group = group
        self._cause: Cause | None = None
        self._is_own = False  # found here, so to be announced from here
        self._stopping, self._announced, self._done = threading.Event(), threading.Event(), threading.Event()
        self._wake, self._told, self._deciding = threading.Event(), threading.Lock(), threading.Lock()
        self._ticks = self._answered = self._progress = 0
        # Without a launcher, the parent is a shell, which may go.
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._store = group.store.clone() if group.world_size > 1 else group.store  # so that nobody holds up the beats
        self.keep: Callable[[Cause], object] | None = None
        self.hang_beats = 0.0
        self._signal = 0
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
        self._handlers = {number: signal.signal(number, self._hear) for number in heard}
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._talk, self._count)]
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        self._progress = self._ticks
        self.heed()

    def heed(self) -> None:
        self._take_signal()
        if self._cause:
            raise Stopped(self._cause)

    def leave(self) -> None:
        """The end of a rank that is done. Rank 0 stays until all have left, because the store may live in its process."""
        self._done.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(LOST_BEATS * BEAT_SECONDS)
        group = self._group
        with suppress(RuntimeError):  # whoever has gone before needs no answer
            group.store.set(f"beat/{group.rank}", LEFT)
            gone, until = group.store.add(LEFT, 1), time.monotonic() + LOST_BEATS * BEAT_SECONDS
            while group.is_main and gone < group.world_size and time.monotonic() < until:
                time.sleep(0.02)
                gone = group.store.add(LEFT, 0)
        self._close()

    def end(self, error: BaseException) -> Cause:
        """The end by an exception: announces it, unless something else was announced before."""
        if not isinstance(error, Stopped):
            self._stop(Cause.of(error, self._group.rank), own=True)
        if not self._announced.wait(GRACE_BEATS * BEAT_SECONDS) and self._group.local_rank == 0:
            self._tell()  # the other thread waits for a store that does not answer
        if not self._is_own or self._group.world_size > len(self._node()):
            # A launcher takes the first to go for the cause; and the store may go with this host, but all are to hear of it.
            time.sleep(2 * BEAT_SECONDS)
        self._close(failed=True)
        return self._cause

    def lost_connection(self, error: BaseException) -> Cause:
        """Notes that the store or another rank cannot be reached."""
        message = f"a connection to another rank is lost ({str(error).splitlines()[0][:120]})"
        self._stop(self._resumable("lost", message), own=True)
        return self._cause

    def _close(self, failed: bool = False) -> None:
        self._done.set()
        for number, handler in self._handlers.items():
            # A launcher ends the others when one has failed; they are ending, with an exit code of their own.
            ignored = failed and self._launcher and number == signal.SIGTERM
            signal.signal(number, signal.SIG_IGN if ignored else handler or signal.SIG_DFL)

    def _hear(self, number: int, _: object) -> None:
        """Only notes it: whatever a handler waits for may be held by what it interrupts."""
        if self._signal and number == signal.SIGINT:
            os._exit(130)  # someone is impatient
        self._signal = number

    def _take_signal(self) -> None:
        if self._signal:
            self._stop(self._resumable("stopped", f"stopped by {signal.Signals(self._signal).name}"), own=True)

    def _resumable(self, kind: str, message: str, lost_rank: int | None = None) -> Cause:
        return Cause(kind, message, self._group.rank, socket.gethostname(), lost_rank=lost_rank)

    def _stop(self, cause: Cause, own: bool) -> None:
        with self._deciding:
            if not self._stopping.is_set():
                self._cause, self._is_own = cause, own
                self._stopping.set()
                self._wake.set()

    # The thread that talks

    def _talk(self) -> None:
        group = self._group
        others = [] if group.world_size == 1 else range(1, group.world_size) if group.is_main else [0]
        heard = dict.fromkeys(others, ("", 0))  # the last beat, and when
        for beat in itertools.count():
            self._wake.wait(BEAT_SECONDS if beat else 0)
            if self._done.is_set():
                return
            if self._stopping.is_set():
                break
            try:
                self._store.set(f"beat/{group.rank}", str(beat))
                if self._store.check(["cause"]):
                    self._stop(Cause(**json.loads(self._store.get("cause"))), own=False)
                    break
                beats = self._store.multi_get([f"beat/{other}" for other in others]) if others else []
            except RuntimeError as error:
                self.lost_connection(error)
                break
            self._answered = self._ticks
            for other, value in zip(others, beats, strict=True):
                if value != heard[other][0]:
                    heard[other] = (value, self._ticks)
                elif value.decode() != LEFT and self._ticks - heard[other][1] > LOST_BEATS:
                    self._stop(self._missing(other, f"has not been heard of for {LOST_BEATS * BEAT_SECONDS:.0f} s"), own=True)
        self._announce()

    def _announce(self) -> None:
        """Prints, keeps and hands on the cause, if this rank is the first to have one."""
        if self._is_own:
            with suppress(RuntimeError):
                if self._group.store.check(["cause"]):  # a signal, most often, because another ended
                    self._cause = Cause(**json.loads(self._group.store.get("cause")))
                    self._is_own = False
            if self._cause.kind == "stopped" and self._group.world_size > 1:
                self._cause = self._killed_fellow() or self._cause
        try:
            first = self._is_own and self._group.store.add("causes", 1) == 1
            if first:
                tell_launcher(self._cause.message)
                self._group.store.set("cause", json.dumps(asdict(self._cause)))
        except RuntimeError:
            first = self._group.local_rank == 0
        if first:
            self._tell()
        elif self._group.local_rank == 0 and self._cause.rank not in self._node():  # its launcher knows no other
            tell_launcher(self._cause.message)
            if self._group.is_main:
                self._keep()
        self._end_frozen_fellows()
        self._announced.set()

    def _tell(self) -> None:
        if not self._told.acquire(blocking=False):
            return
        cause = self._cause
        several = self._group.world_size > 1
        where = f" (rank {cause.rank} on {cause.host})" if several and (self.keep or cause.traceback) else ""
        remedy = "; the same command continues" if cause.exit_code == RESUMABLE else ""
        line = f"{printable(cause.message)}{where}" if cause.kind == "stopped" else f"error{where}: {printable(cause.message)}"
        line = f"\n{line}" if self.keep else line  # a progress bar may stand there
        details = cause.traceback if not self.keep else ""  # else they are kept
        with suppress(OSError, ValueError):  # nobody reads it
            print(f"{details}{line}{remedy}", file=sys.stderr, flush=True)
        tell_launcher(cause.message)
        self._keep()

    def _keep(self) -> None:
        if self.keep:
            with suppress(OSError, UserError):
                self.keep(self._cause)

    def _node(self) -> range:
        """The ranks of this node."""
        first = self._group.rank - self._group.local_rank
        return range(first, first + int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def _fellow(self, rank: int) -> dict:
        return json.loads(self._group.store.get(f"process/{rank}"))

    def _killed_fellow(self) -> Cause | None:
        """When a launcher stops all because one was killed, that one is the cause."""
        with suppress(RuntimeError, OSError, ValueError):
            for rank in self._node():
                if not is_running(self._fellow(rank)) and self._group.store.get(f"beat/{rank}").decode() != LEFT:
                    return self._missing(rank, "was killed from outside, perhaps for want of memory (see dmesg)")
        return None

    def _missing(self, rank: int, how: str) -> Cause:
        fellow = self._fellow(rank)
        return self._resumable("lost", f"rank {rank} (process {fellow['pid']} on {fellow['host']}) {how}", lost_rank=rank)

    def _end_frozen_fellows(self) -> None:
        """Processes of this machine that do not answer have nothing to save, and would keep the launcher waiting."""
        ranks = {self._cause.lost_rank, *self._node()} - {None}
        for rank in ranks if self._group.world_size > 1 else ():
            with suppress(RuntimeError, OSError, ValueError):
                fellow = self._fellow(rank)
                is_here = fellow["scope"] == own_process()["scope"] and is_running(fellow)
                if is_here and (rank == self._cause.lost_rank or _state(fellow["pid"])[0] in "Tt"):
                    time.sleep(1.1)  # a launcher, which counts in seconds, would take its end for the cause
                    os.kill(fellow["pid"], signal.SIGKILL)

    # The thread that counts

    def _count(self) -> None:
        stopping = 0
        while not self._done.wait(BEAT_SECONDS):
            self._ticks += 1
            self._take_signal()
            stopping += self._stopping.is_set()
            if stopping > GRACE_BEATS:
                os._exit(self._cause.exit_code)
            if self._launcher and os.getppid() != self._launcher:
                self._stop(self._resumable("lost", f"the launcher (process {self._launcher}) is gone"), own=True)
            if self._ticks - self._answered > LOST_BEATS:
                silence = self._resumable("lost", f"no answer from rank 0's host for {LOST_BEATS * BEAT_SECONDS:.0f} s")
                self._stop(silence, own=True)
                self._announced.set()  # the other thread waits for that answer, and so for ever
                if self._group.local_rank == 0:
                    self._tell()
            if 0 < self.hang_beats < self._ticks - self._progress:
                frame = sys._current_frames()[threading.main_thread().ident]
                place = f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno} ({frame.f_code.co_name})"
                hung = f"hung: no progress for {self.hang_beats * BEAT_SECONDS:.0f} s in {place}"
                self._stop(self._resumable("lost", hung), own=True)


def own_process() -> dict[str, str | int]:
    """What tells this process from any other, also from one that gets its number later; `scope` is the machine as it sees it."""
    pid, scope, started = os.getpid(), "", ""
    with suppress(OSError):  # not Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        scope, started = f"{boot}/{os.readlink('/proc/self/ns/pid')}", _started(pid)
    return {"host": socket.gethostname(), "scope": scope, "pid": pid, "started": started}


def is_running(other: dict[str, str | int]) -> bool:
    """Whether the process that `own_process` described is alive, as far as one in the same scope can tell."""
    try:
        return not other["scope"] or _started(other["pid"]) == other["started"]
    except OSError:
        return False


def _started(pid: int) -> str:
    """When a process began, in the kernel's ticks."""
    state, *rest = _state(pid)
    if state in "ZX":
        raise ProcessLookupError(pid)
    return rest[18]


def _state(pid: int) -> list[str]:
    """What the kernel says of a process, from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def environment_rank() -> int:
    """The rank that the launcher gave this process; 0 without a launcher."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0


def init(device: str = "auto") -> Group:
    """Finds the other ranks of the launcher's, or stands alone without a launcher.

    Raises:
        UserError: if `device` asks for a GPU that this rank does not have, or the others cannot be found.
    """
    import torch
    import torch.distributed as dist

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    place = torch.device(device, local_rank) if device == "cuda" else torch.device(device)
    if "RANK" not in os.environ:
        _take_device(place)
        return Group(0, 1, 0, "0", place, dist.HashStore())
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))
    except ValueError as error:
        raise UserError(f"RANK is set, but the rest of a launcher's environment is not whole ({error}); use torchrun") from error
    except RuntimeError as error:  # as are all that torch's stores raise
        raise UserError(f"rank 0's host cannot be reached ({str(error).splitlines()[0]})") from error
    node = os.environ.get("GROUP_RANK", socket.gethostname())
    group = Group(rank, world_size, local_rank, node, place, _meet(dist.PrefixStore("fiducial", store), rank, world_size))
    try:
        _take_device(place)
    except UserError:
        with group:  # so that the ranks of other nodes hear of it
            raise
    return group


def _take_device(place: "torch.device") -> None:
    """Raises UserError if `place` is a GPU that this rank does not have."""
    import torch

    if place.type == "cuda":
        if place.index >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise UserError(
                f"local rank {place.index} needs a GPU of its own, but {found} can be seen here; or choose --device cpu"
            )
        torch.cuda.set_device(place)


def _meet(store: "torch.distributed.Store", rank: int, world_size: int) -> "torch.distributed.Store":
    """A corner of the store where only these processes have been.

    torchrun's store outlives the workers, and nodes that come or go restart them without any sign of it in their environment.
    So rank 0 names a new corner, and whoever finds the name asks it for an answer that nobody else can have had.

    Raises:
        UserError: if some rank does not come.
    """
    import torch.distributed as dist

    own = uuid.uuid4().hex
    deadline = time.monotonic() + JOIN_SECONDS

    def enter(name: str) -> dist.PrefixStore:
        corner = dist.PrefixStore(name, store)
        corner.set(f"process/{rank}", json.dumps(own_process()))
        corner.set(f"beat/{rank}", "")
        return corner

    def arrives(corner: dist.PrefixStore, key: str, whose: str, seconds: float = JOIN_SECONDS) -> bool:
        until = min(deadline, time.monotonic() + seconds)
        while not corner.check([key]):
            if time.monotonic() > deadline:
                raise UserError(f"rank {rank} on {socket.gethostname()} waited {JOIN_SECONDS:.0f} s for {whose}")
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    if rank == 0:
        corner = enter(own)
        store.set("corner", own)
        for other in range(1, world_size):
            arrives(corner, f"hello/{other}", f"rank {other} of {world_size}")
        for other in range(1, world_size):  # all at once, because they watch each other from then on
            corner.set(f"welcome/{corner.get(f'hello/{other}').decode()}", "")
        return corner
    name = ""
    while True:
        arrives(store, "corner", "rank 0")
        if name != (name := store.get("corner").decode()):
            corner = enter(name)
            corner.set(f"hello/{rank}", own)
        if arrives(corner, f"welcome/{own}", "rank 0", 1.0):
            return corner


def progress_bar(total: int, desc: str, unit: str = "image", **options) -> tqdm:
    """A progress bar on rank 0: lively on a terminal, a line every ten seconds in a log."""
    interval = 0.3 if sys.stderr.isatty() else 10.0
    scaled = unit != "image"
    return tqdm(
        total=total, desc=desc, unit=unit, unit_scale=scaled, mininterval=interval, disable=environment_rank() != 0, **options
    )


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns what ends the work into one line and an exit code: 2 for a `UserError`, else the announced cause's.

    Before there is a group, all ranks make the same mistake, so rank 0 prints it at once; the others give the launcher time to
    end them and speak only if they are still there: then the mistake was theirs alone.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a result is not lost for want of a character
    try:
        yield
    except Stopped as stopped:
        sys.exit(stopped.cause.exit_code)
    except UserError as error:
        rank = environment_rank()
        if rank:
            time.sleep(YIELD_SECONDS)
        where = f" (rank {rank})" if rank else ""
        print(f"error{where}: {printable(str(error))}", file=sys.stderr, flush=True)
        tell_launcher(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        if environment_rank() == 0:
            print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)


def tell_launcher(message: str) -> None:
    """Hands the cause of the end to torchrun, if there is one, which prints the first as its root cause."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return
    from torch.distributed.elastic.multiprocessing.errors import record

    def fail() -> None:
        raise UserError(message) from None

    with suppress(Exception):
        record(fail)()


def printable(text: str) -> str:
    """The same text in one line of valid UTF-8: names of files may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: str) -> None:
    """Prints on standard output at once.

    Raises:
        UserError: if nobody can read it there.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again at its end
        raise UserError(f"standard output cannot be written ({error.strerror})") from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file beside `path`, then puts it in its place, so that `path` is never seen half-written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(beside)
        with open(beside, "rb") as file:
            os.fsync(file.fileno())  # or a power cut may leave the new name with nothing in it
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
