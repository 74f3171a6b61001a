"""FID-infinity: the Fréchet distance that infinitely many samples would have, by a line through that of fewer."""

import numpy as np

from fiducial import Group
from fiducial.evaluation.metrics.frechet import fid
from fiducial.evaluation.metrics.gaussians import frechet_distance
from fiducial.evaluation.metrics.inputs import Inputs
from fiducial.evaluation.metrics.intervals import ROWS, Estimate, Measured, dealt, estimate, length
from fiducial.evaluation.metrics.statistics import FeatureStatistics
from fiducial.evaluation.results.parts import Curve

BLOCK_COUNTS = (1, 2, 3, 4)  # FID against N: of all samples, of halves, of thirds, of quarters
FITTED = 3  # of these, the largest, that the line goes through
CURVE_SEED, SHUFFLES = 0, 4


def fid_infinity(inputs: Inputs) -> Measured:
    """Where the curve's line ends."""
    return inputs.once(_found)[1]


def curve(inputs: Inputs) -> Curve:
    """FID against N; see `extrapolated`."""
    return inputs.once(_found)[0]


def _found(inputs: Inputs) -> tuple[Curve, Measured]:
    reference = inputs.reference
    return extrapolated(inputs.own.rows, reference.mu, reference.sigma, inputs.once(fid), inputs.group, inputs.strata)


def frechet_curve(rows: np.ndarray, mu: np.ndarray, sigma: np.ndarray, whole: Estimate, group: Group) -> Curve:
    """The curve of independent samples; see `extrapolated`."""
    return extrapolated(rows, mu, sigma, whole, group)[0]


def extrapolated(
    rows: np.ndarray, mu: np.ndarray, sigma: np.ndarray, whole: Estimate, group: Group, strata: np.ndarray | None = None
) -> tuple[Curve, Measured]:
    """FID-infinity (arXiv 1911.07023): the Fréchet distance is biased by a multiple of 1 / N, which a straight line takes away.

    Each point is the mean over blocks that hold all samples between them, after seeded shuffles: all at once, halves, thirds
    and quarters. So all points see the same samples, where random subsets, as in the paper, would add their own noise; how far
    the shuffles lie apart is part of the error. The line goes through the first three, as the bias of few samples bends; how
    far a parabola through all four would end from it is part of the error too. Of a model as good as the reference it may come
    out below 0. The ranks share the blocks out.

    Args:
        rows: features (N, D) of at least `PER_DIMENSION` samples a dimension.
        whole: the distance of all samples, with its error.
        strata: (N,), of which every block has its part, as all samples have: classes that are fixed for all of them and drawn
            for a half would bias the half by more than a multiple of 1 / N.

    Returns:
        The curve, and its value at infinity with the moves of the whole distance, the bend and the shuffles.
    """
    orders = [np.random.default_rng([CURVE_SEED, shuffle]).permutation(len(rows)) for shuffle in range(SHUFFLES)]
    points = [np.full(SHUFFLES, whole.value)]
    for parts in BLOCK_COUNTS[1:]:
        blocks = [block for order in orders for block in dealt(order, parts, strata)]
        distances = np.zeros(len(blocks))
        for number in range(group.rank, len(blocks), group.world_size):
            distances[number] = _distance_of(rows, blocks[number], mu, sigma, group)
        points.append(group.sum(distances).reshape(SHUFFLES, parts).mean(1))
    counts = [len(rows) // parts for parts in BLOCK_COUNTS]
    slopes, values = np.polyfit(1 / np.array(counts[:FITTED]), np.array(points[:FITTED]), 1)  # a line a shuffle
    means = tuple(float(point.mean()) for point in points)
    bend = values.mean() - np.polyfit(1 / np.array(counts), means, 2)[-1]
    drawn = np.append((values - values.mean()) / np.sqrt(SHUFFLES * (SHUFFLES - 1)), bend)
    error = whole.error and float(np.hypot(whole.error, length(drawn)))
    found = estimate(float(values.mean()), error)
    moves = getattr(whole, "moves", None)
    moves = None if moves is None or found.error is None else np.concatenate([moves, drawn])
    return Curve(tuple(counts), means, float(slopes.mean()), found), Measured(**vars(found), moves=moves)


def _distance_of(rows: np.ndarray, block: np.ndarray, mu: np.ndarray, sigma: np.ndarray, group: Group) -> float:
    statistics = FeatureStatistics.empty(rows.shape[1])
    for part in np.split(np.sort(block), range(ROWS, len(block), ROWS)):
        group.check()
        statistics.update(rows[part])
    statistics.flush()
    return frechet_distance(statistics.mean, statistics.covariance, mu, sigma, group.device)
