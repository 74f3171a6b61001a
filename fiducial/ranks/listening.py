"""A thread that talks with the store: what a rank says of itself each second, and hears of others."""

import itertools
from math import inf
from typing import TYPE_CHECKING

from fiducial.console import one_line
from fiducial.ranks.announcing import Announcer
from fiducial.ranks.beats import BEAT_SECONDS, LEFT, LOST_BEATS, START_BEATS, beat_key
from fiducial.ranks.cause import Cause, Ending
from fiducial.ranks.counting import Counter
from fiducial.ranks.fellows import Fellows

if TYPE_CHECKING:
    import torch


class Listener:
    """Sends this rank's beats and listens for the others': rank 0 for all, the others for rank 0. Hangs where the store does."""

    def __init__(
        self, store: "torch.distributed.Store", ending: Ending, fellows: Fellows, announcer: Announcer, counter: Counter
    ):
        self._store, self._ending, self._fellows, self._announcer, self._counter = store, ending, fellows, announcer, counter
        others = range(1, fellows.world_size) if fellows.rank == 0 else [0]
        self._heard = dict.fromkeys(others, ("", 0))  # the last beat, and when

    def run(self) -> None:
        """Until the work is done, or a cause to end is there, which is announced."""
        ending = self._ending
        for beat in itertools.count():
            ending.wake.wait(BEAT_SECONDS if beat else 0)
            if ending.done.is_set():
                return
            if ending.decided.is_set():
                break
            try:
                self._exchange(beat)
            except RuntimeError as error:
                ending.lose(lost_connection(error))
        self._announcer.announce()

    def _exchange(self, beat: int) -> None:
        """One beat; RuntimeError if the store is gone."""
        others = list(self._heard)
        if not beat and others:
            self._store = self._store.clone()  # so that nobody holds up the beats
        self._store.set(beat_key(self._fellows.rank), str(beat))
        if cause := Cause.published(self._store):
            return self._ending.decide(cause, own=False)
        beats = self._store.multi_get([beat_key(other) for other in others]) if others else []
        self._counter.answered()
        now = self._counter.ticks
        for other, value in zip(others, beats, strict=True):
            if value != self._heard[other][0]:
                self._heard[other] = (value, now)
            elif value.decode() != LEFT:
                self._judge(other, value.decode(), now - self._heard[other][1])

    def _judge(self, other: int, beat: str, silence: int) -> None:
        """End for a rank that is lost, as it has been silent for so many beats after this one."""
        if silence > LOST_BEATS and silence > (most := self._patience(other, beat)):
            self._ending.decide(self._fellows.missing(other, f"has not been heard of for {most * BEAT_SECONDS:.0f} s"))

    def _patience(self, other: int, beat: str) -> float:
        """How many beats a rank may be silent for after this one, which is empty before its first."""
        is_here = self._fellows.is_here(other)
        if is_here and not self._fellows.answers(other):
            return LOST_BEATS
        if not beat:
            return START_BEATS
        if is_here:  # something that does not let Python's threads run: it is judged as work that makes no progress
            return LOST_BEATS + self._counter.hang_beats if self._counter.hang_beats else inf
        return LOST_BEATS


def lost_connection(error: Exception) -> str:
    """A sentence on an error of the store or of a connection between ranks."""
    return f"a connection to another rank is lost ({one_line(error)})"
