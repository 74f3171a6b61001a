"""Holding every image of a run against what was recorded of it, and restoring one copy from the other. No torch.

An image has two copies: its place in the npz, and its PNG (with --no-png, the first alone).
"""

import os
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fiducial import NO_FILE, no_file, read_bytes
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store import records
from fiducial.sampling.store.png import png_bytes, png_path, read_png, write_png

CHECKED_AT_ONCE = 256
THREADS = min(4, max(2, os.cpu_count() or 1))  # which decode PNGs, so that more than cores are slower
SECOND_LOOK_SECONDS = 1.0  # after which a network file system shows what other hosts have written


@dataclass(frozen=True)
class Copies:
    """Where the images of a run are; `npz` is a descriptor, for writing too if anything is to be mended."""

    folder: Path
    npz: int
    image_size: int

    def in_npz(self, row: np.void) -> bytes | None:
        """The pixels in the npz, if they are as recorded."""
        pixels = archive.read_pixels(self.npz, int(row["index"]), self.image_size)
        return pixels if is_as_recorded(pixels, row) else None

    def png_file_is_whole(self, row: np.void) -> bool:
        """Whether the PNG is the file that was written, by its length and CRC-32: a tenth of the time of decoding it."""
        try:
            content = read_bytes(png_path(self.folder, int(row["index"])), int(row["png_bytes"]))
        except OSError:
            return False
        return len(content) == row["png_bytes"] and zlib.crc32(content) == row["png_crc"]

    def in_png(self, row: np.void) -> bytes | None:
        """The pixels in the PNG, if they are as recorded."""
        pixels = read_png(png_path(self.folder, int(row["index"])), self.image_size)
        return pixels if is_as_recorded(pixels, row) else None


def is_as_recorded(pixels: bytes | None, row: np.void) -> bool:
    """By the CRC first, which is a third of the work where the answer is no: a place that was never filled, most often."""
    return pixels is not None and zlib.crc32(pixels) == row["pixels_crc"] and records.digest(pixels) == row["sha256"].tobytes()


@dataclass
class Mended:
    """Outcome of `mend`: indices whose pixels are nowhere; copies restored, in the npz and as PNG; rows to be recorded for
    that."""

    lost: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    pngs: list[int] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)


def mend(copies: Copies, rows: np.ndarray, with_png: bool, older: np.ndarray, check: Callable[[int], object]) -> Mended:
    """Make every image whole in the npz, and as a PNG if those are wanted, as far as one of its copies is.

    A PNG is read only where the npz is not whole or where `older` (N,) bool is set: it was written by an earlier session.
    Images of which nothing is recorded count as lost; what is lost at first sight is looked at again a moment later.

    Args:
        rows: what is recorded, (N,) of `records.ROW`; those that are lost are named by their position.
        check: called with the number of images behind us, every so often.
    """
    found = Mended()
    with ThreadPoolExecutor(THREADS) as pool:

        def look(positions: np.ndarray, is_first: bool) -> list[int]:
            lost = []
            for start in range(0, len(positions), CHECKED_AT_ONCE):
                some = positions[start : start + CHECKED_AT_ONCE].tolist()
                results = pool.map(lambda position: mend_one(copies, rows[position], with_png, older[position], found), some)
                lost += [position for position, whole in zip(some, results, strict=True) if not whole]
                if found.slots:
                    first, last = rows["index"][[some[0], some[-1]]].tolist()
                    archive.begin_flush(copies.npz, range(first, last + 1), copies.image_size)
                check(len(some) if is_first else 0)
            return lost

        found.lost = look(np.arange(len(rows)), is_first=True)
        if found.lost:
            time.sleep(SECOND_LOOK_SECONDS)
            found.lost = look(np.array(found.lost), is_first=False)
    return found


def mend_one(copies: Copies, row: np.void, with_png: bool, is_older: bool, found: Mended) -> bool:
    """Whether the image is whole, after restoring one copy from the other. Called from several threads."""
    if not row["check"]:
        return False
    index, pixels = int(row["index"]), copies.in_npz(row)
    png_is_whole = not is_older or copies.png_file_is_whole(row)
    if pixels is None:
        if not row["png_bytes"] or (pixels := copies.in_png(row)) is None:
            return False
        archive.write_pixels(copies.npz, index, pixels, copies.image_size)
        found.slots.append(index)
    if png_is_whole:
        return True
    path = png_path(copies.folder, index)
    if with_png or path.exists():
        size = copies.image_size
        encoded = png_bytes(np.frombuffer(pixels, dtype=np.uint8).reshape(size, size, 3))
        write_png(path, encoded)
        found.pngs.append(index)
        found.rows.append(records.row(index, pixels, int(row["pixels_crc"]), (zlib.crc32(encoded), len(encoded))))
    elif row["png_bytes"]:  # not wanted any more, and so not missing
        found.rows.append(records.row(index, pixels, int(row["pixels_crc"])))
    return True


def verify(copies: Copies, rows: np.ndarray, has_npz: bool) -> Iterator[tuple[int, str]]:
    """Every image that is not as recorded, by its pixels: its index, and what is wrong. rows: of images that are done."""

    def examine(row: np.void) -> list[str]:
        wrong = []
        if has_npz and copies.in_npz(row) is None:
            wrong.append("damaged in the npz")
        if row["png_bytes"] and copies.in_png(row) is None:
            reason = no_file(png_path(copies.folder, int(row["index"])))
            wrong.append("PNG is missing" if reason == NO_FILE else reason or "damaged PNG")
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        for row, wrong in zip(rows, pool.map(examine, rows), strict=True):
            yield from ((int(row["index"]), what) for what in wrong)
