"""The npz of a run, in which every image has its place from the start: an uncompressed zip, written by many and out of order.

    0        local header of arr_0.npy, filled up so that pixels begin on a page; npy header (N, H, W, 3) uint8
    65536    pixels, in index order
    ...      arr_1.npy: labels (N,) int64; the zip's directory

Everything but the pixels follows from their CRCs and the labels, and is written last. Until then the file is RUN.npz.part.
Images whose size is a multiple of 64 fill whole pages of 4,096 bytes; neighbours on one page can lose each other's writes on
a network file system, which the check of every image at the end finds.
"""

import errno
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from fiducial import open_regular, open_to_write

PIXELS_AT = 65536  # a whole number of pages on any machine
MEMBER, LABELS = b"arr_0.npy", b"arr_1.npy"
DOS_DATE = 33  # 1 January 1980: equal images give equal bytes
ZIP64 = 0xFFFFFFFF
PADDING_ID = 0xD935  # what zipalign calls its extra field
CRC_POLYNOMIAL = 0xEDB88320


def npz_path(folder: Path) -> Path:
    """Where a run's npz stands: beside its folder."""
    return folder.parent / f"{folder.name}.npz"


def part_path(folder: Path) -> Path:
    """Its name until it is whole."""
    return folder.parent / f"{folder.name}.npz.part"


def slot(index: int, image_size: int) -> int:
    """Where the pixels of an image begin in the file."""
    return PIXELS_AT + index * image_bytes(image_size)


def image_bytes(image_size: int) -> int:
    return 3 * image_size**2


def write_pixels(file: int, index: int, pixels: bytes | memoryview, image_size: int) -> None:
    """Put an image in its place; `file` is a descriptor that all threads may share."""
    at = slot(index, image_size)
    left = memoryview(pixels)
    while left:
        written = os.pwrite(file, left, at)
        left, at = left[written:], at + written


def read_pixels(file: int, index: int, image_size: int) -> bytes:
    """The bytes in an image's place: none where nothing was written, or the file ends before."""
    at = slot(index, image_size)
    try:
        if os.fstat(file).st_size < at + image_bytes(image_size):  # or memory would be taken for what is not there
            return b""
        if os.lseek(file, at, os.SEEK_DATA) >= at + image_bytes(image_size):
            return b""
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing is there, nor further on
            return b""
    return os.pread(file, image_bytes(image_size), slot(index, image_size))


def size(count: int, image_size: int) -> int:
    """Bytes of a whole npz."""
    _, tail = frame(np.zeros(1), image_size, np.zeros(1, np.uint32))
    return slot(count, image_size) + len(tail) + 8 * (count - 1)


def begin_flush(file: int, indices: range, image_size: int) -> None:
    """Let the disk begin with images that were written, so that the end of the run need not wait for all of them."""
    if hasattr(os, "posix_fadvise"):  # Linux takes this for a reason to write them out
        length = len(indices) * image_bytes(image_size)
        os.posix_fadvise(file, slot(indices.start, image_size), length, os.POSIX_FADV_DONTNEED)


def frame(labels: np.ndarray, image_size: int, crcs: np.ndarray) -> tuple[bytes, bytes]:
    """The bytes before and after the pixels of a whole npz; crcs: of each image's pixels, (N,) uint32."""
    header = io.BytesIO()
    shape = (len(labels), image_size, image_size, 3)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    array = io.BytesIO()
    np.lib.format.write_array(array, labels.astype(np.int64))
    npy, labels_npy = header.getvalue(), array.getvalue()

    pixels_bytes = len(labels) * image_bytes(image_size)
    first = _Member(MEMBER, combine_crcs(zlib.crc32(npy), crcs, image_bytes(image_size)), len(npy) + pixels_bytes, 0)
    second = _Member(LABELS, zlib.crc32(labels_npy), len(labels_npy), PIXELS_AT + pixels_bytes)
    head = first.local_header(PIXELS_AT - len(npy)) + npy
    tail = second.local_header() + labels_npy
    directory = first.directory_entry() + second.directory_entry()
    return head, tail + directory + _end(2, len(directory), PIXELS_AT + pixels_bytes + len(tail))


def complete(file: Path, path: Path, frame: tuple[bytes, bytes]) -> None:
    """Put what is not pixels around them, unless it is there, and give the file its name."""
    if file == path and has_frame(path, frame):
        return
    head, tail = frame
    with open(open_to_write(file, os.O_RDWR), "r+b") as part:
        part.write(head)
        part.seek(-len(tail) if file == path else 0, os.SEEK_END)
        part.write(tail)
        part.flush()
        os.fsync(part.fileno())
    os.replace(file, path)


def has_frame(path: Path, frame: tuple[bytes, bytes]) -> bool:
    """Whether a file begins and ends as a whole npz."""
    head, tail = frame
    with open_regular(path) as file:
        if file.seek(0, os.SEEK_END) < len(head) + len(tail):
            return False
        file.seek(0)
        begins = file.read(len(head)) == head
        file.seek(-len(tail), os.SEEK_END)
        return begins and file.read() == tail


class _Member:
    """One file in the zip, stored as it is, with 64-bit sizes."""

    def __init__(self, name: bytes, crc: int, size: int, offset: int):
        self._name, self._crc, self._size, self._offset = name, crc, size, offset

    def local_header(self, length: int | None = None) -> bytes:
        """With an extra field that fills it up to `length` bytes, if given."""
        extra = struct.pack("<HHQQ", 1, 16, self._size, self._size)
        if length is not None:
            room = length - 30 - len(self._name) - len(extra) - 4
            extra += struct.pack("<HH", PADDING_ID, room) + bytes(room)
        fields = (0x04034B50, 45, 0, 0, 0, DOS_DATE, self._crc, ZIP64, ZIP64, len(self._name), len(extra))
        return struct.pack("<IHHHHHIIIHH", *fields) + self._name + extra

    def directory_entry(self) -> bytes:
        extra = struct.pack("<HHQQQ", 1, 24, self._size, self._size, self._offset)
        unix_file = (3 << 8) + 45, 0o600 << 16
        fields = (0x02014B50, unix_file[0], 45, 0, 0, 0, DOS_DATE, self._crc, ZIP64, ZIP64, len(self._name), len(extra))
        return struct.pack("<IHHHHHHIIIHHHHHII", *fields, 0, 0, 0, unix_file[1], ZIP64) + self._name + extra


def _end(entries: int, directory_bytes: int, directory_at: int) -> bytes:
    record = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, entries, entries, directory_bytes, directory_at)
    locator = struct.pack("<IIQI", 0x07064B50, 0, directory_at + directory_bytes, 1)
    return record + locator + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, entries, entries, ZIP64, ZIP64, 0)


def combine_crcs(first: int, crcs: np.ndarray, size: int) -> int:
    """CRC-32 of a text followed by others of `size` bytes each, from their CRCs alone.

    A CRC is linear over GF(2): crc(a + b) = shift(crc(a), len(b)) ^ crc(b). Pairs are joined until one is left.
    """
    level = np.concatenate([np.zeros(-len(crcs) % (1 << max(len(crcs) - 1, 0).bit_length()), np.uint32), crcs.astype(np.uint32)])
    shift = _shift(size)
    while len(level) > 1:
        level = _apply(shift, level[::2]) ^ level[1::2]
        shift = _apply(shift, shift)
    return int(_apply(_shift(size * len(crcs)), np.array([first], np.uint32))[0] ^ level[0])


def _shift(size: int) -> np.ndarray:
    """The matrix, as 32 columns of uint32, that takes crc(a) to its part in crc(a + b) for b of `size` bytes."""
    one_bit = np.array([CRC_POLYNOMIAL, *(1 << np.arange(31, dtype=np.uint64))], dtype=np.uint32)
    power, result = one_bit, (1 << np.arange(32, dtype=np.uint64)).astype(np.uint32)
    bits = 8 * size
    while bits:
        if bits & 1:
            result = _apply(power, result)
        power = _apply(power, power)
        bits >>= 1
    return result


def _apply(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    out = np.zeros_like(vectors)
    for bit in range(32):
        out ^= np.where(vectors >> np.uint32(bit) & np.uint32(1), matrix[bit], np.uint32(0))
    return out
