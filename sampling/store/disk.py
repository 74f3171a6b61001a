"""Room on the disk: how much a run still needs, and what to say when there is none."""

import errno
import os
from pathlib import Path

import numpy as np

from fiducial import NotAFile, UserError, nearest
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store import records

# A PNG of a photograph at our compression takes about 0.55 of its pixels, of a drawing much less; measured ones replace this.
PNG_SHARE = 0.6
MEASURED = 1000  # rows that tell how large PNGs are
BLOCK = 4096  # a file ends within one
FULL = (errno.ENOSPC, errno.EDQUOT)


def needed(folder: Path, count: int, missing: int, image_size: int, pngs: int, png: float | None = None, mark: int = 0) -> int:
    """Bytes that a run of `count` images will still take, `missing` of which are not drawn.

    Args:
        pngs: how many PNGs are to be written.
        png: what one takes, where that was measured.
    """
    npz = archive.size(count, image_size)
    for path in (archive.npz_path(folder), archive.part_path(folder)):
        if path.exists():
            npz -= min(npz, path.stat().st_blocks * 512)
    return npz + missing * records.ROW.itemsize + int(pngs * (png or one_png(folder, count, image_size, mark)))


def one_png(folder: Path, count: int, image_size: int, mark: int = 0) -> float:
    """Bytes that a PNG of this run takes on the disk, on average: as measured if there are some, else estimated."""
    if records.table_path(folder).exists():
        sizes = records.table(folder, 0, min(count, MEASURED), mark)["png_bytes"]
        if sizes.any():
            return on_disk(sizes[sizes > 0])
    return PNG_SHARE * archive.image_bytes(image_size) + BLOCK


def on_disk(sizes: np.ndarray) -> float:
    """Bytes that files of these sizes take, on average."""
    return float(np.mean(-(-sizes.astype(np.int64) // BLOCK) * BLOCK))


def room(folder: Path) -> int:
    """Bytes that are free for `folder`, which need not exist yet."""
    system = os.statvfs(nearest(folder))
    return system.f_bavail * system.f_frsize


def check_room(folder: Path, count: int, missing: int, image_size: int, with_png: bool, mark: int = 0) -> None:
    """Raise UserError if the file system of `folder`, which need not exist yet, has too little room for the run."""
    there = nearest(folder)
    system = os.statvfs(there)
    pngs = missing + records.without_png(folder, count, mark) if with_png else 0
    free, bytes_needed = room(folder), needed(folder, count, missing, image_size, pngs, mark=mark)
    alone = "; --no-png needs " + readable(needed(folder, count, missing, image_size, 0)) if pngs else ""
    if bytes_needed > free:
        raise UserError(
            f"{there} has {readable(free)} of room, and {max(missing, pngs):,} images need about {readable(bytes_needed)}{alone}"
        )
    if system.f_files and pngs > system.f_favail:
        raise UserError(f"{there} has room for {system.f_favail:,} more files, but {pngs:,} PNGs are missing; use --no-png")


def gone(told: Path) -> str:
    """A sentence on files of a run being drawn that are not in their place any more, and what to do; empty if none is missing.

    Args:
        told: the file in its folder that says what the run is.
    """
    remedy = "while it was being drawn; put it back, and the same command continues"
    if not told.parent.is_dir():
        return f"{told.parent} was renamed or removed {remedy}"
    return "" if told.exists() else f"{told} was renamed or removed {remedy}"


def explained(error: OSError, folder: Path, told: Path | None = None) -> UserError:
    """The error with what a person can do about a file that could not be written or read; `told` as of `gone`."""
    if told and isinstance(error, FileNotFoundError | NotADirectoryError) and (reason := gone(told)):
        return UserError(reason)
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    if error.errno in FULL:
        kept = "what is drawn is kept; make room and run the same command again"
        return UserError(f"no space is left for {folder} ({error.strerror}); {kept}{notes}")
    if isinstance(error, NotAFile):
        return UserError(f"{error.filename}: {error.strerror}; move it away{notes}")
    return UserError(f"{error.filename or folder}: {error.strerror or error}{notes}")


def readable(size: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
