"""The images that a report shows."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

THUMBNAIL = 96  # pixels; larger images are shown reduced


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Pixels (H, W, 3) uint8 of an image that is no larger than it is shown."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return np.array(image)


@dataclass
class Grid:
    """A few images of each of a few classes. `rows`: label (None if unknown) and indices."""

    rows: list[tuple[int | None, list[int]]]
    kept: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def choose(cls, labels: np.ndarray | None, count: int, rows: int, columns: int) -> "Grid":
        """The first `columns` images of each of up to `rows` classes, evenly chosen; of the whole where there are not several."""
        if labels is None or (labels == labels[0]).all():
            indices = list(range(min(count, rows * columns)))
            return cls([(None, indices[start : start + columns]) for start in range(0, len(indices), columns)])
        classes = np.unique(labels)
        shown = classes[np.unique(np.linspace(0, len(classes) - 1, rows).round().astype(int))]
        return cls([(int(label), np.flatnonzero(labels == label)[:columns].tolist()) for label in shown])

    def fill(self, pick: Callable[[list[int]], dict[int, np.ndarray]]) -> None:
        """Get the images, (H, W, 3) by index, from `pick`."""
        self.kept = pick([index for _, indices in self.rows for index in indices])
