"""The pictures of a report: samples, and beside them real images of the same classes, from wherever some are at hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fiducial import UserError, printable
from fiducial.evaluation.data.images import Images, Seen
from fiducial.evaluation.data.npz import write_npz
from fiducial.evaluation.data.numbering import Numbering, pair
from fiducial.evaluation.data.opening import open_images
from fiducial.evaluation.data.references import Reference
from fiducial.evaluation.data.runs import find_run
from fiducial.evaluation.results.grid import Grid, evenly, first_of

ROWS, COLUMNS = 10, 10  # classes that are shown at once, and images of each
KEPT = 2_000  # pictures that are kept beside a reference
WITHOUT = "has statistics alone: no real images are at hand. A folder or npz of images as --ref, or --train, would show some"


@dataclass(frozen=True)
class Real:
    """Real images, the meaning of their classes, and what they are called."""

    images: Images
    numbering: Numbering | None
    called: str


def of_samples(images: Images) -> Grid:
    """The samples that a report shows."""
    grid = Grid.choose(images.labels, images.count, ROWS, COLUMNS)
    return (grid if images.labels is None else grid.of_every_class(images.labels)).fill(images.pick)


def beside(
    grid: Grid, images: Images | Seen, names: Sequence[str], reference: Reference | None, training: Images | None, paired: bool
) -> Grid:
    """Real images of the same classes as those in `grid`; of any, where nothing says which class is which.

    Args:
        names: of the samples' classes.
        paired: False where classes of the reference were found to be others than they are called.
    """
    try:
        real = _real(reference, training)
        if real is None:
            name = printable(reference.path.name) if reference else ""
            return Grid([], said=f"{name} {WITHOUT}." if reference else "There is no reference, so no real images are at hand.")
        return _chosen(grid, images, names, real, paired).fill(real.images.pick)
    except UserError as error:  # the numbers are not lost for want of a picture
        return Grid([], said=f"Real images cannot be shown: {error}.")


def _real(reference: Reference | None, training: Images | None) -> Real | None:
    """The reference's images, or those that are kept beside it, or else training images."""
    if reference and reference.images:
        return Real(reference.images, reference.images.numbering, f"the reference {printable(reference.path.name)}")
    if reference and (kept := kept_beside(reference.path)).is_file():
        return Real(open_images(kept), reference.numbering, f"{kept.name}, beside the reference")
    return Real(training, training.numbering, f"the training images {printable(training.path.name)}") if training else None


def _chosen(grid: Grid, images: Images | Seen, names: Sequence[str], real: Real, paired: bool) -> Grid:
    theirs, known = real.images.classes, {}
    if paired and images.labels is not None and theirs is not None:
        there = set(np.unique(theirs).tolist())
        found = pair(images.labels, names, real.numbering, real.called).labels
        known = {label: other for label, other in found.items() if other in there}
    shown, every = ([(label, known[label]) for label, _ in rows if label in known] for rows in (grid.rows, grid.classes))
    if not shown:
        indices = evenly(np.arange(real.images.count), ROWS * COLUMNS).tolist()
        rows = [(None, indices[start : start + COLUMNS]) for start in range(0, len(indices), COLUMNS)]
        return Grid(
            rows, said=f"Real images: of {real.called}, evenly spaced; nothing says which of the samples' classes are theirs."
        )
    columns = max((len(indices) for _, indices in grid.classes), default=0)
    found = Grid(_of(theirs, shown, COLUMNS), classes=_of(theirs, every, columns))
    found.said = f"Real images: the first of each class in {real.called}."
    return found


def _of(theirs: np.ndarray, classes: list[tuple[int, int]], count: int) -> list[tuple[int | None, list[int]]]:
    """Indices of the first `count` real images of each class, by the samples' label of it."""
    found = first_of(theirs, np.array([other for _, other in classes], dtype=np.int64), count)
    return [(label, indices) for (label, _), (_, indices) in zip(classes, found, strict=True)]


def kept_beside(reference: Path) -> Path:
    """The path of the few real images that `ref` leaves beside a reference, for reports alone."""
    return reference.with_name(f"{reference.name.removesuffix('.npz')}.pictures.npz")


def keep_beside(images: Images, reference: Path) -> Path:
    """Write small pictures, (P, h, w, 3) uint8, and labels of a reference's images beside it; at most `KEPT`, 10 of a class.

    Raises:
        UserError: if they cannot be read or written.
    """
    labels = images.classes
    if labels is None:
        chosen = evenly(np.arange(images.count), ROWS * COLUMNS)
    else:
        classes = evenly(np.unique(labels), KEPT)
        rows = first_of(labels, classes, min(max(KEPT // len(classes), 1), COLUMNS))
        chosen = np.array(sorted(index for _, indices in rows for index in indices))
    found = Grid([], classes=[(None, chosen.tolist())]).fill(images.pick)
    arrays = {"arr_0": np.stack([found.small[index] for index in chosen.tolist()])}
    arrays |= {} if labels is None else {"arr_1": labels[chosen].astype(np.int64)}
    path = kept_beside(reference)
    write_npz(path, arrays, compressed=True)
    return path


def same_indices(files: Mapping[str, tuple[Path, str]], count: int) -> dict[str, dict[int, np.ndarray]]:
    """Small pictures of the same indices of several runs, by the runs' names, where an npz of these pixels is at hand.

    Args:
        files: by name, a result's JSON and the hash of the pixels that it is of; the npz lies beside it.
        count: how many images each run has.
    """
    indices, found = evenly(np.arange(count), COLUMNS).tolist(), {}
    for name, (result, pixels) in files.items():
        npz = result.with_suffix(".npz")
        if not npz.is_file() or find_run(npz, pixels) is None:
            continue
        try:
            found[name] = Grid([(None, indices)]).fill(open_images(npz).pick).kept
        except UserError:  # a damaged one has no pictures to show
            continue
    return found
