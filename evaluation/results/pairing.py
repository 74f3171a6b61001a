"""Pairs: two runs whose samples belong together index by index, and the error of their difference."""

import numpy as np

from fiducial.evaluation.metrics import METRICS
from fiducial.evaluation.metrics.intervals import length


def error_of_pair(metric: str, one: np.ndarray, other: np.ndarray) -> float | None:
    """Standard error of a metric's difference between two runs, by the moves (N + J,) of each; None if nothing varied.

    What moves both alike, sample by sample, does not move the difference. Of a share of samples that are counted, one sample more
    counts as having changed, without which few that have would bound too much.
    """
    if one is None or other is None or len(one) != len(other):
        return None
    error = length(np.subtract(one, other))
    if METRICS[metric].counted:
        error = float(np.hypot(error, METRICS[metric].bounds[1] / len(one)))
    return error or None
