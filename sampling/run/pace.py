"""How fast images come of late, of counts that go up a block at a time."""

import itertools
from collections import deque

WINDOW_SECONDS = 60.0
LEAST_STEPS = 3  # that are looked at, however long they took: a block of a large network may take minutes


class Pace:
    """Images a second of one rank, from the moments at which its count went up.

    Args:
        now: when it began, in seconds of a clock that never goes back.
        done: images by then.
    """

    def __init__(self, now: float, done: int = 0):
        self._steps = deque([(now, done)])

    def note(self, now: float, done: int) -> None:
        """The count as it is now."""
        if done > self._steps[-1][1]:
            self._steps.append((now, done))
        while len(self._steps) > LEAST_STEPS + 1 and now - self._steps[1][0] > WINDOW_SECONDS:
            self._steps.popleft()

    def rate(self, now: float) -> float | None:
        """Images a second, over the window or a few blocks; None before the first. A rank that stands still becomes slower."""
        (first, before), (last, done) = self._steps[0], self._steps[-1]
        if done == before or last <= first:
            return None
        times = [time for time, _ in self._steps]
        longest = max(later - earlier for earlier, later in itertools.pairwise(times))
        end = now if now - last > 2 * longest else last
        return (done - before) / (end - first)
