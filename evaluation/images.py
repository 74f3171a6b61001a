"""Images from a folder, an npz, a zip or a dataset as a stream of uint8 batches, in file order, never all in memory."""

import errno
import hashlib
import io
import itertools
import os
import queue
import struct
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np

from fiducial import UserError, file_sha256, no_file, open_regular, shown
from fiducial.evaluation.advice import advice_on, held_instead, in_words, on_array, on_missing
from fiducial.evaluation.image_files import (
    BEGINNING,
    DAMAGED_ARCHIVE,
    MAX_FILE,
    MAX_PIXELS,
    READ,
    Header,
    NeedsCrop,
    image_header,
    is_hidden,
    one_line,
    read_image,
    sort_out,
)
from fiducial.evaluation.levels import LOOKED_AT, Levels, look
from fiducial.evaluation.numbering import Numbering, labels_of_folders, numbering_of_folders

if TYPE_CHECKING:
    from fiducial.evaluation.tables import Table

MAX_MEMBER = 128 << 20  # bytes of one image file inside a zip
MAX_HEADER = 4096  # bytes of an npy header's text
FIRST_VALUES = 1 << 24  # bytes of an array of another kind, which tell what it is
READER_THREADS = 4
READ_AHEAD = 2
MOST_NAMES = 100  # of one folder, as links give it
AT_ONCE = 256  # files that are handed to the threads at once

Item, Made = TypeVar("Item"), TypeVar("Made")


@dataclass(frozen=True)
class Headers:
    """What the headers of a set's files say: how many are of which lossy compression, and how many hold several pictures."""

    lossy: dict[str, int] = field(default_factory=dict)
    several: int = 0


@dataclass(frozen=True)
class Images:
    """A set of equally large RGB images, (height, width), in one order.

    `labels`, where the source has them, are (count,) int64, and `class_names` their classes by label, where it has those too.
    `names` are the files of a folder or of a zip, `table` has those of a dataset. Where `crop` is set, images of any size and
    colour are converted to RGB and cropped to it as ADM does. `not_read` are the files beside them that look like images and are
    not read, by number and kind.
    """

    path: Path
    count: int
    height: int
    width: int
    labels: np.ndarray | None = None
    names: tuple[str, ...] = ()
    crop: int | None = None
    table: "Table | None" = None
    not_read: str | None = None
    class_names: tuple[str, ...] = ()
    no_labels: str | None = None  # what stands in the labels' place and is none

    @property
    def resize(self) -> str | None:
        """What is done to the images, in words."""
        return f"RGB, ADM's centre crop to {self.crop}" if self.crop else None

    @property
    def classes(self) -> np.ndarray | None:
        """`labels`, or else those of a tree of folders, a class each: for training sets, as samples may lie in folders too."""
        return self.labels if self.labels is not None else labels_of_folders(self.names)

    @property
    def numbering(self) -> Numbering | None:
        """What `classes` mean; None where there are none."""
        return Numbering(self.class_names) if self.labels is not None else numbering_of_folders(self.names)

    @cached_property
    def headers(self) -> Headers:
        """What all files say before they are decoded, which takes seconds where decoding takes minutes. Of an npz, nothing.

        Raises:
            UserError: naming the first file that is damaged, or not like the others.
        """
        lossy, several = Counter(), 0
        if self.table or self.names:
            ranges = [(first, min(first + AT_ONCE, self.count)) for first in range(0, self.count, AT_ONCE)]
            for header in itertools.chain.from_iterable(self._read_each(ranges, self._header)):
                lossy.update([header.lossy] if header.lossy else [])
                several += header.several
        return Headers(dict(lossy), several)

    @cached_property
    def levels(self) -> Levels:
        """What levels the first images have, of more where those look like a cast; see `fiducial.evaluation.levels`.

        Raises:
            UserError: naming a file among them that is damaged, or not like the others.
        """
        return look(self.batches(LOOKED_AT))

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Images `start` to `stop` as (B, H, W, 3) uint8, B equal to `size` but for the last.

        Raises:
            UserError: naming the file that is damaged, or not like the others.
        """
        stop = self.count if stop is None else stop
        return self._read_ranges([(first, min(first + size, stop)) for first in range(start, stop, size)])

    def pick(self, indices: Iterable[int]) -> dict[int, np.ndarray]:
        """Single images (H, W, 3) by their index."""
        wanted = sorted(set(indices))
        found = self._read_ranges([(index, index + 1) for index in wanted])
        return {index: batch[0] for index, batch in zip(wanted, found, strict=True)}

    def _read_ranges(self, ranges: list[tuple[int, int]]) -> Iterator[np.ndarray]:
        """One batch for each range of indices; the ranges ascend."""
        return map(np.stack, self._read_each(ranges, self._pixels)) if self.table or self.names else self._from_npz(ranges)

    def _read_each(self, ranges: list[tuple[int, int]], read: Callable[[Path | BinaryIO, str], Made]) -> Iterator[list[Made]]:
        """What `read` makes of each file and its name in messages, range by range."""
        return self._from_table(ranges, read) if self.table else self._from_files(ranges, read)

    def content_sha256(self) -> str:
        """SHA-256 of the bytes that the images are in: of the npz or zip, or of a folder's or dataset's names and files in order.

        Raises:
            UserError: if an npz is damaged by its own checksum.
        """
        if self.table:
            return self._sha256_of([(str(path.name), path) for path in self.table.files])
        if self.path.is_file():
            with ThreadPoolExecutor(1) as pool:
                checked = pool.submit(self._check_npz if not self.names else lambda: None)
                digest = file_sha256(self.path)
                checked.result()
            return digest
        return self._sha256_of([(name, self.path / name) for name in self.names], MAX_FILE)

    @staticmethod
    def _sha256_of(files: list[tuple[str, Path]], most: int | None = None) -> str:
        """Of names and files in this order, each of at most so many bytes."""
        with ThreadPoolExecutor(READER_THREADS) as pool:
            digests = pool.map(lambda file: file_sha256(file[1], most), files)
            try:
                lines = "".join(f"{digest} {name}\n" for digest, (name, _) in zip(digests, files, strict=True))
            except OSError as error:
                raise UserError(f"{error.filename} cannot be read ({error.strerror})") from error
        return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()

    def _check_npz(self) -> None:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as member:
                while member.read(1 << 20):
                    pass
        except DAMAGED_ARCHIVE as error:
            raise UserError(f"{self.path} is damaged ({one_line(error)})") from error

    def _pixels(self, source: Path | BinaryIO, where: str) -> np.ndarray:
        pixels = read_image(source, where, self.crop)
        self._check_size(*pixels.shape[:2], where)
        return pixels

    def _header(self, source: Path | BinaryIO, where: str) -> Header:
        header = image_header(source, where, self.crop)
        self._check_size(header.height, header.width, where)
        return header

    def _check_size(self, height: int, width: int, where: str) -> None:
        if (height, width) != (self.height, self.width):
            first = repr(self.names[0]) if self.names else "row 0"
            raise NeedsCrop(f"{where} is {width} x {height}, but {first} is {self.width} x {self.height}")

    def _from_files(self, ranges: list[tuple[int, int]], read: Callable[[Path | BinaryIO, str], Made]) -> Iterator[list[Made]]:
        archive = zipfile.ZipFile(self.path) if self.path.is_file() else None

        def made(name: str) -> Made:
            where = f"{self.path}, {name!r}," if archive else str(self.path / name)
            return read(member_file(archive, name, where) if archive else self.path / name, where)

        try:
            with ThreadPoolExecutor(READER_THREADS) as pool:
                for first, last in ranges:
                    yield list(pool.map(made, self.names[first:last]))
        finally:
            if archive:
                archive.close()

    def _from_table(self, ranges: list[tuple[int, int]], read: Callable[[Path | BinaryIO, str], Made]) -> Iterator[list[Made]]:
        def made(row: tuple[int, bytes]) -> Made:
            return read(io.BytesIO(row[1]), f"{self.path}, row {row[0]},")

        try:
            with ThreadPoolExecutor(READER_THREADS) as pool:
                for (first, _), batch in zip(ranges, self.table.encoded(ranges), strict=True):
                    yield list(pool.map(made, enumerate(batch, start=first)))
        except DAMAGED_ARCHIVE as error:
            raise UserError(f"{self.path} is damaged ({one_line(error)})") from error

    def _from_npz(self, ranges: list[tuple[int, int]]) -> Iterator[np.ndarray]:
        image_bytes, position = self.height * self.width * 3, 0
        try:
            with zipfile.ZipFile(self.path) as archive, open_stored(archive, "arr_0.npy") as member:
                read_header(member)
                for first, last in ranges:
                    skip(member, (first - position) * image_bytes)
                    position = last
                    batch = np.empty((last - first, self.height, self.width, 3), dtype=np.uint8)
                    if read_fully(member, memoryview(batch).cast("B")) < batch.nbytes:
                        raise UserError(f"{self.path} ends before its {self.count} images do")
                    yield batch
        except DAMAGED_ARCHIVE as error:
            raise UserError(f"{self.path} is damaged ({one_line(error)})") from error


def open_images(path: Path, crop: int | None = None) -> Images:
    """Looks at a folder (with its subfolders, by name), an npz (`arr_0`, and labels in `arr_1` if there), a zip or a dataset.

    Raises:
        UserError: if there is nothing there, or it is not uint8 RGB images.
    """
    from fiducial.evaluation.tables import PARQUET, open_table

    if path.suffix == PARQUET and path.is_file():
        return open_table(path, crop)
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
    from fiducial.evaluation.tables import PARQUET, is_saved, open_table

    def beginning(name: str) -> bytes:
        try:
            with open_regular(path / name) as file:
                return file.read(BEGINNING)
        except OSError:
            return b""

    names, not_read = ((), {}) if is_saved(path) else sort_out(files_in(path), beginning)
    if not names:
        if images := open_table(path, crop):
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


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Paths sorted folder by folder, the same for a folder and for a zip of it."""
    return tuple(sorted(names, key=lambda name: PurePosixPath(name).parts))


def files_in(folder: Path) -> Iterator[str]:
    """The files in a folder and its subfolders, as paths relative to it; links are followed, but never in a circle.

    However deep it is: subfolders wait in a list, each with the folders that it lies in, as nested pairs.

    Raises:
        UserError: if a folder in it cannot be read, or links lead to one from so many that it would be read for ever.
    """
    waiting: list[tuple[str, tuple]] = [("", ())]
    reached: Counter[tuple[int, int]] = Counter()
    while waiting:
        inner, above = waiting.pop()
        path = os.path.join(folder, inner)
        try:
            own, entries = os.stat(path), list(os.scandir(path))
        except OSError as error:
            if is_hidden(inner):  # of which nothing is read
                continue
            reason = error.strerror
            if error.errno == errno.ENAMETOOLONG:
                reason = f"it is too deep: its path has {len(os.fsencode(path)):,} bytes"
            raise UserError(f"{shown(Path(path))} cannot be read ({reason})") from error
        reached[(place := (own.st_dev, own.st_ino))] += 1
        if reached[place] > MOST_NAMES and is_hidden(inner):
            continue
        if reached[place] > MOST_NAMES:
            raise UserError(f"{shown(Path(path))}: links lead to this folder from more than {MOST_NAMES} others; remove some")
        chain = above
        while chain and not os.path.samestat(chain[0], own):
            chain = chain[1]
        for entry in entries if not chain else ():
            if entry.is_dir():
                waiting.append((f"{inner}{entry.name}/", (own, above)))
            else:  # also a pipe, or a link to nothing, which is an error later where it is called as an image is
                yield inner + entry.name


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
    """Moves `count` bytes on; a compressed member has to be read through."""
    if isinstance(member, zipfile.ZipExtFile):
        while count > 0 and (data := member.read(min(count, 1 << 20))):
            count -= len(data)
    else:
        member.seek(count, io.SEEK_CUR)


def read_fully(member: BinaryIO, buffer: memoryview) -> int:
    """Fills `buffer` as far as there is data; the number of bytes read."""
    filled = 0
    while filled < len(buffer) and (got := member.readinto(buffer[filled:])):
        filled += got
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


def read_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, made by a thread of its own while the consumer works, a few in advance. What it raises arrives here."""
    waiting: queue.Queue = queue.Queue(READ_AHEAD)
    stopped = threading.Event()

    def put(entry: tuple) -> None:
        while not stopped.is_set():
            try:
                return waiting.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    return
            put((None, StopIteration()))
        except BaseException as error:  # handed on to the consumer
            put((None, error))

    thread = threading.Thread(target=produce, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stopped.set()
        thread.join()
