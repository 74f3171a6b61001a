"""Streaming sums in float64: what metrics need of 50,000 images, kept in constant memory, and mergeable."""

from dataclasses import dataclass, field

import numpy as np

from fiducial import Group

CHUNK = 1024  # rows added at once: the scatter matrix is gone through once for so many


@dataclass
class FeatureStatistics:
    """Count, mean and scatter (sum of outer products about the mean) of feature vectors, by the pairwise update of Chan et al."""

    count: int
    mean: np.ndarray  # (D,) float64
    scatter: np.ndarray  # (D, D) float64
    _waiting: list[np.ndarray] = field(default_factory=list, repr=False)

    @classmethod
    def empty(cls, dimension: int) -> "FeatureStatistics":
        return cls(0, np.zeros(dimension), np.zeros((dimension, dimension)))

    def update(self, features: np.ndarray) -> None:
        """Add a batch of features (B, D). Small batches are gathered first; `flush` adds what is left."""
        self._waiting.append(features)
        if sum(map(len, self._waiting)) >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Add what waits, so that `count`, `mean` and `scatter` are of all that was given to `update`."""
        rows = np.concatenate([*self._waiting, np.empty((0, len(self.mean)))]).astype(np.float64, copy=False)
        self._waiting.clear()
        if len(rows):
            mean = rows.mean(axis=0)
            rows -= mean
            self.merge(FeatureStatistics(len(rows), mean, rows.T @ rows))

    def merge(self, other: "FeatureStatistics") -> None:
        """Add what another, flushed, has seen; the order does not matter but for rounding."""
        total = self.count + other.count
        if total == 0:
            return
        shift = other.mean - self.mean
        self.scatter += other.scatter
        self.scatter += np.outer(shift, shift) * (self.count * other.count / total)
        self.mean = self.mean + shift * (other.count / total)
        self.count = total

    def merged(self, group: Group) -> "FeatureStatistics":
        """The statistics of all ranks together, on every rank."""
        self.flush()
        if group.world_size == 1:
            return self
        count = int(group.sum(np.array([self.count], dtype=np.float64))[0])
        mean = group.sum(self.mean * self.count) / count
        shift = self.mean - mean
        return FeatureStatistics(count, mean, group.sum(self.scatter + np.outer(shift, shift) * self.count))

    @property
    def covariance(self) -> np.ndarray:
        """(D, D) float64, divided by n - 1, as numpy.cov."""
        return self.scatter / (self.count - 1)
