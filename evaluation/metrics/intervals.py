"""Intervals: they hold what draws of as many samples from the same model give on average, the reference held fixed.

A single other draw lies within one that is wider by the square root of 2.
They say nothing of retraining, which moves FID more than resampling does. Standard errors are by the delta method where a
metric is a smooth function of means over the samples, by binomial counting where it is a share of samples, by a jackknife
where it depends on the samples' neighbours, and by counting who alone covers what for coverage. No bootstrap: samples that
repeat are neighbours at distance 0, and bias FID upwards.

Each error is the length of a vector, the number's moves: one a sample, and some of what else was drawn. Of independent draws,
lengths add in quadrature; of draws whose samples belong together index by index, the error of a difference is the length of the
difference of their moves. Where every class has equally many samples (its strata), what lies between classes is no chance.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Measured(Estimate):
    """An estimate with the moves (N + J,) whose length is its standard error: of N samples, and of J other things drawn."""

    moves: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def plain(self) -> Estimate:
        """The same without them."""
        return Estimate(self.value, self.error, self.low, self.high, self.spread)


def estimate(
    value: float,
    error: float | None,
    least: float = -np.inf,
    most: float = np.inf,
    spread: float | None = None,
    quantile: float = NORMAL,
) -> Estimate:
    """A value with a normal interval, cut off at what the metric can be; without one if nothing varied, which bounds nothing.

    Args:
        quantile: in the place of a normal distribution's, at 97.5 %.
    """
    if error is None or error <= ROUNDING * abs(value):
        return Estimate(value, spread=spread)
    low, high = (min(max(value + side * quantile * error, least), most) for side in (-1, 1))
    return Estimate(value, error, low, high, spread)


def measured(
    value: float, moves: np.ndarray | None, least: float = -np.inf, most: float = np.inf, spread: float | None = None
) -> Measured:
    """`estimate` with the length of the moves as its error; None where that is not known."""
    found = estimate(value, None if moves is None else length(moves), least, most, spread=spread)
    return Measured(**vars(found), moves=None if found.error is None else moves)


def length(moves: np.ndarray) -> float:
    """The standard error that moves stand for."""
    return float(np.sqrt(np.square(moves).sum()))


def without_interval(found: Estimate | None) -> Estimate | None:
    """The value and its spread alone."""
    return found and Estimate(found.value, spread=found.spread)


def share(hits: float, count: float, weighed: float | None = None, quantile: float = NORMAL) -> Estimate:
    """The share of independent samples that a test holds for, with Wilson's interval, which holds near 0 and 1 too.

    Args:
        weighed: as how many independent samples the `count` weigh, where it is not those.
        quantile: of the distribution that is taken for a normal one, at 97.5 %.
    """
    p, z2, n = hits / count, quantile**2, weighed or count
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = quantile / (1 + z2 / n) * np.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    return Estimate(p, float(half / NORMAL), float(max(centre - half, 0)), float(min(centre + half, 1)))


def share_of(held: np.ndarray, strata: np.ndarray | None = None) -> Measured:
    """`share` of the samples that a test held (N,) for. Samples of fixed classes weigh as many as would vary as little."""
    count, moves = len(held), moves_of(held, strata)
    p, variance = float(np.mean(held)), float(np.square(moves).sum())
    weighed = count if strata is None or variance == 0 else max(count, p * (1 - p) / variance)
    return Measured(**vars(share(int(np.sum(held)), count, weighed)), moves=moves)


def strata_of(labels: np.ndarray | None) -> np.ndarray | None:
    """The labels (N,) if they are balanced, so fixed and not drawn; else None.

    They are if there are several, and each has as many samples as any other, or one more. Classes of a single sample say
    nothing of how much samples of a class vary, so that they are taken together.
    """
    if labels is None:
        return None
    values, member, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(values) < 2 or counts.max() - counts.min() > 1:
        return None
    single = counts == 1
    if single.sum() == 1:  # which another one has to take up
        single[np.argmin(np.where(single, counts.max() + 1, counts))] = True
    numbers = np.where(single, 0, 1 + np.arange(len(values)))
    found = np.unique(numbers[member], return_inverse=True)[1]
    return found if found.any() else None


def moves_of(influences: np.ndarray, strata: np.ndarray | None = None) -> np.ndarray:
    """(N,): by how much each sample's chance moves a number that is the mean of `influences` (N,) and a constant.

    Its length is the standard error of that mean: without bias, of independent samples or, with `strata` (N,), numbers from 0 on
    that say which samples were drawn from the same class, of so many of each class. Zeros for a single sample.
    """
    values, count = np.asarray(influences, dtype=np.float64), len(influences)
    member = np.zeros(count, dtype=np.int64) if strata is None else strata
    counts = np.bincount(member)
    means = np.bincount(member, weights=values) / np.maximum(counts, 1)
    return (values - means[member]) * np.sqrt(counts / np.maximum(counts - 1, 1))[member] / count


def over_rows(rows: "np.ndarray | Rows", influences: Callable[[np.ndarray], np.ndarray], group: Group | None) -> np.ndarray:
    """(N,): the values of `influences` for all rows, which the ranks share out if there is a group."""
    found = np.zeros(len(rows))
    for number, start in enumerate(range(0, len(rows), ROWS)):
        if group is None or number % group.world_size == group.rank:
            found[start : start + ROWS] = influences(rows[start : start + ROWS])
            if group:
                group.check()
    return group.sum(found) if group else found


def dealt(order: np.ndarray, parts: int, strata: np.ndarray | None = None) -> list[np.ndarray]:
    """The samples of an `order` (N,) in as equal parts as they go; with `strata`, each has as equal a share of every one."""
    if strata is None:
        return np.array_split(order, parts)
    order = order[np.argsort(strata[order], kind="stable")]
    return [order[part::parts] for part in range(parts)]


def groups_of(count: int, strata: np.ndarray | None = None) -> np.ndarray:
    """To which of the `GROUPS` each of `count` samples belongs: at random, but always the same, and evenly, also by `strata`."""
    order = np.random.default_rng(SPLITS_SEED).permutation(count)
    if strata is None:
        return order % GROUPS
    found = np.zeros(count, dtype=np.int64)
    for number, part in enumerate(dealt(order, GROUPS, strata)):
        found[part] = number
    return found


def kept_groups() -> np.ndarray:
    """(3 * `SPLITS`, `GROUPS`) bool: the groups that stay when one third of them is left out, for each split into thirds."""
    random = np.random.default_rng(SPLITS_SEED)
    kept = []
    for _ in range(SPLITS):
        thirds = random.permutation(GROUPS) % 3
        kept += [thirds != third for third in range(3)]
    return np.array(kept)


def jackknife_moves(values: np.ndarray) -> np.ndarray:
    """(K,): the moves of a statistic by its `values` (K,) without each third: the delete-d jackknife of Shao and Wu (1989).

    Leaving out single samples or a twelfth overstates the error of what depends on nearest neighbours, halves understate it.
    """
    return (values - np.mean(values)) * np.sqrt(2 / (len(values) - 1))
