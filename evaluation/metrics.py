"""Metrics: arrays to floats, nothing else."""

import numpy as np
import torch


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Squared Fréchet distance of two Gaussians: |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) (arXiv 1706.08500, equation 6).

    The last trace is the sum of the singular values of S1^1/2 S2^1/2, which keeps its accuracy where covariances are
    singular and is never complex. Means (D,), covariances (D, D), any float dtype; computed in float64.
    """
    m1, m2 = (np.asarray(mu, dtype=np.float64) for mu in (mu1, mu2))
    s1, s2 = (torch.from_numpy(np.asarray(sigma, dtype=np.float64)) for sigma in (sigma1, sigma2))
    coupling = torch.linalg.svdvals(_symmetric_sqrt(s1) @ _symmetric_sqrt(s2)).sum()
    return float(((m1 - m2) ** 2).sum() + (s1.trace() + s2.trace() - 2 * coupling).item())


def _symmetric_sqrt(matrix: torch.Tensor) -> torch.Tensor:
    """Square root of a positive semi-definite matrix; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def inception_score(divergences: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation over blocks of exp(mean KL) (arXiv 1606.03498), from each block's mean KL in nats."""
    scores = np.exp(divergences)
    return float(scores.mean()), float(scores.std())
