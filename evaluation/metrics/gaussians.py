"""The Fréchet distance of two Gaussians, and what its error depends on: arrays to floats, nothing else."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fiducial import Group
from fiducial.evaluation.metrics import linear
from fiducial.evaluation.metrics.intervals import ROUNDING, length, moves_of, over_rows
from fiducial.evaluation.metrics.statistics import FeatureStatistics

if TYPE_CHECKING:
    import torch

    from fiducial.evaluation.features.extraction import Rows


def frechet_distance(
    mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray, device: "torch.device | None" = None
) -> float:
    """Squared Fréchet distance of two Gaussians: |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) (arXiv 1706.08500, equation 6).

    With any factors S1 = A A', S2 = B B', the last trace is the sum of the singular values of A'B. That is never complex, and
    stays accurate where covariances are singular. Means (D,), covariances (D, D), any float dtype; computed in float64.

    Args:
        device: where singular values are computed if it is a GPU.
    """
    m1, m2, s1, s2 = (np.asarray(array, dtype=np.float64) for array in (mu1, mu2, sigma1, sigma2))
    coupling = linear.singular_values(factor(s1).T @ factor(s2), device).sum()
    return max(0.0, float(((m1 - m2) ** 2).sum() + s1.trace() + s2.trace() - 2 * coupling))  # rounding may go below


def factor(sigma: np.ndarray) -> np.ndarray:
    """A (D, rank) with A A' = sigma (D, D), float64, by Cholesky's method with pivots, which is fast and finds the rank.

    A matrix that rounding (to float32, in some files) has made indefinite is taken by its eigenvalues instead, negative ones
    counting as 0.

    Raises:
        ValueError: if it is too far from positive semi-definite for rounding, so no covariance.
    """
    sigma = (sigma + sigma.T) / 2
    found = linear.pivoted_cholesky(sigma)
    left = np.abs(sigma - found @ found.T).max()
    if left <= len(sigma) * 1e-14 * sigma.diagonal().max():
        return found
    values, vectors = linear.eigen(sigma)
    if values[0] < -1e-3 * abs(values[-1]):
        raise ValueError("a covariance has no negative eigenvalues, but this matrix has")
    return vectors * np.sqrt(values.clip(0))


def transport(sigma1: np.ndarray, sigma2: np.ndarray, device: "torch.device | None" = None) -> np.ndarray:
    """W (rank, D), where W'W = S2^1/2 (S2^1/2 S1 S2^1/2)^-1/2 S2^1/2 is the map that transports N(0, S1) to N(0, S2).

    Args:
        device: where eigenvectors are computed if it is a GPU.
    """
    b = factor(np.asarray(sigma2, dtype=np.float64))
    values, vectors = linear.eigen(b.T @ np.asarray(sigma1, dtype=np.float64) @ b, device)
    kept = values > 1e-14 * values[-1]
    return (b @ vectors[:, kept] * values[kept] ** -0.25).T


def frechet_influences(
    own: FeatureStatistics, mu: np.ndarray, sigma: np.ndarray, group: Group | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """The function of rows (B, D) that says by how much, times N, each moves the distance; see `frechet_moves`."""
    w, gap = transport(own.covariance, sigma, group and group.device), own.mean - mu

    def influences(part: np.ndarray) -> np.ndarray:
        d = part.astype(np.float64) - own.mean
        return 2 * d @ gap + np.square(d).sum(1) - np.square(d @ w.T).sum(1)

    return influences


def frechet_moves(
    rows: "np.ndarray | Rows",
    own: FeatureStatistics,
    mu: np.ndarray,
    sigma: np.ndarray,
    group: Group | None = None,
    strata: np.ndarray | None = None,
) -> np.ndarray | None:
    """The moves (N,) of the Fréchet distance of samples with features `rows` (N, D) to a fixed N(mu, sigma).

    By the delta method: a sample at distance d from the mean m moves it by (2 (m - mu).d + d'(1 - T)d) / N and a constant, with
    T the `transport` from the samples' covariance. Where the two distributions are nearly one, that is nearly 0, and the error is
    rather too large. None where it is 0, and where samples are too few for a covariance of full rank, so that there is no such
    map; a feature that is the same in all of many samples does no harm.
    """
    count, dimension = rows.shape
    if count <= dimension:
        return None
    moves = moves_of(over_rows(rows, frechet_influences(own, mu, sigma, group), group), strata)
    return moves if length(moves) > ROUNDING * own.covariance.trace() else None


def frechet_error(
    rows: "np.ndarray | Rows", own: FeatureStatistics, mu: np.ndarray, sigma: np.ndarray, group: Group | None = None
) -> float | None:
    """Standard error of the Fréchet distance of independent samples, by their `frechet_moves`."""
    moves = frechet_moves(rows, own, mu, sigma, group)
    return None if moves is None else length(moves)
