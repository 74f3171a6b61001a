"""Streaming sums in float64: what metrics need of 50,000 images, kept in constant memory, and mergeable."""

from dataclasses import dataclass

import numpy as np


@dataclass
class FeatureStatistics:
    """Count, mean and scatter (sum of outer products about the mean) of feature vectors, by the pairwise update of Chan et al."""

    count: int
    mean: np.ndarray  # (D,) float64
    scatter: np.ndarray  # (D, D) float64

    @classmethod
    def empty(cls, dimension: int) -> "FeatureStatistics":
        return cls(0, np.zeros(dimension), np.zeros((dimension, dimension)))

    def update(self, features: np.ndarray) -> None:
        """Adds a batch of features (B, D), B > 0."""
        features = features.astype(np.float64)
        mean = features.mean(axis=0)
        centred = features - mean
        self.merge(FeatureStatistics(len(features), mean, centred.T @ centred))

    def merge(self, other: "FeatureStatistics") -> None:
        """Adds what another has seen; the order does not matter but for rounding."""
        total = self.count + other.count
        if total == 0:
            return
        shift = other.mean - self.mean
        self.scatter += other.scatter + np.outer(shift, shift) * (self.count * other.count / total)
        self.mean = self.mean + shift * (other.count / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """(D, D) float64, divided by n - 1, as numpy.cov."""
        return self.scatter / (self.count - 1)


class BlockEntropy:
    """For the Inception score: the mean KL divergence of each block of consecutive images from the block's own average.

    ADM's blocks have 5,000 images in file order; a short last one counts like the others.
    """

    def __init__(self, classes: int, block: int = 5000):
        self._block = block
        self._finished: list[float] = []
        self._reset(classes)

    def _reset(self, classes: int) -> None:
        self._count, self._negentropy, self._sum = 0, 0.0, np.zeros(classes)

    def update(self, logits: np.ndarray) -> None:
        """Adds logits (B, classes) in file order."""
        while len(logits):
            taken, logits = np.split(logits, [self._block - self._count]) if len(logits) else (logits, logits)
            shifted = taken.astype(np.float64)
            shifted -= shifted.max(axis=1, keepdims=True)
            log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
            p = np.exp(log_p)
            self._count += len(p)
            self._negentropy += float((p * log_p).sum())
            self._sum += p.sum(axis=0)
            if self._count == self._block:
                self._close()

    def _close(self) -> None:
        average = self._sum / self._count
        entropy = -float((average[average > 0] * np.log(average[average > 0])).sum())
        self._finished.append(self._negentropy / self._count + entropy)
        self._reset(len(self._sum))

    def divergences(self) -> np.ndarray:
        """Mean KL of each block, nats, the unfinished one last."""
        if self._count:
            self._close()
        return np.array(self._finished)
