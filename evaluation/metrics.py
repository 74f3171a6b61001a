"""Metrics: arrays to floats, nothing else. Where work is split over ranks, a `Group` adds the parts."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from distributed import Group, progress_bar

NEIGHBOURS = 3  # k of precision and recall; an image is its own nearest neighbour, so the radius is the 4th smallest distance
TILE = 2048  # rows and columns of the distances that exist at once
ADM_BLOCK = 10_000  # rows and columns that ADM's evaluator works on at once; its float16 falls back to float32 by the block
HALF_MAX = 65504.0


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


def inception_score(divergences: np.ndarray) -> tuple[float, float | None]:
    """Mean and, over several blocks, standard deviation of exp(mean KL) (arXiv 1606.03498), from each block's KL in nats."""
    scores = np.exp(divergences)
    return float(scores.mean()), float(scores.std()) if len(scores) > 1 else None


def kernel_distance(
    x: np.ndarray, y: np.ndarray, group: Group, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Kernel Inception Distance (arXiv 1801.01401) as torch-fidelity draws it: mean and standard deviation over subsets.

    The unbiased squared MMD with the kernel (x.y / D + 1)^3 between `size` random rows of each of x (N, D) and y (M, D), in
    float64. The ranks share the subsets out. It may be slightly negative.

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
    return float(distances.mean()), float(distances.std())


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD between equally many rows (m, D) each, with KID's kernel."""
    count, dimension = x.shape

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        base = a @ b.T / dimension + 1
        return base * base * base

    within = sum(k.sum() - k.trace() for k in (kernel(x, x), kernel(y, y))) / (count * (count - 1))
    return float(within - 2 * kernel(x, y).mean())


def precision_recall(reference: np.ndarray, samples: np.ndarray, group: Group, half: bool = False) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991) between reference features (R, D) and those of samples (N, D), float32.

    Precision is the share of samples that lie within some reference image's distance to its 3rd neighbour, borders included;
    recall the share of reference images within some sample's. The ranks share the tiles of the distances out.

    Args:
        half: distances as ADM's evaluator rounds them (see `half_distances`) in place of float32.

    Raises:
        ValueError: if either side has too few rows for a 3rd neighbour.
    """
    if min(len(reference), len(samples)) <= NEIGHBOURS:
        raise ValueError(f"{len(reference)} and {len(samples)} images have no neighbour number {NEIGHBOURS}")
    radii_r, radii_s = (
        nearest(Pairs(features, features, group, half), NEIGHBOURS + 1, group)[:, -1].to(group.device)
        for features in (reference, samples)
    )
    covered, inside = torch.zeros(len(reference), dtype=bool), torch.zeros(len(samples), dtype=bool)
    pairs = Pairs(reference, samples, group, half)
    with progress_bar(len(reference) * len(samples), "precision, recall", "pair", delay=5) as bar:
        for r, s in pairs.tiles(group):
            group.check()
            block = pairs.distances(r, s)
            covered[r] |= (block <= radii_s[s]).any(1).cpu()
            inside[s] |= (block <= radii_r[r, None]).any(0).cpu()
            bar.update(block.numel() * group.world_size)
    recall, precision = ((group.sum(flags.numpy().astype(np.float64)) > 0).mean() for flags in (covered, inside))
    return float(precision), float(recall)


def nearest(pairs: "Pairs", count: int, group: Group) -> Tensor:
    """The `count` smallest squared distances from each row of `pairs.a` to the rows of `pairs.b`, ascending: (N, count) float32.

    Ranks share the tiles out; no more than one tile and the smallest so far exist at a time.
    """
    best = torch.full((len(pairs.a), count), torch.inf)
    with progress_bar(len(pairs.a) * len(pairs.b), "neighbours", "pair", delay=5) as bar:
        for rows, columns in pairs.tiles(group):
            group.check()
            block = pairs.distances(rows, columns)
            _keep_smallest(best, rows, block)
            mirrored = pairs.symmetric and rows != columns
            if mirrored:
                _keep_smallest(best, columns, block.T.contiguous())
            bar.update(block.numel() * (1 + mirrored) * group.world_size)
    if group.world_size == 1:
        return best
    everyone = np.full((group.world_size, *best.shape), 0.0)
    everyone[group.rank] = best.numpy()
    everyone = torch.from_numpy(group.sum(everyone)).float()
    return everyone.transpose(0, 1).flatten(1).topk(count, largest=False).values


def _keep_smallest(best: Tensor, rows: slice, block: Tensor) -> None:
    """Merges the distances in `block` into the smallest so far of its rows, in place."""
    count = best.shape[1]
    found = block.topk(min(count, block.shape[1]), largest=False).values.cpu()
    best[rows] = torch.cat([best[rows], found], dim=1).topk(count, largest=False).values


class Pairs:
    """All pairs of rows of a (M, D) and b (N, D), float32, and their squared distances, tile by tile.

    With `half`, distances are ADM's (see `half_distances`). Its evaluator works in blocks of 10,000 x 10,000, and one that
    overflows float16 is computed in float32; no tile crosses a border of those blocks.
    """

    def __init__(self, a: np.ndarray, b: np.ndarray, group: Group, half: bool):
        self.a, self.b, self._device, self._half = a, b, group.device, half
        self.symmetric = a is b and not half  # in float16, the order of the additions shows
        self._in_float32 = self._overflowing_blocks(group) if half else frozenset()

    def tiles(self, group: Group) -> Iterator[tuple[slice, slice]]:
        """This rank's share of the tiles; of two symmetric ones, only one is there."""
        everything = ((rows, columns) for rows in _ranges(len(self.a)) for columns in _ranges(len(self.b)))
        wanted = (tile for tile in everything if not self.symmetric or tile[0].start <= tile[1].start)
        return islice(wanted, group.rank, None, group.world_size)

    def distances(self, rows: slice, columns: slice) -> Tensor:
        """One tile of squared distances, float32."""
        a, b = self._rows(rows, columns)
        exact = not self._half or (rows.start // ADM_BLOCK, columns.start // ADM_BLOCK) in self._in_float32
        return squared_distances(a, b) if exact else half_distances(a, b)

    def _rows(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.a[rows]).to(self._device), torch.from_numpy(self.b[columns]).to(self._device)

    def _overflowing_blocks(self, group: Group) -> frozenset[tuple[int, int]]:
        """The blocks, by row and column number, in which some of the `half_distances` are not finite."""
        if 2.1 * (_largest_norm(self.a) + _largest_norm(self.b)) < HALF_MAX:  # then no step can
            return frozenset()
        found = np.zeros([-(-len(x) // ADM_BLOCK) for x in (self.a, self.b)])
        for rows, columns in self.tiles(group):
            if not half_distances(*self._rows(rows, columns)).isfinite().all():
                found[rows.start // ADM_BLOCK, columns.start // ADM_BLOCK] = 1
        return frozenset(zip(*(axis.tolist() for axis in np.nonzero(group.sum(found))), strict=True))


def _largest_norm(features: np.ndarray) -> float:
    return max(float(np.square(features[rows], dtype=np.float64).sum(1).max()) for rows in _ranges(len(features)))


def _ranges(count: int) -> Iterator[slice]:
    for block in range(0, count, ADM_BLOCK):
        end = min(block + ADM_BLOCK, count)
        yield from (slice(start, min(start + TILE, end)) for start in range(block, end, TILE))


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|^2 of all pairs of rows (M, D), (N, D) float32: the norm expansion, clamped at 0."""
    norms_a, norms_b = a.square().sum(1), b.square().sum(1)
    return torch.addmm(norms_b, a, b.T, alpha=-2).add_(norms_a[:, None]).clamp_min_(0)


def half_distances(a: Tensor, b: Tensor) -> Tensor:
    """`squared_distances` with every result rounded to float16, as in ADM's evaluator: features, squares, norms, products,
    differences and sums. Sums over features are accumulated in float32 and rounded once. Float32; not finite where the last
    step overflows float16."""
    a, b = a.half(), b.half()
    norms_a, norms_b = (x.square().float().sum(1).half() for x in (a, b))
    products = (a.float() @ b.float().T).half()
    return (norms_a[:, None] - 2 * products + norms_b).clamp_min(0).float()
