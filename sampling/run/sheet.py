"""The sheet of a run's newest images."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from fiducial import write_whole
from fiducial.sheets import side_by_side

COLUMNS, ROWS = 8, 4  # of the `signs.NEWEST` that are kept
SIDE = 96  # pixels of an image on it, at most


def sheet(pixels: np.ndarray) -> np.ndarray:
    """Some images side by side, the first ones of `pixels` (n, H, W, 3), n > 0; (height, width, 3) uint8, white between them."""
    some = np.clip(np.rint(pixels[: COLUMNS * ROWS]), 0, 255).astype(np.uint8)
    pictures = []
    for one in some:
        picture = Image.fromarray(one)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
        pictures.append(np.asarray(picture))
    return side_by_side([pictures[start : start + COLUMNS] for start in range(0, len(pictures), COLUMNS)])


def as_png(made: np.ndarray) -> bytes:
    """The file of a sheet."""
    buffer = io.BytesIO()
    Image.fromarray(made).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def size_of_sheet(pixels: np.ndarray, count: int) -> int:
    """Bytes of the file of a sheet of as many as it takes of `count` images that are like `pixels` (n, H, W, 3)."""
    some = np.resize(pixels, (min(count, COLUMNS * ROWS), *pixels.shape[1:]))
    return len(as_png(sheet(some)))


def write_sheet(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Put the sheet of some images at `path` as a PNG, in one step; return it. OSError if it cannot be written."""
    made = sheet(pixels)
    write_whole(path, lambda beside: beside.write_bytes(as_png(made)))
    return made
