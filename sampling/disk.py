"""Room on the disk: how much a run still needs, and what to say when there is none."""

import errno
import os
from pathlib import Path

import numpy as np

from distributed import UserError
from sampling import archive, records

# A PNG of a photograph at our compression takes about 0.55 of its pixels, of a drawing much less; measured ones replace this.
PNG_SHARE = 0.6
MEASURED = 1000  # rows that tell how large PNGs are
FULL = (errno.ENOSPC, errno.EDQUOT)


def needed(folder: Path, count: int, missing: int, image_size: int, pngs: int) -> int:
    """Bytes that a run of `count` images will still take, `missing` of which are not drawn; the size of `pngs` is estimated."""
    pixels = archive.image_bytes(image_size)
    npz = archive.slot(count, image_size) + 8 * count
    for path in (archive.npz_path(folder), archive.part_path(folder)):
        if path.exists():
            npz -= min(npz, path.stat().st_blocks * 512)
    png = PNG_SHARE * pixels
    if records.table_path(folder).exists():
        sizes = records.table(folder, 0, min(count, MEASURED))["png_bytes"]
        png = float(np.mean(sizes[sizes > 0])) if sizes.any() else png
    block = 4096  # a file ends within one
    return npz + missing * records.ROW.itemsize + pngs * (int(png) + block)


def check_room(folder: Path, count: int, missing: int, image_size: int, with_png: bool) -> None:
    """Raises UserError if the file system of `folder`, which need not exist yet, has too little room for the run."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    system = os.statvfs(there)
    pngs = missing + records.without_png(folder, count) if with_png else 0
    room, bytes_needed = system.f_bavail * system.f_frsize, needed(folder, count, missing, image_size, pngs)
    alone = "; --no-png needs " + readable(needed(folder, count, missing, image_size, 0)) if pngs else ""
    if bytes_needed > room:
        raise UserError(
            f"{there} has {readable(room)} of room, and {max(missing, pngs):,} images need about {readable(bytes_needed)}{alone}"
        )
    if system.f_files and pngs > system.f_favail:
        raise UserError(f"{there} has room for {system.f_favail:,} more files, but {pngs:,} PNGs are missing; use --no-png")


def explained(error: OSError, folder: Path) -> UserError:
    """What a person can do about a file that could not be written or read."""
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    if error.errno in FULL:
        kept = "what is drawn is kept; make room and run the same command again"
        return UserError(f"no space is left for {folder} ({error.strerror}); {kept}{notes}")
    return UserError(f"{error.filename or folder}: {error.strerror or error}{notes}")


def readable(size: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
