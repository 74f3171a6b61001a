"""Heartbeats that make all ranks end together: each says every second that it is there, and who hears nothing, or is told why
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fiducial import startup
from fiducial.console import UserError, as_mistake, ends_by_signal, tell_launcher, warn
from fiducial.processes import is_running, is_stopped, own_process
from fiducial.startup import RESUMABLE

if TYPE_CHECKING:
    from fiducial import Group

BEAT_SECONDS = 1.0
LOST_BEATS = 15  # own beats without one of the other's; counted, so that a machine that slept does not blame its fellows
GRACE_BEATS = 10  # for the work to end in order, then the process is ended
TRACEBACK = 20_000  # characters that are kept of one
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
LEFT = "left"
KILLED = "was killed from outside, perhaps for want of memory (see dmesg)"
DYING_LOOKS = 20  # at whether another of this node is gone, which takes a moment


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
    signal: int = 0  # that it was stopped by

    @classmethod
    def of(cls, error: BaseException, rank: int) -> "Cause":
        error = as_mistake(error)
        if isinstance(error, UserError):
            return cls("failed", str(error), rank, socket.gethostname(), 2)
        if isinstance(error, SystemExit):
            return cls("failed", f"rank {rank} has exited with {error.code}", rank, socket.gethostname(), 1)
        words = "; ".join([f"{type(error).__name__}: {error}".removesuffix(": "), *getattr(error, "__notes__", [])])
        return cls("failed", words, rank, socket.gethostname(), 1, "".join(traceback.format_exception(error))[-TRACEBACK:])


class Watch:
    """Watch over a rank, so that it waits for none that will not come: signals, and two threads beside the work.

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
        startup.LOOKOUT.relieved = True
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
        """The end of a rank that is done, which a store that does not answer holds up no longer than others are waited for."""
        self._done.set()
        self._wake.set()
        until = time.monotonic() + LOST_BEATS * BEAT_SECONDS
        goodbye = threading.Thread(target=self._say_goodbye, args=(until,), daemon=True)
        goodbye.start()
        goodbye.join(until + BEAT_SECONDS - time.monotonic())
        self._close()
        startup.LOOKOUT.relieved = False

    def _say_goodbye(self, until: float) -> None:
        """After the last beat. Rank 0 stays until all have left, because the store may live in its process."""
        group = self._group
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))
        with suppress(RuntimeError):  # whoever has gone before needs no answer
            group.store.set(f"beat/{group.rank}", LEFT)
            gone = group.store.add(LEFT, 1)
            while group.is_main and gone < group.world_size and time.monotonic() < until:
                time.sleep(0.02)
                gone = group.store.add(LEFT, 0)

    def end(self, error: BaseException) -> Cause:
        """The end by an exception: announces it, unless something else was announced before."""
        if not isinstance(error, Stopped):
            self._stop(Cause.of(error, self._group.rank), own=True)
        if not self._announced.wait(GRACE_BEATS * BEAT_SECONDS) and not self._before():
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
            ignored = failed and startup.LAUNCHER and number == signal.SIGTERM
            signal.signal(number, signal.SIG_IGN if ignored else handler or signal.SIG_DFL)

    def _hear(self, number: int, _: object) -> None:
        """Only notes it: whatever a handler waits for may be held by what it interrupts."""
        self._signal = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # for who is impatient

    def _take_signal(self) -> None:
        if number := self._signal:
            stopped = self._resumable("stopped", f"stopped by {signal.Signals(number).name}")
            self._stop(replace(stopped, signal=int(number)), own=True)

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
        store = group.store
        for beat in itertools.count():
            self._wake.wait(BEAT_SECONDS if beat else 0)
            if self._done.is_set():
                return
            if self._stopping.is_set():
                break
            try:
                if not beat and others:
                    store = store.clone()  # so that nobody holds up the beats
                store.set(f"beat/{group.rank}", str(beat))
                if store.check(["cause"]):
                    self._stop(Cause(**json.loads(store.get("cause"))), own=False)
                    break
                beats = store.multi_get([f"beat/{other}" for other in others]) if others else []
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
        """Print, keep and hand on the cause, if this rank is the first to have one."""
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
            first = self._find_out_alone()
        if first:
            self._tell()
        elif self._group.rank == self._node()[0] and self._cause.rank not in self._node():  # its launcher knows no other
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
        before = [""] if self._group.rank else []  # rank 0's progress bar may stand in the line
        details = [] if self.keep else cause.traceback.splitlines()  # else they are kept
        warn(*before, *details, f"{line}{remedy}")
        tell_launcher(cause.message)
        self._keep()

    def _keep(self) -> None:
        if self.keep:
            with suppress(OSError, UserError):
                self.keep(self._cause)

    def _node(self) -> list[int]:
        """The ranks that one launcher, or none, has started on this host."""
        fellows, group = self._group.fellows, self._group
        return [rank for rank in range(len(fellows)) if _place(fellows[rank]) == _place(fellows[group.rank])] or [group.rank]

    def _before(self) -> list[int]:
        """The ranks of this node that would speak for it rather than this one."""
        return [rank for rank in self._node() if rank < self._group.rank and self._answers(rank)]

    def _answers(self, rank: int) -> bool:
        fellow = self._group.fellows[rank]
        return is_running(fellow) and not is_stopped(fellow["pid"])

    def _find_out_alone(self) -> bool:
        """Where no store answers: whether this rank is the one to speak, and if rank 0 held the store, what became of it."""
        before, patience = self._before(), DYING_LOOKS
        while not startup.is_orphan() and self._before() and (patience := patience - 1):
            time.sleep(BEAT_SECONDS / 10)
        if self._cause.kind == "lost" and startup.is_orphan():
            self._cause = self._resumable("lost", startup.gone())
            return not before  # who was there then is an orphan too, and has spoken or will
        if self._cause.kind == "lost" and 0 in self._node() and not self._answers(0):
            self._cause = self._missing(0, KILLED)
        return not self._before()

    def _killed_fellow(self) -> Cause | None:
        """When a launcher stops all because one was killed, that one is the cause."""
        with suppress(RuntimeError, OSError, ValueError):
            for rank in self._node():
                if not is_running(self._group.fellows[rank]) and self._group.store.get(f"beat/{rank}").decode() != LEFT:
                    return self._missing(rank, KILLED)
        return None

    def _missing(self, rank: int, how: str) -> Cause:
        fellow = self._group.fellows[rank]
        return self._resumable("lost", f"rank {rank} (process {fellow['pid']} on {fellow['host']}) {how}", lost_rank=rank)

    def _end_frozen_fellows(self) -> None:
        """Processes of this machine that do not answer have nothing to save, and would keep the launcher waiting."""
        ranks = {self._cause.lost_rank, *self._node()} - {None}
        for rank in ranks if self._group.world_size > 1 else ():
            with suppress(RuntimeError, OSError, ValueError):
                fellow = self._group.fellows[rank]
                is_here = fellow["scope"] == own_process()["scope"] and is_running(fellow)
                if is_here and (rank == self._cause.lost_rank or is_stopped(fellow["pid"])):
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
                self._end_now()
            if startup.is_orphan():
                self._stop(self._resumable("lost", startup.gone()), own=True)
            if self._ticks - self._answered > LOST_BEATS:
                silence = self._resumable("lost", f"no answer from rank 0's host for {LOST_BEATS * BEAT_SECONDS:.0f} s")
                self._stop(silence, own=True)
                self._announced.set()  # the other thread waits for that answer, and so for ever
                if not self._before():
                    self._tell()
            if 0 < self.hang_beats < self._ticks - self._progress:
                frame = sys._current_frames()[threading.main_thread().ident]
                place = f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno} ({frame.f_code.co_name})"
                hung = f"hung: no progress for {self.hang_beats * BEAT_SECONDS:.0f} s in {place}"
                self._stop(self._resumable("lost", hung), own=True)

    def _end_now(self) -> None:
        """Without what else would be done at the end, which takes too long."""
        if ends_by_signal(self._cause.signal):
            os.kill(os.getpid(), self._cause.signal)
            time.sleep(BEAT_SECONDS)
        os._exit(self._cause.exit_code)


def _place(process: dict[str, str | int]) -> tuple:
    """Where a rank is: those of one launcher on one host are of one node."""
    return process["host"], process["scope"], process["launcher"]
