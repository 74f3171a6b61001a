"""Heartbeats in the store that all ranks share: how often, under which name, and how long one may be missed."""

BEAT_SECONDS = 1.0
LOST_BEATS = 15  # own beats without one of the other's; counted, so that a machine that slept does not blame its fellows
START_BEATS = 600  # that the first may take from when the ranks have met: a GPU's driver may be slow
GRACE_BEATS = 10  # for the work to end in order, then the process is ended
LEFT = "left"  # the last beat, and a counter of the ranks that have left


def beat_key(rank: int) -> str:
    return f"beat/{rank}"
