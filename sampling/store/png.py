"""PNGs of a run, by index, each whole or absent."""

import io
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image

from fiducial import open_new, open_regular, remove_leftovers, require_place
from fiducial.sampling.store.npz import image_bytes

FAN_OUT = 100_000  # images a folder: more make every listing, deletion and copy of it slow
PNG_COMPRESSION = 1  # zlib's fastest: larger files by a tenth or so, written in under half the time
UNFINISHED = re.compile(r"\.[0-9]{6,}\.png\.tmp")  # as `write_png` calls it


def png_path(folder: Path, index: int) -> Path:
    """Where an image's PNG stands; sorting by path is sorting by index, up to ten digits."""
    name = f"{index:06d}.png"
    first = index // FAN_OUT * FAN_OUT
    return folder / f"from-{first:010d}" / name if first else folder / name


def most_png_bytes(image_size: int) -> int:
    """Bytes that the PNG of an image may have, also when others have saved it anew."""
    return 2 * image_bytes(image_size) + (1 << 20)


def png_bytes(pixels: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=PNG_COMPRESSION)
    return buffer.getvalue()


def write_png(path: Path, content: bytes) -> None:
    """Put a PNG in its place in one step. What a killed process left beside it is replaced when it is drawn again, or removed
    in the end."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        try:
            file = open_new(beside)
        except FileNotFoundError:
            if path.parent.name.startswith("from-"):
                path.parent.mkdir(exist_ok=True)
            file = open_new(beside)
        with file:
            file.write(content)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, IsADirectoryError):
            require_place(path)
        raise


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes have left of PNGs and other files. For rank 0, which holds the folder, when no rank writes
    images any more."""
    remove_leftovers(folder)
    for place in (folder, *folder.glob("from-*")):
        for entry in os.scandir(place):
            if UNFINISHED.fullmatch(entry.name):
                os.unlink(entry)


def read_png(path: Path, image_size: int) -> bytes | None:
    """The pixels of a PNG of ours, (image_size, image_size, 3) uint8 in C order; None if it is missing or not whole."""
    try:
        with open_regular(path, most_png_bytes(image_size)) as file, Image.open(file, formats=("PNG",)) as image:
            return image.tobytes() if image.size == (image_size, image_size) and image.mode == "RGB" else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # all of which Pillow raises
        return None
