"""Images from a folder or an npz as a stream of uint8 batches, in file order, never all in memory."""

import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from distributed import UserError

# What zipfile and numpy raise on damaged archives, between them.
DAMAGED_ARCHIVE = (zipfile.BadZipFile, zlib.error, tokenize.TokenError, OSError, ValueError, EOFError, RuntimeError)
SUFFIXES = {".png", ".jpg", ".jpeg"}
READER_THREADS = 4


@dataclass(frozen=True)
class Images:
    """A set of equally large RGB images. `labels`, where the source has them, are (count,) int64."""

    path: Path
    count: int
    height: int
    width: int
    labels: np.ndarray | None = None
    files: tuple[Path, ...] = ()

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """(B, H, W, 3) uint8, B equal to `size` but for the last.

        Raises:
            UserError: naming the file that is damaged, or not like the others.
        """
        return self._from_files(size) if self.files else self._from_npz(size)

    def _from_files(self, size: int) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(READER_THREADS) as pool:
            for start in range(0, self.count, size):
                yield np.stack(list(pool.map(self._read, self.files[start : start + size])))

    def _read(self, file: Path) -> np.ndarray:
        pixels = read_image(file)
        if pixels.shape != (self.height, self.width, 3):
            raise UserError(
                f"{file} is {pixels.shape[1]} x {pixels.shape[0]}, but {self.files[0].name} is {self.width} x {self.height}; "
                "all images must have one size"
            )
        return pixels

    def _from_npz(self, size: int) -> Iterator[np.ndarray]:
        image_bytes = self.height * self.width * 3
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as member:
                read_header(member)
                for start in range(0, self.count, size):
                    wanted = min(size, self.count - start)
                    if len(data := member.read(wanted * image_bytes)) < wanted * image_bytes:
                        raise UserError(f"{self.path} ends before its {self.count} images do")
                    yield np.frombuffer(data, dtype=np.uint8).reshape(wanted, self.height, self.width, 3)
        except DAMAGED_ARCHIVE as error:
            raise UserError(f"{self.path} is damaged ({error})") from error


def open_images(path: Path) -> Images:
    """Looks at a folder (with its subfolders, by name) or an npz (`arr_0`, and labels in `arr_1` if there).

    Raises:
        UserError: if there is nothing there, or it is not uint8 RGB images.
    """
    if path.is_dir():
        files = tuple(
            sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
        )
        if not files:
            raise UserError(f"{path} holds no PNG or JPEG images")
        height, width, _ = read_image(files[0]).shape
        return Images(path, len(files), height, width, files=files)
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    try:
        with zipfile.ZipFile(path) as archive:
            if "arr_0.npy" not in archive.namelist():
                raise UserError(
                    f"{path} has no images: expected an array arr_0, found {', '.join(archive.namelist()) or 'nothing'}"
                )
            with archive.open("arr_0.npy") as member:
                shape, dtype = read_header(member)
            labels = read_labels(archive, shape[0]) if "arr_1.npy" in archive.namelist() else None
    except DAMAGED_ARCHIVE as error:
        raise UserError(f"{path} is not a whole npz ({error})") from error
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise UserError(f"{path}: arr_0 expected as uint8 (N, H, W, 3); found {dtype} {shape}")
    return Images(path, *shape[:3], labels=labels)


def read_header(member: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of the npy array that `member` begins with, leaving it at the first byte of the data.

    Raises:
        ValueError: if it is no npy array, or is in Fortran order.
    """
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if (magic := np.lib.format.read_magic(member)) not in reader:
        raise ValueError(f"npy format {magic} is not supported")
    shape, fortran, dtype = reader[magic](member)
    if fortran:
        raise ValueError("its array is in Fortran order")
    return shape, dtype


def read_labels(archive: zipfile.ZipFile, count: int) -> np.ndarray | None:
    """`arr_1` if it is one integer an image, else None: other tools put other things there."""
    with archive.open("arr_1.npy") as member:
        shape, dtype = read_header(member)
        if shape != (count,) or dtype.kind not in "iu":
            return None
        return np.frombuffer(member.read(count * dtype.itemsize), dtype=dtype).astype(np.int64)


def read_image(file: Path) -> np.ndarray:
    """One image as (H, W, 3) uint8.

    Raises:
        UserError: if it is damaged or not 8-bit RGB.
    """
    try:
        with Image.open(file) as image:
            if image.mode != "RGB":
                raise UserError(f"{file} is not an 8-bit RGB image (its mode is {image.mode})")
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # all of which Pillow raises
        raise UserError(f"{file} cannot be read as an image ({error})") from error
