"""Metrics of whole distributions: arrays to floats, nothing else. Where work is split over ranks, a `Group` adds the parts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg

from fiducial import Group
from fiducial.evaluation.intervals import ROUNDING, Estimate, error_of_mean, estimate
from fiducial.evaluation.statistics import FeatureStatistics, divergences_from, mean_divergence

if TYPE_CHECKING:
    from fiducial.evaluation.extraction import Rows

ROWS = 2048  # that are worked on at once
BLOCK_COUNTS = (1, 2, 3, 4)  # FID against N: of all samples, of halves, of thirds, of quarters
FITTED = 3  # of these, the largest, that the line goes through
CURVE_SEED, SHUFFLES = 0, 4
PER_DIMENSION = 10  # samples for FID-infinity; with fewer, the line misses what Gaussians are known to have
KID_PROBE = 4000  # rows of either side that show how much KID varies


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Squared Fréchet distance of two Gaussians: |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) (arXiv 1706.08500, equation 6).

    With any factors S1 = A A', S2 = B B', the last trace is the sum of the singular values of A'B. That is never complex, and
    stays accurate where covariances are singular. Means (D,), covariances (D, D), any float dtype; computed in float64.
    """
    m1, m2, s1, s2 = (np.asarray(array, dtype=np.float64) for array in (mu1, mu2, sigma1, sigma2))
    coupling = scipy.linalg.svdvals(factor(s1).T @ factor(s2)).sum()
    return max(0.0, float(((m1 - m2) ** 2).sum() + s1.trace() + s2.trace() - 2 * coupling))  # rounding may go below


def factor(sigma: np.ndarray) -> np.ndarray:
    """A (D, rank) with A A' = sigma (D, D), float64, by Cholesky's method with pivots, which is fast and finds the rank.

    A matrix that rounding (to float32, in some files) has made indefinite is taken by its eigenvalues instead, negative ones
    counting as 0.

    Raises:
        ValueError: if it is too far from positive semi-definite for rounding, so no covariance.
    """
    sigma = (sigma + sigma.T) / 2
    factored, pivots, rank, _ = scipy.linalg.lapack.dpstrf(sigma, lower=1)
    found = np.zeros((len(sigma), max(rank, 1)))
    found[pivots - 1, :rank] = np.tril(factored)[:, :rank]
    left = np.abs(sigma - found @ found.T).max()
    if left <= len(sigma) * 1e-14 * sigma.diagonal().max():
        return found
    values, vectors = scipy.linalg.eigh(sigma, driver="evd")
    if values[0] < -1e-3 * abs(values[-1]):
        raise ValueError("a covariance has no negative eigenvalues, but this matrix has")
    return vectors * np.sqrt(values.clip(0))


def transport(sigma1: np.ndarray, sigma2: np.ndarray) -> np.ndarray:
    """W (rank, D), where W'W = S2^1/2 (S2^1/2 S1 S2^1/2)^-1/2 S2^1/2 is the map that transports N(0, S1) to N(0, S2)."""
    b = factor(np.asarray(sigma2, dtype=np.float64))
    values, vectors = scipy.linalg.eigh(b.T @ np.asarray(sigma1, dtype=np.float64) @ b, driver="evd")
    kept = values > 1e-14 * values[-1]
    return (b @ vectors[:, kept] * values[kept] ** -0.25).T


def frechet_error(
    rows: "np.ndarray | Rows", own: FeatureStatistics, mu: np.ndarray, sigma: np.ndarray, group: Group | None = None
) -> float | None:
    """Standard error of the Fréchet distance of samples with features `rows` (N, D) to a fixed N(mu, sigma).

    By the delta method: a sample at distance d from the mean m moves it by (2 (m - mu).d + d'(1 - T)d) / N and a constant, with
    T the `transport` from the samples' covariance. Where the two distributions are nearly one, that is nearly 0, and the error is
    rather too large. None where it is 0, and where samples are too few for a covariance of full rank, so that there is no such
    map; a feature that is the same in all of many samples does no harm.
    """
    count, dimension = rows.shape
    if count <= dimension:
        return None
    w, gap = transport(own.covariance, sigma), own.mean - mu

    def influences(part: np.ndarray) -> np.ndarray:
        d = part.astype(np.float64) - own.mean
        return 2 * d @ gap + np.square(d).sum(1) - np.square(d @ w.T).sum(1)

    error = _error(rows, influences, group)
    return error if error > ROUNDING * own.covariance.trace() else None


def _error(rows: "np.ndarray | Rows", influences: Callable[[np.ndarray], np.ndarray], group: Group | None) -> float:
    """`error_of_mean` of what `influences` makes of all rows, which the ranks share out if there is a group."""
    found = np.zeros(len(rows))
    for number, start in enumerate(range(0, len(rows), ROWS)):
        if group is None or number % group.world_size == group.rank:
            found[start : start + ROWS] = influences(rows[start : start + ROWS])
            if group:
                group.check()
    return error_of_mean([group.sum(found) if group else found])


@dataclass(frozen=True)
class Curve:
    """The Fréchet distance against the number of samples, with the line through it in 1 / N and its value for infinitely many."""

    counts: tuple[int, ...]
    values: tuple[float, ...]
    slope: float
    at_infinity: Estimate

    def at(self, count: float) -> float:
        return self.at_infinity.value + self.slope / count


def frechet_curve(rows: np.ndarray, mu: np.ndarray, sigma: np.ndarray, whole: Estimate, group: Group) -> Curve:
    """FID-infinity (arXiv 1911.07023): the Fréchet distance is biased by a multiple of 1 / N, which a straight line takes away.

    Each point is the mean over blocks that hold all samples between them, after seeded shuffles: all at once, halves, thirds
    and quarters. So all points see the same samples, where random subsets, as in the paper, would add their own noise; how far
    the shuffles lie apart is part of the error. The line goes through the first three, as the bias of few samples bends; how
    far a parabola through all four would end from it is part of the error too. Of a model as good as the reference it may come
    out below 0. The ranks share the blocks out.

    Args:
        rows: features (N, D) of at least `PER_DIMENSION` samples a dimension.
        whole: the distance of all samples, with its error.
    """
    orders = [np.random.default_rng([CURVE_SEED, shuffle]).permutation(len(rows)) for shuffle in range(SHUFFLES)]
    points = [np.full(SHUFFLES, whole.value)]
    for parts in BLOCK_COUNTS[1:]:
        blocks = [block for order in orders for block in np.array_split(order, parts)]
        distances = np.zeros(len(blocks))
        for number in range(group.rank, len(blocks), group.world_size):
            distances[number] = _distance_of(rows, blocks[number], mu, sigma, group)
        points.append(group.sum(distances).reshape(SHUFFLES, parts).mean(1))
    counts = [len(rows) // parts for parts in BLOCK_COUNTS]
    slopes, values = np.polyfit(1 / np.array(counts[:FITTED]), np.array(points[:FITTED]), 1)  # a line a shuffle
    means = tuple(float(point.mean()) for point in points)
    bend = values.mean() - np.polyfit(1 / np.array(counts), means, 2)[-1]
    error = whole.error and float(np.sqrt(whole.error**2 + values.var(ddof=1) / SHUFFLES + bend**2))
    return Curve(tuple(counts), means, float(slopes.mean()), estimate(float(values.mean()), error))


def _distance_of(rows: np.ndarray, block: np.ndarray, mu: np.ndarray, sigma: np.ndarray, group: Group) -> float:
    statistics = FeatureStatistics.empty(rows.shape[1])
    for part in np.split(np.sort(block), range(ROWS, len(block), ROWS)):
        group.check()
        statistics.update(rows[part])
    statistics.flush()
    return frechet_distance(statistics.mean, statistics.covariance, mu, sigma)


def inception_score(blocks: list[Callable[[], Iterator[np.ndarray]]], group: Group) -> Estimate:
    """Mean over blocks of exp(mean KL) (arXiv 1606.03498), with its standard deviation over several blocks.

    The error is by the delta method: a sample moves the score of its block by that score times its own KL from the block's
    average. The ranks share the blocks out.

    Args:
        blocks: each gives the logits (B, classes) of its images, in any cut, whenever it is called.
    """
    scores, variances = np.zeros(len(blocks)), np.zeros(len(blocks))
    for number in range(group.rank, len(blocks), group.world_size):
        divergence, average = mean_divergence(blocks[number]())
        scores[number] = np.exp(divergence)
        variances[number] = (scores[number] * error_of_mean(divergences_from(average, blocks[number]()))) ** 2
    scores, variances = group.sum(scores), group.sum(variances)
    spread = float(scores.std()) if len(scores) > 1 else None
    return estimate(float(scores.mean()), float(np.sqrt(variances.sum())) / len(scores), 1, spread=spread)


def vendi_score(rows: np.ndarray, group: Group) -> Estimate | None:
    """Vendi score (arXiv 2210.02410) of features (N, D) with the cosine as similarity: as how many different images they count.

    exp of the entropy of the eigenvalues of X'X / N with rows of length 1, which are those of the N x N similarities over N.
    A sample x moves it by the score times -x' log(X'X / N) x - entropy. None if a row is all zeros, which has no direction.
    """
    dimension = rows.shape[1]
    moment = np.zeros((dimension, dimension))
    for number, start in enumerate(range(0, len(rows), ROWS)):
        if number % group.world_size == group.rank:
            group.check()
            part = _directions(rows[start : start + ROWS])
            moment += part.T @ part
    moment = group.sum(moment) / len(rows)
    if moment.trace() < 1 - 0.5 / len(rows):
        return None
    values, vectors = scipy.linalg.eigh(moment, driver="evd")
    kept = values > 1e-15
    values, vectors = values[kept], vectors[:, kept]
    score = float(np.exp(-(values * np.log(values)).sum()))
    root = vectors * np.sqrt(-np.log(np.minimum(values, 1.0)))
    error = _error(rows, lambda part: np.square(_directions(part) @ root).sum(1), group)
    return estimate(score, score * error, 1)


def _directions(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64; those of zeros stay as they are."""
    rows = rows.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def kernel_distance(
    x: np.ndarray, y: np.ndarray, group: Group, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> Estimate:
    """Kernel Inception Distance (arXiv 1801.01401) as torch-fidelity draws it: mean and standard deviation over subsets.

    The unbiased squared MMD with the kernel (x.y / D + 1)^3 between `size` random rows of each of the samples x (N, D) and the
    reference y (M, D), in float64. The ranks share the subsets out. It may be slightly negative.

    Raises:
        ValueError: if N or M is below `size`, or `size` below 2.
    """
    if not 2 <= size <= min(len(x), len(y)):
        raise ValueError(f"subsets of {size} cannot be drawn from {len(x)} and {len(y)}")
    random = np.random.RandomState(seed)
    distances = np.zeros(subsets)
    for subset in range(subsets):
        rows_x, rows_y = (np.sort(random.choice(len(rows), size, replace=False)) for rows in (x, y))
        group.check()
        if subset % group.world_size == group.rank:
            distances[subset] = _squared_mmd(x[rows_x].astype(np.float64), y[rows_y].astype(np.float64))
    distances = group.sum(distances)
    value, spread = float(distances.mean()), float(distances.std())
    drawing = spread**2 / subsets * (1 - size / len(x))  # what other subsets of the same samples would give
    return estimate(value, float(np.sqrt(_kernel_variance(x, y) + drawing)), spread=spread)


def _kernel_variance(x: np.ndarray, y: np.ndarray) -> float:
    """How much KID varies with the samples x, by the delta method.

    A sample moves it by 2 / N times the mean kernel to the others less that to the reference: seen on `KID_PROBE` of them.
    """
    random = np.random.default_rng(0)
    rows, others = (
        side[np.sort(random.choice(len(side), min(len(side), KID_PROBE), replace=False))].astype(np.float64) for side in (x, y)
    )
    within = _kernel(rows, rows)
    influences = (within.sum(1) - within.diagonal()) / (len(rows) - 1) - _kernel(rows, others).mean(1)
    return float(4 * influences.var(ddof=1) / len(x))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """KID's kernel of all pairs of rows."""
    base = a @ b.T / a.shape[1] + 1
    return base * base * base


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD between equally many rows (m, D) each, with KID's kernel."""
    count = len(x)
    within = sum(k.sum() - k.trace() for k in (_kernel(x, x), _kernel(y, y))) / (count * (count - 1))
    return float(within - 2 * _kernel(x, y).mean())
