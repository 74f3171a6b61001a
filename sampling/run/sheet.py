"""The sheet of a run's newest images."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from fiducial import write_whole

COLUMNS, ROWS = 8, 4  # of the `signs.NEWEST` that are kept
SIDE = 96  # pixels of an image on it, at most
GAP = 2


def sheet(pixels: np.ndarray) -> np.ndarray:
    """Some images side by side, the first ones of `pixels` (n, H, W, 3), n > 0; (height, width, 3) uint8, white between them."""
    some = np.clip(np.rint(pixels[: COLUMNS * ROWS]), 0, 255).astype(np.uint8)
    pictures = []
    for one in some:
        picture = Image.fromarray(one)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
        pictures.append(picture)
    width, height = pictures[0].size
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for place, picture in enumerate(pictures):
        whole.paste(picture, (place % columns * (width + GAP), place // columns * (height + GAP)))
    return np.asarray(whole)


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
