"""Intervals: they hold what draws of as many samples from the same model give on average, the reference held fixed.

A single other draw lies within one that is wider by the square root of 2.
They say nothing of retraining, which moves FID more than resampling does. Standard errors are by the delta method where a
metric is a smooth function of means over the samples, by binomial counting where it is a share of samples, and by a jackknife
where it depends on neighbours. No bootstrap: samples that repeat are neighbours at distance 0, and bias FID upwards.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fiducial import Group

if TYPE_CHECKING:
    from fiducial.evaluation.features.extraction import Rows

NORMAL = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
GROUPS = 12  # of samples, the smallest units that the jackknife leaves out
SPLITS = 4  # of the groups into thirds
SPLITS_SEED = 0
ENOUGH = 50  # samples for an interval by anything but counting; of fewer, the variances are not known well enough
ROWS = 2048  # that are worked on at once
ROUNDING = 1e-9  # of a value: an error as small shows that nothing varied


@dataclass(frozen=True)
class Estimate:
    """A metric's value with its standard error and 95 % interval, where they are known.

    `spread` is the standard deviation over the blocks or subsets that a definition averages over, which is another thing.
    """

    value: float
    error: float | None = None
    low: float | None = None
    high: float | None = None
    spread: float | None = None


def estimate(value: float, error: float | None, least: float = -np.inf, most: float = np.inf, **more: float | None) -> Estimate:
    """A value with a normal interval, cut off at what the metric can be; without one if nothing varied, which bounds nothing."""
    if error is None or error <= ROUNDING * abs(value):
        return Estimate(value, **more)
    low, high = (min(max(value + side * NORMAL * error, least), most) for side in (-1, 1))
    return Estimate(value, error, low, high, **more)


def without_interval(found: Estimate | None) -> Estimate | None:
    """The value and its spread alone."""
    return found and Estimate(found.value, spread=found.spread)


def share(hits: float, count: int) -> Estimate:
    """The share of independent samples that a test holds for, with Wilson's interval, which holds near 0 and 1 too."""
    p, z2 = hits / count, NORMAL**2
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = NORMAL / (1 + z2 / count) * np.sqrt(p * (1 - p) / count + z2 / (4 * count**2))
    return Estimate(p, float(half / NORMAL), float(max(centre - half, 0)), float(min(centre + half, 1)))


def error_of_mean(influences: Iterable[np.ndarray]) -> float:
    """Standard error of a mean over samples of values, which come in parts; 0 of a single one."""
    count, total, squares = 0, 0.0, 0.0
    for part in influences:
        count, total, squares = count + len(part), total + part.sum(), squares + np.square(part).sum()
    return float(np.sqrt(max(squares - total**2 / count, 0.0) / max(count - 1, 1) / count))


def error_over_rows(rows: "np.ndarray | Rows", influences: Callable[[np.ndarray], np.ndarray], group: Group | None) -> float:
    """`error_of_mean` of what `influences` makes of all rows, which the ranks share out if there is a group."""
    found = np.zeros(len(rows))
    for number, start in enumerate(range(0, len(rows), ROWS)):
        if group is None or number % group.world_size == group.rank:
            found[start : start + ROWS] = influences(rows[start : start + ROWS])
            if group:
                group.check()
    return error_of_mean([group.sum(found) if group else found])


def groups_of(count: int) -> np.ndarray:
    """To which of the `GROUPS` each of `count` samples belongs: at random, but always the same, and evenly."""
    return np.random.default_rng(SPLITS_SEED).permutation(count) % GROUPS


def kept_groups() -> np.ndarray:
    """(3 * `SPLITS`, `GROUPS`) bool: the groups that stay when one third of them is left out, for each split into thirds."""
    random = np.random.default_rng(SPLITS_SEED)
    kept = []
    for _ in range(SPLITS):
        thirds = random.permutation(GROUPS) % 3
        kept += [thirds != third for third in range(3)]
    return np.array(kept)


def jackknife_error(values: np.ndarray) -> float:
    """Standard error of a statistic from its values without each third: the delete-d jackknife of Shao and Wu (1989).

    Leaving out single samples or a twelfth overstates the error of what depends on nearest neighbours, halves understate it.
    """
    return float(np.sqrt(2 * np.var(values, ddof=1)))
