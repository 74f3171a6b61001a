"""A thread that only counts, and so hangs nowhere: it notices silence, and ends a process that does not end by itself."""

import os
import sys
import threading
import time
from pathlib import Path

from fiducial import startup
from fiducial.console import ends_by_signal
from fiducial.ranks.announcing import Announcer
from fiducial.ranks.beats import BEAT_SECONDS, GRACE_BEATS, LOST_BEATS
from fiducial.ranks.cause import Ending
from fiducial.ranks.fellows import Fellows
from fiducial.ranks.signals import Signals


class Counter:
    """Counts beats, whether anything else goes on or not.

    `ticks` are those so far; `answered` and `progressed` note that the store has answered, and that the work goes on, at this
    one. After `hang_beats` without progress the work ends; 0 for never.
    """

    def __init__(self, ending: Ending, fellows: Fellows, announcer: Announcer, signals: Signals):
        self._ending, self._fellows, self._announcer, self._signals = ending, fellows, announcer, signals
        self.ticks = self._answered = self._progressed = 0
        self.hang_beats = 0.0

    def answered(self) -> None:
        self._answered = self.ticks

    def progressed(self) -> None:
        self._progressed = self.ticks

    def run(self) -> None:
        """Until the work is done."""
        ending, stopping = self._ending, 0
        while not ending.done.wait(BEAT_SECONDS):
            self.ticks += 1
            self._signals.take()
            stopping += ending.decided.is_set()
            if stopping > GRACE_BEATS:
                self._end_now()
            if startup.is_orphan():
                ending.lose(startup.gone())
            if self.ticks - self._answered > LOST_BEATS:
                ending.lose(f"no answer from rank 0's host for {LOST_BEATS * BEAT_SECONDS:.0f} s")
                ending.announced.set()  # who announces it waits for that answer, and so for ever
                if not self._fellows.before():
                    self._announcer.tell()
            if 0 < self.hang_beats < self.ticks - self._progressed:
                ending.lose(f"hung: no progress for {self.hang_beats * BEAT_SECONDS:.0f} s in {where()}")

    def _end_now(self) -> None:
        """Without what else would be done at the end, which takes too long."""
        cause = self._ending.cause
        if ends_by_signal(cause.signal):
            os.kill(os.getpid(), cause.signal)
            time.sleep(BEAT_SECONDS)
        os._exit(cause.exit_code)


def where() -> str:
    """The place in the program where the work is."""
    frame = sys._current_frames()[threading.main_thread().ident]
    return f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno} ({frame.f_code.co_name})"
