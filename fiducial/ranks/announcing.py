"""Telling why a rank ends: to the other ranks, to people (once a job, or once a host where those cannot hear each other), to
the launcher, and to where the work is kept."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from fiducial import startup
from fiducial.console import UserError, tell_launcher, warn
from fiducial.ranks.beats import BEAT_SECONDS
from fiducial.ranks.cause import Cause, Ending
from fiducial.ranks.fellows import KILLED, Fellows
from fiducial.startup import RESUMABLE

if TYPE_CHECKING:
    import torch

DYING_LOOKS = 20  # at whether another of this node is gone, which takes a moment


class Announcer:
    """Announces the cause that a rank ends for. `keep`, if there is one, is handed the cause by who tells it."""

    def __init__(self, store: "torch.distributed.Store", ending: Ending, fellows: Fellows):
        self._store, self._ending, self._fellows = store, ending, fellows
        self._told = threading.Lock()
        self.keep: Callable[[Cause], object] | None = None

    def announce(self) -> None:
        """Print, keep and hand on the cause, if this rank is the first to have one."""
        ending, fellows = self._ending, self._fellows
        if ending.is_own:
            self._reconsider()
        try:
            first = ending.is_own and self._store.add("causes", 1) == 1
            if first:
                tell_launcher(ending.cause.message)
                ending.cause.publish(self._store)
        except RuntimeError:
            first = self._find_out_alone()
        if first:
            self.tell()
        elif fellows.rank == fellows.node[0] and ending.cause.rank not in fellows.node:  # its launcher knows no other
            tell_launcher(ending.cause.message)
            if fellows.rank == 0:
                self._keep()
        fellows.end_frozen(ending.cause.lost_rank)
        ending.announced.set()

    def _reconsider(self) -> None:
        """Take another's cause in the place of the own one, where it came before that."""
        ending = self._ending
        with suppress(RuntimeError):
            if published := Cause.published(self._store):  # a signal, most often, because another ended
                ending.cause, ending.is_own = published, False
        if ending.cause.kind == "stopped" and self._fellows.world_size > 1:
            # When a launcher stops all because one was killed, that one is the cause.
            ending.cause = self._fellows.killed(self._store) or ending.cause

    def _find_out_alone(self) -> bool:
        """Where no store answers: whether this rank is the one to speak, and if rank 0 held the store, what became of it."""
        ending, fellows = self._ending, self._fellows
        before, patience = fellows.before(), DYING_LOOKS
        while not startup.is_orphan() and fellows.before() and (patience := patience - 1):
            time.sleep(BEAT_SECONDS / 10)
        if ending.cause.kind == "lost" and startup.is_orphan():
            ending.cause = Cause("lost", startup.gone(), fellows.rank)
            return not before  # who was there then is an orphan too, and has spoken or will
        if ending.cause.kind == "lost" and 0 in fellows.node and not fellows.answers(0):
            ending.cause = fellows.missing(0, KILLED)
        return not fellows.before()

    def tell(self) -> None:
        """Print the cause, hand it to the launcher and keep it, unless that was done."""
        if not self._told.acquire(blocking=False):
            return
        cause, rank = self._ending.cause, self._fellows.rank
        several = self._fellows.world_size > 1
        where = f" (rank {cause.rank} on {cause.host})" if several and (self.keep or cause.traceback) else ""
        remedy = "; the same command continues" if cause.exit_code == RESUMABLE else ""
        line = f"{cause.message}{where}" if cause.kind == "stopped" else f"error{where}: {cause.message}"
        before = [""] if rank else []  # rank 0's progress bar may stand in the line
        details = [] if self.keep else cause.traceback.splitlines()  # else they are kept
        warn(*before, *details, f"{line}{remedy}")
        tell_launcher(cause.message)
        self._keep()

    def _keep(self) -> None:
        if self.keep:
            with suppress(OSError, UserError):
                self.keep(self._ending.cause)
