"""Heartbeats that make all ranks end together: each says every second that it is there, and who hears nothing, or is told why
another ended, ends too. The cause is printed once, kept where the work is, and handed to the launcher.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from fiducial import life, startup
from fiducial.ranks.announcing import Announcer
from fiducial.ranks.beats import BEAT_SECONDS, GRACE_BEATS, LEFT, LOST_BEATS, beat_key
from fiducial.ranks.cause import Cause, Ending, Stopped
from fiducial.ranks.counting import Counter
from fiducial.ranks.fellows import Fellows
from fiducial.ranks.listening import Listener, lost_connection
from fiducial.ranks.signals import Signals

if TYPE_CHECKING:
    import torch


class Watch:
    """Watch over a rank, so that it waits for none that will not come: signals, and two threads beside the work.

    One talks with the store, and may hang where the network does; so the other only counts.
    """

    def __init__(self, store: "torch.distributed.Store", fellows: Fellows):
        self._store, self._fellows, self._ending = store, fellows, Ending(fellows.rank)
        startup.LOOKOUT.relieved = True
        self._announcer = Announcer(store, self._ending, fellows)
        self._signals = Signals(self._ending)
        self._counter = Counter(self._ending, fellows, self._announcer, self._signals)
        listener = Listener(store, self._ending, fellows, self._announcer, self._counter)
        self._threads = [threading.Thread(target=part.run, daemon=True) for part in (listener, self._counter)]
        for thread in self._threads:
            thread.start()
        life.watchers.append(self.check)

    def check(self) -> None:
        """Say that the work goes on; raise Stopped if it has to end."""
        self._counter.progressed()
        self.heed()

    def heed(self) -> None:
        """Raise Stopped if the work has to end."""
        self._signals.take()
        self._ending.require_none()

    def on_end(self, keep: Callable[[Cause], object] | None, hang_seconds: float) -> None:
        """From here on, hand the cause to `keep`, and end after so long without progress."""
        self._announcer.keep, self._counter.hang_beats = keep, hang_seconds / BEAT_SECONDS

    @contextmanager
    def allowing(self, seconds: float) -> Iterator[None]:
        """In here, so many seconds more without progress are no end."""
        before = self._counter.hang_beats
        self._counter.hang_beats = before and before + seconds / BEAT_SECONDS
        try:
            yield
            self.check()
        finally:
            self._counter.hang_beats = before

    def leave(self) -> None:
        """The end of a rank that is done, which a store that does not answer holds up no longer than others are waited for."""
        life.watchers.remove(self.check)
        self._ending.finish()
        until = time.monotonic() + LOST_BEATS * BEAT_SECONDS
        goodbye = threading.Thread(target=self._say_goodbye, args=(until,), daemon=True)
        goodbye.start()
        goodbye.join(until + BEAT_SECONDS - time.monotonic())
        self._signals.close()
        startup.LOOKOUT.relieved = False

    def _say_goodbye(self, until: float) -> None:
        """After the last beat. Rank 0 stays until all have left, because the store may live in its process."""
        rank, world_size = self._fellows.rank, self._fellows.world_size
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))
        with suppress(RuntimeError):  # whoever has gone before needs no answer
            self._store.set(beat_key(rank), LEFT)
            gone = self._store.add(LEFT, 1)
            while rank == 0 and gone < world_size and time.monotonic() < until:
                time.sleep(0.02)
                gone = self._store.add(LEFT, 0)

    def end(self, error: BaseException) -> Cause:
        """The end by an exception: announces it, unless something else was announced before."""
        life.watchers.remove(self.check)
        ending, fellows = self._ending, self._fellows
        if not isinstance(error, Stopped):
            ending.decide(Cause.of(error, fellows.rank))
        if not ending.announced.wait(GRACE_BEATS * BEAT_SECONDS) and not fellows.before():
            self._announcer.tell()  # the listener waits for a store that does not answer
        if not ending.is_own or fellows.world_size > len(fellows.node):
            # A launcher takes the first to go for the cause; and the store may go with this host, but all are to hear of it.
            time.sleep(2 * BEAT_SECONDS)
        ending.finish()
        self._signals.close(failed=True)
        return ending.cause

    def lost_connection(self, error: Exception) -> Cause:
        """The end because the store or another rank cannot be reached."""
        self._ending.lose(lost_connection(error))
        return self._ending.cause
