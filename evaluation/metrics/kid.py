"""KID: the kernel distance between features of samples and of reference images."""

import numpy as np

from fiducial import Group
from fiducial.evaluation.metrics import FIDELITY_SEED, KID_SUBSETS
from fiducial.evaluation.metrics.inputs import Inputs
from fiducial.evaluation.metrics.intervals import Measured, measured, moves_of

KID_PROBE = 4000  # rows of either side that show how much KID varies


def kid(inputs: Inputs) -> Measured:
    """KID over subsets of `kid_subset_size` images."""
    rows, others, size = inputs.own.rows, inputs.reference.features, inputs.settings.kid_subset_size
    return kernel_distance(rows, others, inputs.group, KID_SUBSETS, size, FIDELITY_SEED, inputs.strata)


def kernel_distance(
    x: np.ndarray,
    y: np.ndarray,
    group: Group,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 2020,
    strata: np.ndarray | None = None,
) -> Measured:
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
    drawn = (distances - value) / subsets * np.sqrt(1 - size / len(x))  # what other subsets of the same samples would give
    return measured(value, np.concatenate([_kernel_moves(x, y, strata), drawn]), spread=spread)


def _kernel_moves(x: np.ndarray, y: np.ndarray, strata: np.ndarray | None) -> np.ndarray:
    """(N,): the moves of KID by the samples x, by the delta method.

    A sample moves it by 2 / N times the mean kernel to the others less that to the reference: seen on `KID_PROBE` of them, which
    stand for all; the others' are 0.
    """
    random = np.random.default_rng(0)
    ours, theirs = (np.sort(random.choice(len(side), min(len(side), KID_PROBE), replace=False)) for side in (x, y))
    rows, others = x[ours].astype(np.float64), y[theirs].astype(np.float64)
    within = _kernel(rows, rows)
    influences = (within.sum(1) - within.diagonal()) / (len(rows) - 1) - _kernel(rows, others).mean(1)
    found = np.zeros(len(x))
    found[ours] = moves_of(2 * influences, None if strata is None else strata[ours]) * np.sqrt(len(rows) / len(x))
    return found


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """KID's kernel of all pairs of rows."""
    base = a @ b.T / a.shape[1] + 1
    return base * base * base


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD between equally many rows (m, D) each, with KID's kernel."""
    count = len(x)
    within = sum(k.sum() - k.trace() for k in (_kernel(x, x), _kernel(y, y))) / (count * (count - 1))
    return float(within - 2 * _kernel(x, y).mean())
