"""What sees to it that ranks end together: each says every second that it is there, and who hears nothing, or is told why
another ended, ends too. The cause is printed once, kept where the work is, and handed to the launcher.
"""

import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distributed.console import UserError, as_mistake, tell_launcher, warn

if TYPE_CHECKING:
    from distributed import Group

BEAT_SECONDS = 1.0
LOST_BEATS = 15  # own beats without one of the other's; counted, so that a machine that slept does not blame its fellows
GRACE_BEATS = 10  # for the work to end in order, then the process is ended
RESUMABLE = 75  # exit code, also of `python -m sampling status`: the same command continues (EX_TEMPFAIL)
TRACEBACK = 20_000  # characters that are kept of one
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
LEFT = "left"


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
        error = as_mistake(error)
        if isinstance(error, UserError):
            return cls("failed", str(error), rank, socket.gethostname(), 2)
        words = "; ".join([f"{type(error).__name__}: {error}".removesuffix(": "), *getattr(error, "__notes__", [])])
        return cls("failed", words, rank, socket.gethostname(), 1, "".join(traceback.format_exception(error))[-TRACEBACK:])


class Watch:
    """What sees to it that no rank waits for one that will not come: signals, and two threads beside the work.

    One thread talks: it sends this rank's beats and listens for the others' (rank 0 for all, the others for rank 0). It may
    hang where the network does; so the other only counts, and ends the process if the work does not end by itself.
    """

    def __init__(self, group: "Group"):
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
        line = f"{cause.message}{where}" if cause.kind == "stopped" else f"error{where}: {cause.message}"
        # A progress bar may stand there, and then details are kept.
        before = [""] if self.keep else cause.traceback.splitlines()
        warn(*before, f"{line}{remedy}")
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
