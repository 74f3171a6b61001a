"""A set of images as a stream of uint8 batches, in file order, never all in memory."""

import hashlib
import io
import itertools
import queue
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from fiducial import UserError, file_sha256, life, one_line
from fiducial.evaluation.data.damage import DAMAGED_ARCHIVE
from fiducial.evaluation.data.image_files import (
    MAX_FILE,
    Header,
    NeedsCrop,
    image_header,
    read_image,
)
from fiducial.evaluation.data.levels import LOOKED_AT, Levels, look
from fiducial.evaluation.data.npz import images_in, member_file
from fiducial.evaluation.data.numbering import Numbering, labels_of_folders, numbering_of_folders
from fiducial.evaluation.data.runs import known_pixels
from fiducial.evaluation.data.tables import Table

READER_THREADS = 4
READ_AHEAD = 2
AT_ONCE = 256  # files that are handed to the threads at once

Item, Made = TypeVar("Item"), TypeVar("Made")


@dataclass(frozen=True)
class Headers:
    """Counts over the headers of a set's files: how many are of which lossy compression, and how many hold several pictures."""

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
    table: Table | None = None
    not_read: str | None = None
    class_names: tuple[str, ...] = ()
    no_labels: str | None = None  # what stands in the labels' place and is none

    @property
    def resize(self) -> str | None:
        """The crop or conversion of the images, in words."""
        return f"RGB, ADM's centre crop to {self.crop}" if self.crop else None

    @property
    def classes(self) -> np.ndarray | None:
        """`labels`, or else those of a tree of folders, a class each: for training sets, as samples may lie in folders too."""
        return self.labels if self.labels is not None else labels_of_folders(self.names)

    @property
    def numbering(self) -> Numbering | None:
        """The meaning of `classes`; None where there are none."""
        return Numbering(self.class_names) if self.labels is not None else numbering_of_folders(self.names)

    @cached_property
    def headers(self) -> Headers:
        """The headers of all files, which take seconds where decoding takes minutes; of an npz there are none.

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
        """The levels of the first images, of more where those look like a cast; see `fiducial.evaluation.data.levels`.

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
        return (
            map(np.stack, self._read_each(ranges, self._pixels))
            if self.table or self.names
            else images_in(self.path, (self.count, self.height, self.width), ranges)
        )

    def _read_each(self, ranges: list[tuple[int, int]], read: Callable[[Path | BinaryIO, str], Made]) -> Iterator[list[Made]]:
        """The value of `read` for each file and its name in messages, range by range."""
        return self._from_table(ranges, read) if self.table else self._from_files(ranges, read)

    def known_pixels(self) -> str | None:
        """The hash of the images' own hashes where they are the npz of a run that has recorded it."""
        return None if self.table or self.names else known_pixels(self.path, self.count)

    def content_sha256(self) -> str:
        """SHA-256 of the bytes that the images are in: of the npz or zip, or of a folder's or dataset's names and files in order.

        Raises:
            UserError: if an npz is damaged by its own checksum.
        """
        if self.table:
            return _sha256_of([(str(path.name), path) for path in self.table.files])
        if self.path.is_file():
            with ThreadPoolExecutor(1) as pool:
                checked = pool.submit(_check_npz, self.path) if not self.names else None
                digest = file_sha256(self.path)
                if checked:
                    checked.result()
            return digest
        return _sha256_of([(name, self.path / name) for name in self.names], MAX_FILE)

    def _pixels(self, source: Path | BinaryIO, where: str) -> np.ndarray:
        pixels = read_image(source, where, self.crop)
        life.sign()
        self._check_size(*pixels.shape[:2], where)
        return pixels

    def _header(self, source: Path | BinaryIO, where: str) -> Header:
        header = image_header(source, where, self.crop)
        life.sign()
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


@dataclass(frozen=True)
class Seen:
    """Images that are gone, as far as a result speaks of them, like `Images`. `rounded` is whether they were uint8."""

    path: Path
    count: int
    height: int
    width: int
    labels: np.ndarray | None
    class_names: tuple[str, ...] = ()
    resize: str | None = None
    not_read: str | None = None
    no_labels: str | None = None
    rounded: bool = True

    def content_sha256(self) -> None:
        """There was no file."""


def are_floats(images: Images | Seen) -> bool:
    """Whether they were not rounded to levels, as those in files are."""
    return isinstance(images, Seen) and not images.rounded


def _sha256_of(files: list[tuple[str, Path]], most: int | None = None) -> str:
    """Of names and files in this order, each of at most so many bytes."""
    with ThreadPoolExecutor(READER_THREADS) as pool:
        digests = pool.map(lambda file: file_sha256(file[1], most), files)
        try:
            lines = "".join(f"{digest} {name}\n" for digest, (name, _) in zip(digests, files, strict=True))
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read ({error.strerror})") from error
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def _check_npz(path: Path) -> None:
    """Raise UserError if it is damaged by its own checksum."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
            while member.read(1 << 20):
                life.sign()
    except DAMAGED_ARCHIVE as error:
        raise UserError(f"{path} is damaged ({one_line(error)})") from error


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
