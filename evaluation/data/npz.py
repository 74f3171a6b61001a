"""Members of npz files and zips, of which nothing is believed and nothing unpickled."""

import io
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fiducial import UserError, life, one_line, open_regular, write_whole
from fiducial.evaluation.data.damage import DAMAGED_ARCHIVE

MAX_MEMBER = 128 << 20  # bytes of one image file inside a zip
CHUNK = 1 << 24  # bytes that are read at once
MAX_HEADER = 4096  # bytes of an npy header's text


def images_in(path: Path, shape: tuple[int, int, int], ranges: list[tuple[int, int]]) -> Iterator[np.ndarray]:
    """One batch (B, H, W, 3) for each range of indices, which ascend, of `arr_0` of this shape but for the colours.

    Raises:
        UserError: if it is damaged.
    """
    count, height, width = shape
    image_bytes, position = height * width * 3, 0
    try:
        with zipfile.ZipFile(path) as archive, open_stored(archive, "arr_0.npy") as member:
            read_header(member)
            for first, last in ranges:
                skip(member, (first - position) * image_bytes)
                position = last
                batch = np.empty((last - first, height, width, 3), dtype=np.uint8)
                if read_fully(member, memoryview(batch).cast("B")) < batch.nbytes:
                    raise UserError(f"{path} ends before its {count} images do")
                yield batch
    except DAMAGED_ARCHIVE as error:
        raise UserError(f"{path} is damaged ({one_line(error)})") from error


def member_file(archive: zipfile.ZipFile, name: str, where: str) -> BinaryIO:
    """A file inside a zip, in memory: nothing is unpacked to disk, so no name in a zip can reach outside it.

    Raises:
        UserError: if it is damaged, encrypted, or too large for an image.
    """
    try:
        with archive.open(name) as member:
            data = member.read(MAX_MEMBER + 1)
    except DAMAGED_ARCHIVE as error:
        raise UserError(f"{where} cannot be read ({one_line(error)})") from error
    if len(data) > MAX_MEMBER:
        raise UserError(f"{where} unpacks to more than {MAX_MEMBER >> 20} MB, too much for one image")
    return io.BytesIO(data)


def open_stored(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    """A member to read from, which can seek at no cost if it is not compressed."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        return archive.open(info)
    file = open_regular(archive.filename)  # the caller closes it
    file.seek(info.header_offset + 26)
    name_length, extra_length = struct.unpack("<HH", file.read(4))
    file.seek(name_length + extra_length, io.SEEK_CUR)
    return file


def skip(member: BinaryIO, count: int) -> None:
    """Move `count` bytes on; a compressed member has to be read through."""
    if isinstance(member, zipfile.ZipExtFile):
        while count > 0 and (data := member.read(min(count, 1 << 20))):
            count -= len(data)
            life.sign()
    else:
        member.seek(count, io.SEEK_CUR)


def read_fully(member: BinaryIO, buffer: memoryview) -> int:
    """Fill `buffer` as far as there is data; the number of bytes read. Gives a sign of life for each chunk."""
    filled = 0
    while filled < len(buffer) and (got := member.readinto(buffer[filled : filled + CHUNK])):
        filled += got
        life.sign()
    return filled


def read_header(member: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of the npy array that `member` begins with, leaving it at the first byte of the data.

    Raises:
        ValueError: if it is no npy array, or is in Fortran order.
    """
    shape, dtype, fortran = read_any_header(member)
    if fortran and len(shape) > 1:
        raise ValueError("its array is in Fortran order; save numpy.ascontiguousarray of it")
    return shape, dtype


def read_any_header(member: BinaryIO) -> tuple[tuple[int, ...], np.dtype, bool]:
    """`read_header`, with whether the array is in Fortran order."""
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if (magic := np.lib.format.read_magic(member)) not in reader:
        raise ValueError(f"npy format {magic} is not supported")
    shape, fortran, dtype = reader[magic](member, max_header_size=MAX_HEADER)
    if any(length < 0 for length in shape):
        raise ValueError(f"its array claims the shape {shape}")
    return shape, dtype, fortran


def read_array(archive: zipfile.ZipFile, name: str, limit: int) -> np.ndarray:
    """A whole array of at most `limit` bytes out of an npz; nothing is unpickled, and no memory taken on a header's word.

    Raises:
        ValueError: if it is larger, of objects, or not as long as its header says.
    """
    with archive.open(name) as member:
        shape, dtype, fortran = read_any_header(member)
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        if size > limit:
            raise ValueError(f"{name} is {shape} {dtype}, larger than anything that belongs there")
        array = np.empty(shape, dtype, order="F" if fortran else "C")
        buffer = array.reshape(-1, order="A").view(np.uint8) if size else array
        if (size and read_fully(member, memoryview(buffer)) < size) or member.read(1):
            raise ValueError(f"{name} says {shape} {dtype}, but has another number of bytes")
    return array


def read_labels(archive: zipfile.ZipFile, count: int) -> tuple[np.ndarray | None, str | None]:
    """`arr_1` if it is one integer an image, else None and what it is: other tools put other things there."""
    with archive.open("arr_1.npy") as member:
        shape, dtype, _ = read_any_header(member)
    if shape != (count,) or dtype.kind not in "iu":
        return None, f"arr_1 is no labels: found {dtype} {shape}, and labels are {count:,} integers"
    return read_array(archive, "arr_1.npy", count * dtype.itemsize).astype(np.int64), None


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], compressed: bool = False) -> None:
    """Put an npz in its place in one step.

    Raises:
        UserError: if it cannot be written.
    """

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:
            (np.savez_compressed if compressed else np.savez)(file, **arrays)

    try:
        write_whole(path, write)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from error
