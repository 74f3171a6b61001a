"""All that the ranks have seen between them."""

import numpy as np

from fiducial import Group, UserError
from fiducial.evaluation.collection import NONE, Collection
from fiducial.evaluation.data import levels
from fiducial.evaluation.pictures import COLUMNS, ROWS
from fiducial.evaluation.results.grid import Grid, thumbnail


def turns(group: Group, start: int, stop: int) -> np.ndarray:
    """The indices of this rank's images of these numbers, where the ranks' images take turns."""
    return np.arange(start, stop) * group.world_size + group.rank


def of_all_ranks(group: Group, numbers: np.ndarray) -> np.ndarray:
    """The ranks' integers (n,), one rank's after the other's."""
    counts = np.zeros(group.world_size)
    counts[group.rank] = len(numbers)
    ends = group.sum(counts).cumsum().astype(np.int64)
    everyone = np.zeros(ends[-1])
    everyone[ends[group.rank] - len(numbers) : ends[group.rank]] = numbers
    return group.sum(everyone).astype(np.int64)


def numbered(group: Group, seen: Collection) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The indices of this rank's images, and those of all ranks with their labels, in the order of the indices.

    Raises:
        UserError: if there are none, two have the same index, or only some ranks gave indices, or labels.
    """
    own, theirs = seen.array("indices"), seen.array("labels")
    for what, numbers in (("indices", own), ("labels", theirs)):
        missing, count = group.sum(np.array([(numbers == NONE).sum(), len(numbers)], dtype=float))
        if 0 < missing < count:
            raise UserError(f"{what} are given for some images and not for others, by other ranks")
    if (own == NONE).all():
        own = turns(group, 0, len(own))
    indices, labels = of_all_ranks(group, own), of_all_ranks(group, theirs)
    order = np.argsort(indices, kind="stable")
    indices, labels = indices[order], labels[order]
    if len(twice := indices[1:][np.diff(indices) == 0]):
        raise UserError(f"image {twice[0]} was given twice; every image of every rank needs an index of its own")
    if not len(indices):
        raise UserError("no image was given to be evaluated")
    return own, indices, labels


def require_levels(group: Group, seen: Collection) -> None:
    """Raise UserError if all pixels of all ranks have the levels of a cast."""
    everywhere = group.sum(np.array([float(level in seen.levels) for level in range(256)]))
    levels.require(set(np.flatnonzero(everywhere).tolist()), "the images")


def size_of_all(group: Group, size: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of all images; raises UserError if ranks had different ones."""
    sizes = {tuple(size) for size in of_all_ranks(group, np.array(size or (0, 0))).reshape(-1, 2).tolist()} - {(0, 0)}
    if len(sizes) > 1:
        raise UserError(f"the ranks gave images of different sizes: {', '.join(f'{w} x {h}' for h, w in sorted(sizes))}")
    return sizes.pop()


def grid_of_all(
    group: Group, seen: Collection, own: np.ndarray, indices: np.ndarray, labels: np.ndarray, size: tuple[int, int]
) -> Grid:
    """The report's pictures, out of those that the ranks have kept.

    Args:
        own: the indices of this rank's images.
        indices: of all images, ascending, with their `labels`.
        size: height and width of all.
    """
    ours = {int(own[place]): image for place, image in seen.thumbnails.items()}
    kept = np.sort(of_all_ranks(group, np.array(list(ours), dtype=np.int64)))
    theirs = labels[np.searchsorted(indices, kept)]
    grid = Grid.choose(None if (theirs == NONE).any() else theirs, len(kept), ROWS, COLUMNS)
    grid = Grid([(label, kept[row].tolist()) for label, row in grid.rows])
    shape = thumbnail(np.zeros((*size, 3), np.uint8)).shape

    def pick(wanted: list[int]) -> dict[int, np.ndarray]:
        pictures = np.zeros((len(wanted), *shape))
        for place, index in enumerate(wanted):
            if index in ours:
                pictures[place] = ours[index]
        return dict(zip(wanted, group.sum(pictures).astype(np.uint8), strict=True))

    grid.fill(pick)
    return grid
