"""Nearest neighbours among features, and what they tell: precision, recall, density, coverage, memorised samples.

Distances are worked on in tiles, which the ranks share out; never more than one tile and what it is reduced to exist at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch
from torch import Tensor

from fiducial import Group, progress_bar
from fiducial.evaluation.metrics import DENSITY_NEIGHBOURS, NEIGHBOURS
from fiducial.evaluation.metrics.covering import coverage_of, random_marks
from fiducial.evaluation.metrics.inputs import Inputs
from fiducial.evaluation.metrics.intervals import (
    GROUPS,
    Measured,
    groups_of,
    jackknife_moves,
    kept_groups,
    measured,
    moves_of,
    share_of,
)

ENOUGH = 2 * GROUPS  # samples for an interval of recall
TILE = 2048  # rows and columns of the distances that exist at once
PARTS = 4  # of a tile on the diagonal, along each side
ADM_BLOCK = 10_000  # rows and columns that ADM's evaluator works on at once; its float16 falls back to float32 by the block
HALF_MAX = 65504.0


@dataclass(frozen=True)
class Neighbourhoods:
    """Numbers that depend on the same distances; density and coverage are None where a reference is too small for them."""

    precision: Measured
    recall: Measured
    density: Measured | None
    coverage: Measured | None
    f_score: Measured


def precision(inputs: Inputs) -> Measured:
    """The share of samples that lie within the reference."""
    return inputs.once(_neighbourhoods).precision


def recall(inputs: Inputs) -> Measured:
    """The share of the reference that lies within the samples."""
    return inputs.once(_neighbourhoods).recall


def f_score(inputs: Inputs) -> Measured:
    """The harmonic mean of both."""
    return inputs.once(_neighbourhoods).f_score


def density(inputs: Inputs) -> Measured | None:
    """How many reference images samples lie near to; None where there are too few."""
    return inputs.once(_neighbourhoods).density


def coverage(inputs: Inputs) -> Measured | None:
    """The share of the reference that samples lie near to; None where there are too few."""
    return inputs.once(_neighbourhoods).coverage


def _neighbourhoods(inputs: Inputs) -> Neighbourhoods:
    """All of them, from one pass over the distances."""
    half, strata = inputs.settings.fp16_compat, inputs.strata
    return neighbourhoods(inputs.reference.features, inputs.own.rows, inputs.group, half, strata)


def neighbourhoods(
    reference: np.ndarray, samples: np.ndarray, group: Group, half: bool = False, strata: np.ndarray | None = None
) -> Neighbourhoods:
    """Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797) of features (R, D), (N, D) float32.

    Precision is the share of samples that lie within some reference image's distance to its 3rd neighbour, borders included;
    recall the share of reference images within some sample's. Density is the mean number of reference images that have a
    sample nearer than their 5th neighbour, over 5; coverage the share of them. The ranks share the tiles of the distances out.

    Args:
        half: distances as ADM's evaluator rounds them (see `half_distances`) in place of float32.
        strata: (N,), as `intervals.moves_of` takes them.

    Raises:
        ValueError: if either side has too few rows for a 3rd neighbour.
    """
    if min(len(reference), len(samples)) <= NEIGHBOURS:
        raise ValueError(f"{len(reference)} and {len(samples)} images have no neighbour number {NEIGHBOURS}")
    kept, member = torch.from_numpy(kept_groups()), torch.from_numpy(groups_of(len(samples), strata))
    theirs = nearest(Pairs(reference, reference, group, half), min(DENSITY_NEIGHBOURS + 1, len(reference)), group)
    ours = nearest(Pairs(samples, samples, group, half), NEIGHBOURS + 1, group, member)
    counts = _Counts(len(reference), len(samples))
    counts.add(Pairs(reference, samples, group, half), theirs[:, NEIGHBOURS], theirs[:, -1], _radii(ours, member, kept))
    return counts.summed(group).shares(strata)


def _radii(smallest: Tensor, member: Tensor, kept: Tensor) -> Tensor:
    """(1 + K, N): each sample's distance to its 3rd neighbour among all samples, and among those that each of `kept` (K, G)
    leaves; -1, which no distance is below, for samples that are not among them.

    Args:
        smallest: (N, G, 4), the smallest distances to the samples of each group; `member` (N,) says whose group is which.
    """
    everyone = torch.ones(1, kept.shape[1], dtype=torch.bool)
    radii = []
    for groups in torch.cat([everyone, kept]):
        radius = smallest[:, groups].flatten(1).kthvalue(NEIGHBOURS + 1).values
        radii.append(radius.where(groups[member], -1.0))
    return torch.stack(radii)


class _Counts:
    """Counts over the tiles of distances between R reference images and N samples.

    `inside` and `near` (N,) count the reference images whose 3rd and 5th neighbour is not nearer than the sample; `covered` (R,)
    counts the samples that are nearer to an image than its 5th neighbour, `indices`, `squares` and `marks` (R,) add up their
    indices, the squares of these, and `random_marks`; `recalled` (R, 1 + K) says by which sets of samples it is recalled.
    """

    def __init__(self, reference_count: int, count: int):
        sets = 1 + len(kept_groups())
        self.inside, self.near = torch.zeros(count), torch.zeros(count)
        sums = (torch.zeros(reference_count, dtype=torch.float64) for _ in range(4))
        self.covered, self.indices, self.squares, self.marks = sums
        self.recalled = torch.zeros(reference_count, sets, dtype=torch.bool)

    def add(self, pairs: "Pairs", radii3: Tensor, radii5: Tensor, radii_s: Tensor) -> None:
        """Go through this rank's tiles."""
        group, device = pairs.group, pairs.group.device
        reach, largest = torch.maximum(radii3, radii5).to(device), radii_s.amax(0).to(device)
        marks = torch.from_numpy(random_marks(len(pairs.b)))
        with progress_bar(len(pairs.a) * len(pairs.b), "neighbourhoods", "pair", delay=5) as bar:
            for r, s in pairs.tiles(group):
                group.check()
                block = pairs.distances(r, s)
                self._add_near(r, s, radii3[r], radii5[r], marks[s], *_where(block <= reach[r, None], block))
                rows, columns, values = _where(block <= largest[s], block)  # few, and all that any set of samples has
                for number, radii in enumerate(radii_s[:, s]):
                    self.recalled[r, number][rows[values <= radii[columns]]] = True
                bar.update(block.numel() * group.world_size)

    def _add_near(
        self, r: slice, s: slice, radii3: Tensor, radii5: Tensor, marks: Tensor, rows: Tensor, columns: Tensor, values: Tensor
    ) -> None:
        """Count the distances `values`, at `rows` and `columns` of a tile, which are all that can be within the radii."""
        self.inside[s] += columns[values <= radii3[rows]].bincount(minlength=s.stop - s.start)
        near = values < radii5[rows]
        self.near[s] += columns[near].bincount(minlength=s.stop - s.start)
        rows, columns = rows[near], columns[near]
        indices = (columns + s.start).double()
        sums = {"covered": torch.ones_like(indices), "indices": indices, "squares": indices**2, "marks": marks[columns]}
        for name, values in sums.items():
            getattr(self, name)[r] += rows.bincount(weights=values, minlength=r.stop - r.start)

    def summed(self, group: Group) -> "_Counts":
        """Those of all ranks."""
        for name, counts in vars(self).items():
            found = torch.from_numpy(group.sum(counts.numpy().astype(np.float64)))
            setattr(self, name, found if counts.is_floating_point() else found > 0)
        return self

    def shares(self, strata: np.ndarray | None) -> Neighbourhoods:
        """The metrics by the counts; the interval of recall, which depends on the samples' neighbours, by leaving out thirds."""
        count, has_fifth = len(self.inside), len(self.covered) > DENSITY_NEIGHBOURS
        density = self.near.numpy() / DENSITY_NEIGHBOURS
        recalled = self.recalled.double().mean(0).numpy()
        covered = (one.numpy() for one in (self.covered, self.indices, self.squares, self.marks))
        inside, enough = self.inside.numpy() > 0, count >= ENOUGH  # for a third to be left out
        f_scores = _harmonic_means(inside, recalled, groups_of(count, strata)) if enough else None
        both = share_of(inside, strata), measured(float(recalled[0]), jackknife_moves(recalled[1:]) if enough else None, 0, 1)
        return Neighbourhoods(
            *both,
            measured(float(density.mean()), moves_of(density, strata), 0) if has_fifth else None,
            coverage_of(*covered, count, strata) if has_fifth else None,
            measured(harmonic_mean(both[0].value, both[1].value), None if f_scores is None else jackknife_moves(f_scores), 0, 1),
        )


def harmonic_mean(precision: float, recall: float) -> float:
    """The F-score; 0 where both are."""
    return float(2 * precision * recall / max(precision + recall, np.finfo(float).tiny))


def _harmonic_means(inside: np.ndarray, recalled: np.ndarray, member: np.ndarray) -> np.ndarray:
    """(K,): the F-score of the samples that each of `kept_groups` leaves.

    Args:
        inside: (N,), the samples that count for precision; `member` (N,) says whose group is which.
        recalled: (1 + K,), the recall of all samples, and of each of those sets.
    """
    precisions = [inside[groups[member]].mean() for groups in kept_groups()]
    return np.array([harmonic_mean(*both) for both in zip(precisions, recalled[1:], strict=True)])


def nearest(pairs: "Pairs", count: int, group: Group, member: Tensor | None = None) -> Tensor:
    """The `count` smallest squared distances from each row of `pairs.a` to the rows of `pairs.b`, ascending: (N, count) float32.

    With `member` (M,), to the rows of each of the groups that it numbers: (N, GROUPS, count), infinite where a group is
    smaller. Ranks share the tiles out; no more than one tile and the smallest so far exist at a time.
    """
    best = torch.full((len(pairs.a), 1 if member is None else GROUPS, count), torch.inf)
    with progress_bar(len(pairs.a) * len(pairs.b), "neighbours", "pair", delay=5) as bar:
        for rows, columns in pairs.tiles(group, mirrored=pairs.symmetric):
            group.check()
            block = pairs.distances(rows, columns)
            _keep_smallest(best[rows], block, None if member is None else member[columns])
            mirrored = pairs.symmetric and rows != columns
            if mirrored:
                _keep_smallest(best[columns], block.T, None if member is None else member[rows])
            bar.update(block.numel() * (1 + mirrored) * group.world_size)
    if group.world_size > 1:
        for number in range(best.shape[1]):  # in parts, of which each rank has every other's
            everyone = np.zeros((group.world_size, len(best), count))
            everyone[group.rank] = best[:, number].numpy()
            everyone = torch.from_numpy(group.sum(everyone)).float()
            best[:, number] = torch.cat(list(everyone), dim=1).topk(count, largest=False).values
    return best[:, 0] if member is None else best


class Chosen:
    """Some rows of an array, in the order of `indices` (M,), copied only when a slice of them is read."""

    def __init__(self, rows: np.ndarray, indices: np.ndarray):
        self._rows, self.indices = rows, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, part: slice) -> np.ndarray:
        return self._rows[self.indices[part]]


def closest(pairs: "Pairs", group: Group) -> tuple[np.ndarray, np.ndarray]:
    """The smallest squared distance from each row of `pairs.a` to the rows of `pairs.b`, and to which: (N,) float32, (N,) int64.

    Of several as near, the first.
    """
    best, index = np.full(len(pairs.a), np.inf, dtype=np.float32), np.zeros(len(pairs.a), dtype=np.int64)
    with progress_bar(len(pairs.a) * len(pairs.b), "nearest", "pair", delay=5) as bar:
        for rows, columns in pairs.tiles(group):
            group.check()
            found, where = (values.cpu().numpy() for values in pairs.distances(rows, columns).min(1))
            nearer = found < best[rows]
            best[rows] = np.where(nearer, found, best[rows])
            index[rows] = np.where(nearer, where + columns.start, index[rows])
            bar.update(len(found) * (columns.stop - columns.start) * group.world_size)
    if group.world_size > 1:
        everyone = np.zeros((group.world_size, 2, len(best)))
        everyone[group.rank] = np.where(np.isfinite(best), best, np.finfo(np.float32).max), index
        everyone = group.sum(everyone)
        winner = np.lexsort((everyone[:, 1], everyone[:, 0]), axis=0)[0]
        best, index = (everyone[winner, part, np.arange(len(best))] for part in (0, 1))
    return best.astype(np.float32), index.astype(np.int64)


def _keep_smallest(best: Tensor, block: Tensor, member: Tensor | None) -> None:
    """Merge the distances in `block` (rows, columns) into the smallest so far (rows, groups, count), in place.

    Where there are enough so far, only those that are smaller are looked at: few, after the first tile.
    """
    largest = best[:, :, -1].amax(1)
    if largest.isinf().any():
        return _keep_smallest_of_all(best, block.contiguous(), member)
    rows, columns, values = _where(block < largest.to(block.device)[:, None], block)
    places = rows if member is None else rows * GROUPS + member[columns]
    best = best.flatten(0, 1)
    smaller = values < best[places, -1]
    _merge(best, places[smaller], values[smaller])


def _where(mask: Tensor, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and values of `block` where `mask` is true, in the host's memory. Either may be a transposed view."""
    if not mask.is_contiguous():
        columns, rows, values = _where(mask.T, block.T)
        return rows, columns, values
    on_host = mask.device.type == "cpu"  # where numpy is faster
    found = torch.from_numpy(np.flatnonzero(mask.numpy())) if on_host else mask.flatten().nonzero()[:, 0]
    values, found = block.flatten()[found].cpu(), found.cpu()
    return found // mask.shape[1], found % mask.shape[1], values


def _merge(best: Tensor, places: Tensor, values: Tensor) -> None:
    """Merge `values`, of the rows `places`, into the smallest so far (rows, count), ascending, in place."""
    count = best.shape[1]
    order = values.argsort()
    order = order[places[order].argsort(stable=True)]
    places, counts = places[order].unique_consecutive(return_counts=True)
    of = torch.arange(len(places)).repeat_interleave(counts)
    number = torch.arange(len(order)) - (counts.cumsum(0) - counts)[of]
    new = torch.full((len(places), count), torch.inf)
    new[of[number < count], number[number < count]] = values[order[number < count]]
    best[places] = torch.cat([best[places], new], dim=1).sort(dim=1).values[:, :count]


def _keep_smallest_of_all(best: Tensor, block: Tensor, member: Tensor | None) -> None:
    """`_keep_smallest`, whatever there is so far."""
    count, parts = best.shape[2], [block]
    if member is not None:
        block = block.index_select(1, member.argsort(stable=True).to(block.device))
        parts = block.split(member.bincount(minlength=GROUPS).tolist(), dim=1)
    for number, part in enumerate(parts):
        found = part.topk(min(count, part.shape[1]), largest=False).values.cpu()
        best[:, number] = torch.cat([best[:, number], found], dim=1).topk(count, largest=False).values


class Pairs:
    """All pairs of rows of a (M, D) and b (N, D), float32, and their squared distances, tile by tile.

    With `half`, distances are ADM's (see `half_distances`). Its evaluator works in blocks of 10,000 x 10,000, and one that
    overflows float16 is computed in float32; no tile crosses a border of those blocks.
    """

    def __init__(self, a: "np.ndarray | Chosen", b: "np.ndarray | Chosen", group: Group, half: bool):
        self.a, self.b, self.group, self._half = a, b, group, half
        self.symmetric = a is b and not half  # in float16, the order of the additions shows
        self._in_float32 = self._overflowing_blocks(group) if half else frozenset()

    def tiles(self, group: Group, mirrored: bool = False) -> Iterator[tuple[slice, slice]]:
        """This rank's share of the tiles; with `mirrored`, only one of two that are each other's mirror image, and those that are
        their own in parts, last."""
        everything = ((rows, columns) for rows in _ranges(len(self.a)) for columns in _ranges(len(self.b)))
        if mirrored:
            different = (tile for tile in everything if tile[0].start < tile[1].start)
            everything = chain(different, chain.from_iterable(map(_without_mirror_images, _ranges(len(self.a)))))
        return islice(everything, group.rank, None, group.world_size)

    def distances(self, rows: slice, columns: slice) -> Tensor:
        """One tile of squared distances, float32."""
        a, b = self._rows(rows, columns)
        exact = not self._half or (rows.start // ADM_BLOCK, columns.start // ADM_BLOCK) in self._in_float32
        return squared_distances(a, b) if exact else half_distances(a, b)

    def _rows(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.a[rows]).to(self.group.device), torch.from_numpy(self.b[columns]).to(self.group.device)

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


def _without_mirror_images(rows: slice) -> Iterator[tuple[slice, slice]]:
    """Tiles of these rows by the same, without most of the half that mirrors the other."""
    size = rows.stop - rows.start
    if size <= TILE // PARTS:
        yield rows, rows
        return
    upper, lower = slice(rows.start, rows.start + size // 2), slice(rows.start + size // 2, rows.stop)
    yield upper, lower
    yield from _without_mirror_images(upper)
    yield from _without_mirror_images(lower)


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
