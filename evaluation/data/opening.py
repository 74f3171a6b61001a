"""Opening images, whatever holds them: a folder, an npz, a zip or a dataset."""

import io
import itertools
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fiducial import UserError, no_file, one_line, open_regular
from fiducial.evaluation.data.advice import advice_on, held_instead, in_words, on_array, on_missing
from fiducial.evaluation.data.damage import DAMAGED_ARCHIVE
from fiducial.evaluation.data.folders import files_in, in_order
from fiducial.evaluation.data.image_files import BEGINNING, MAX_PIXELS, READ, read_image, sort_out
from fiducial.evaluation.data.images import Images
from fiducial.evaluation.data.npz import member_file, read_header, read_labels
from fiducial.evaluation.data.tables import PARQUET, find_table, is_saved

FIRST_VALUES = 1 << 24  # bytes of an array of another kind, which tell what it is


def open_images(path: Path, crop: int | None = None) -> Images:
    """Look at a folder (with its subfolders, by name), an npz (`arr_0`, and labels in `arr_1` if there), a zip or a dataset.

    Raises:
        UserError: if there is nothing there, or it is not uint8 RGB images.
    """
    if path.suffix == PARQUET and path.is_file():
        return _open_table(path, crop)
    if path.is_dir():
        return _open_folder(path, crop)
    if reason := no_file(path, "no such file or folder"):
        raise UserError(f"{path}: {reason}{on_missing(path)}")
    try:
        with zipfile.ZipFile(path) as archive:
            return _open_npz(path, archive, crop) if "arr_0.npy" in archive.namelist() else _open_zip(path, archive, crop)
    except DAMAGED_ARCHIVE as error:
        if advice := advice_on(path):
            raise UserError(f"{path} {advice}") from error
        raise UserError(f"{path} cannot be read as an npz or zip ({one_line(error)})") from error


def _open_folder(path: Path, crop: int | None) -> Images:
    def beginning(name: str) -> bytes:
        try:
            with open_regular(path / name) as file:
                return file.read(BEGINNING)
        except OSError:
            return b""

    names, not_read = ((), {}) if is_saved(path) else sort_out(files_in(path), beginning)
    if not names:
        if images := _open_table(path, crop):
            return images
        raise UserError(f"{path} holds no images ({READ}), and no dataset{held_instead(path, in_words(not_read))}")
    names = in_order(names)
    if shards := [file for pattern in (f"*{PARQUET}", f"data/*{PARQUET}") for file in path.glob(pattern)]:
        raise UserError(f"{path} holds images ({names[0]!r} first) beside {shards[0].name}; give the folder of what is meant")
    height, width, _ = read_image(path / names[0], str(path / names[0]), crop).shape
    return Images(path, len(names), height, width, names=names, crop=crop, not_read=in_words(not_read))


def _open_zip(path: Path, archive: zipfile.ZipFile, crop: int | None) -> Images:
    def beginning(name: str) -> bytes:
        try:
            with archive.open(name) as member:
                return member.read(BEGINNING)
        except DAMAGED_ARCHIVE:
            return b""

    members = archive.namelist()
    names, not_read = sort_out((name for name in members if not name.endswith("/")), beginning)
    names = in_order(names)
    if len(set(names)) < len(names):
        twice = next(name for name, other in itertools.pairwise(names) if name == other)
        raise UserError(f"{path} holds two files named {twice!r}")
    if not names:
        found = ", ".join(repr(name)[1:-1] for name in members[:5]) or "nothing"
        remedy = "; numpy.savez('OUT.npz', images) calls them arr_0" if any(name.endswith(".npy") for name in members) else ""
        raise UserError(f"{path} has no images: expected an array arr_0, or files ({READ}); found {found}{remedy}")
    where = f"{path}, {names[0]!r},"
    height, width, _ = read_image(member_file(archive, names[0], where), where, crop).shape
    return Images(path, len(names), height, width, names=names, crop=crop, not_read=in_words(not_read))


def _open_npz(path: Path, archive: zipfile.ZipFile, crop: int | None) -> Images:
    info = archive.getinfo("arr_0.npy")
    with archive.open(info) as member:
        shape, dtype = read_header(member)
        room = info.file_size - member.tell()
        first = _first_values(member, dtype)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise UserError(f"{path}: arr_0 expected as uint8 (N, H, W, 3); found {dtype} {shape}{on_array(shape, first)}")
    if shape[1] * shape[2] > MAX_PIXELS:
        raise UserError(f"{path}: its images are {shape[1]} x {shape[2]}, more than {MAX_PIXELS:,} pixels")
    if int(np.prod(shape, dtype=object)) != room:
        raise UserError(f"{path} is damaged: arr_0 says {shape}, but has {room:,} bytes")
    if crop is not None and shape[1:3] != (crop, crop):
        raise UserError(f"{path} holds images of {shape[1]} x {shape[2]}; --image-size {crop} crops files of images, not an npz")
    labels, no_labels = read_labels(archive, shape[0]) if "arr_1.npy" in archive.namelist() else (None, None)
    return Images(path, *shape[:3], labels=labels, no_labels=no_labels)


def _first_values(member: BinaryIO, dtype: np.dtype) -> np.ndarray:
    """The first values of an array that is not uint8, of which `member` is at the first byte; none of uint8, or of objects."""
    if dtype == np.uint8 or dtype.kind not in "biuf":
        return np.empty(0, np.uint8)
    data = member.read(FIRST_VALUES)
    return np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)


def _open_table(path: Path, crop: int | None) -> Images | None:
    """The images in a dataset; None if there is none."""
    if not (table := find_table(path)):
        return None
    if not table.count:
        raise UserError(f"{path} is a dataset without rows")
    try:
        ((first,),) = table.encoded([(0, 1)])
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)})") from error
    height, width, _ = read_image(io.BytesIO(first), f"{path}, row 0,", crop).shape
    return Images(path, table.count, height, width, table.labels, crop=crop, table=table, class_names=table.class_names)
