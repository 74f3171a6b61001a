"""The images that a report shows."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

THUMBNAIL, SMALL = 96, 64  # pixels; larger images are shown reduced, those of all classes more so
MOST = 3_000  # small pictures of all classes together, which bounds the page
OF_A_CLASS = 4  # of them at most
AT_ONCE = 32  # images of full size that are in memory

Rows = list[tuple[int | None, list[int]]]


def thumbnail(pixels: np.ndarray, size: int = THUMBNAIL) -> np.ndarray:
    """Pixels (H, W, 3) uint8 of an image that is no larger than `size` pixels to a side."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    return np.array(image)


def evenly(items: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the items (N,), evenly spaced, the first and the last among them."""
    return items[np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))] if len(items) else items


@dataclass
class Grid:
    """A few images of each of a few classes, and small ones of all.

    `rows`: label (None if unknown) and indices; `classes` the same of every class, where `rows` are not of every one. `kept` and
    `small` are the pictures of either, (h, w, 3) uint8 by index. `said` is a sentence on where they come from, or why there are
    none.
    """

    rows: Rows
    kept: dict[int, np.ndarray] = field(default_factory=dict)
    classes: Rows = field(default_factory=list)
    small: dict[int, np.ndarray] = field(default_factory=dict)
    said: str = ""

    @classmethod
    def choose(cls, labels: np.ndarray | None, count: int, rows: int, columns: int) -> "Grid":
        """The first `columns` images of each of up to `rows` classes, evenly chosen; of the whole where there are not several."""
        if labels is None or (labels == labels[0]).all():
            indices = list(range(min(count, rows * columns)))
            return cls([(None, indices[start : start + columns]) for start in range(0, len(indices), columns)])
        return cls(first_of(labels, evenly(np.unique(labels), rows), columns))

    def of_every_class(self, labels: np.ndarray) -> "Grid":
        """The same with the first few images of every class beside; of `MOST` classes, evenly chosen, where there are more."""
        found = np.unique(labels)
        if len(found) > len(self.rows) and self.rows[0][0] is not None:
            self.classes = first_of(labels, evenly(found, MOST), min(max(MOST // len(found), 1), OF_A_CLASS))
        return self

    def fill(self, pick: Callable[[list[int]], dict[int, np.ndarray]]) -> "Grid":
        """Get the images, (H, W, 3) by index, from `pick`, a few at once, and keep them reduced."""
        large, small = ({index for _, indices in rows for index in indices} for rows in (self.rows, self.classes))
        wanted = sorted(large | small)
        for start in range(0, len(wanted), AT_ONCE):
            for index, pixels in pick(wanted[start : start + AT_ONCE]).items():
                if index in large:
                    self.kept[index] = thumbnail(pixels)
                if index in small:
                    self.small[index] = thumbnail(pixels, SMALL)
        return self


def first_of(labels: np.ndarray, classes: np.ndarray, count: int) -> Rows:
    """The indices of the first `count` images of each of these classes."""
    return [(int(label), np.flatnonzero(labels == label)[:count].tolist()) for label in classes]
