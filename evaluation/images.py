"""Images from a folder, an npz, a zip or a dataset as a stream of uint8 batches, in file order, never all in memory."""

import hashlib
import io
import itertools
import os
import queue
import struct
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np
from PIL import Image

from distributed import UserError, file_sha256, no_file, open_regular

if TYPE_CHECKING:
    from evaluation.tables import Table

# What zipfile and numpy raise on damaged archives, between them.
DAMAGED_ARCHIVE = (
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError, OSError, ValueError, EOFError, RuntimeError, SyntaxError),
    *(NotImplementedError, KeyError, TypeError, MemoryError, OverflowError, struct.error, IndexError),
)
# What Pillow raises on damaged images.
DAMAGED_IMAGE = (Image.DecompressionBombError, *DAMAGED_ARCHIVE)
SUFFIXES = {".png", ".jpg", ".jpeg"}
MAX_PIXELS = 80_000_000  # of one image; below where Pillow begins to warn
MAX_MEMBER = 128 << 20  # bytes of one image file inside a zip
MAX_FILE = 1 << 30  # bytes of one in a folder
MAX_HEADER = 4096  # bytes of an npy header's text
READER_THREADS = 4
READ_AHEAD = 2

Item = TypeVar("Item")


@dataclass(frozen=True)
class Images:
    """A set of equally large RGB images, (height, width), in one order.

    `labels`, where the source has them, are (count,) int64. `names` are the files of a folder or of a zip, `table` has those of
    a dataset. Where `crop` is set, images of any size and colour are converted to RGB and cropped to it as ADM does.
    """

    path: Path
    count: int
    height: int
    width: int
    labels: np.ndarray | None = None
    names: tuple[str, ...] = ()
    crop: int | None = None
    table: "Table | None" = None

    @property
    def classes(self) -> np.ndarray | None:
        """`labels`, or else those of a tree of folders, a class each: for training sets, as samples may lie in folders too."""
        return self.labels if self.labels is not None else labels_of_folders(self.names)

    @property
    def has_jpeg(self) -> bool:
        if self.table:
            return self.table.has_jpeg()
        return any(PurePosixPath(name).suffix.lower() in (".jpg", ".jpeg") for name in self.names)

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
        if self.table:
            return self._from_table(ranges)
        return self._from_files(ranges) if self.names else self._from_npz(ranges)

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

    def _from_files(self, ranges: list[tuple[int, int]]) -> Iterator[np.ndarray]:
        archive = zipfile.ZipFile(self.path) if self.path.is_file() else None
        try:
            with ThreadPoolExecutor(READER_THREADS) as pool:
                for first, last in ranges:
                    yield np.stack(list(pool.map(lambda name: self._read(archive, name), self.names[first:last])))
        finally:
            if archive:
                archive.close()

    def _read(self, archive: zipfile.ZipFile | None, name: str) -> np.ndarray:
        where = f"{self.path}, {name!r}," if archive else str(self.path / name)
        source = member_file(archive, name, where) if archive else self.path / name
        return self._of_one_size(read_image(source, where, self.crop), where, repr(self.names[0]))

    def _of_one_size(self, pixels: np.ndarray, where: str, first: str) -> np.ndarray:
        if pixels.shape != (self.height, self.width, 3):
            raise UserError(
                f"{where} is {pixels.shape[1]} x {pixels.shape[0]}, but {first} is {self.width} x {self.height}; "
                "all images must have one size"
            )
        return pixels

    def _from_table(self, ranges: list[tuple[int, int]]) -> Iterator[np.ndarray]:
        def decoded(row: tuple[int, bytes]) -> np.ndarray:
            where = f"{self.path}, row {row[0]},"
            return self._of_one_size(read_image(io.BytesIO(row[1]), where, self.crop), where, "row 0")

        try:
            with ThreadPoolExecutor(READER_THREADS) as pool:
                for (first, _), batch in zip(ranges, self.table.encoded(ranges), strict=True):
                    yield np.stack(list(pool.map(decoded, enumerate(batch, start=first))))
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
    from evaluation.tables import PARQUET, is_saved, open_table

    if path.suffix == PARQUET and path.is_file():
        return open_table(path, crop)
    if path.is_dir():
        names = () if is_saved(path) else in_order(files_in(path))
        if not names:
            if images := open_table(path, crop):
                return images
            raise UserError(f"{path} holds no PNG or JPEG images, and no dataset")
        if shards := [file for pattern in (f"*{PARQUET}", f"data/*{PARQUET}") for file in path.glob(pattern)]:
            raise UserError(f"{path} holds images ({names[0]!r} first) beside {shards[0].name}; give the folder of what is meant")
        height, width, _ = read_image(path / names[0], str(path / names[0]), crop).shape
        return Images(path, len(names), height, width, names=names, crop=crop)
    if reason := no_file(path, "no such file or folder"):
        raise UserError(f"{path}: {reason}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if "arr_0.npy" in members:
                return _open_npz(path, archive, crop)
            names = in_order(name for name in members if is_image(name))
            if len(set(names)) < len(names):
                twice = next(name for name, other in itertools.pairwise(names) if name == other)
                raise UserError(f"{path} holds two files named {twice!r}")
            if not names:
                found = ", ".join(repr(name)[1:-1] for name in members[:5]) or "nothing"
                raise UserError(f"{path} has no images: expected an array arr_0, or PNG or JPEG files; found {found}")
            where = f"{path}, {names[0]!r},"
            height, width, _ = read_image(member_file(archive, names[0], where), where, crop).shape
            return Images(path, len(names), height, width, names=names, crop=crop)
    except DAMAGED_ARCHIVE as error:
        raise UserError(f"{path} cannot be read as an npz or zip ({one_line(error)})") from error


def _open_npz(path: Path, archive: zipfile.ZipFile, crop: int | None) -> Images:
    info = archive.getinfo("arr_0.npy")
    with archive.open(info) as member:
        shape, dtype = read_header(member)
        room = info.file_size - member.tell()
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise UserError(f"{path}: arr_0 expected as uint8 (N, H, W, 3); found {dtype} {shape}")
    if shape[1] * shape[2] > MAX_PIXELS:
        raise UserError(f"{path}: its images are {shape[1]} x {shape[2]}, more than {MAX_PIXELS:,} pixels")
    if int(np.prod(shape, dtype=object)) != room:
        raise UserError(f"{path} is damaged: arr_0 says {shape}, but has {room:,} bytes")
    if crop is not None and shape[1:3] != (crop, crop):
        raise UserError(f"{path} holds images of {shape[1]} x {shape[2]}; --image-size {crop} crops files of images, not an npz")
    labels = read_labels(archive, shape[0]) if "arr_1.npy" in archive.namelist() else None
    return Images(path, *shape[:3], labels=labels)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Paths sorted folder by folder, the same for a folder and for a zip of it."""
    return tuple(sorted(names, key=lambda name: PurePosixPath(name).parts))


def labels_of_folders(names: tuple[str, ...]) -> np.ndarray | None:
    """(N,) int64: classes are the outermost folders, in the order of their names, if every image lies in one of several."""
    folders = [PurePosixPath(name).parts[0] if "/" in name else None for name in names]
    classes = {folder: label for label, folder in enumerate(sorted(set(folders) - {None}))}
    if not folders or None in folders or len(classes) < 2:
        return None
    return np.array([classes[folder] for folder in folders], dtype=np.int64)


def files_in(folder: Path, seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """The images in a folder and its subfolders, as paths relative to it; links are followed, but never in a circle."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror})") from error
    for entry in entries:
        if entry.is_dir():
            if not entry.name.startswith("."):
                yield from (f"{entry.name}/{name}" for name in files_in(Path(entry), seen | {real}))
        elif is_image(entry.name) and (entry.is_file() or entry.is_symlink()):  # no pipes; a dangling link is an error later
            yield entry.name


def is_image(name: str) -> bool:
    """Whether a file of this name counts: not what systems and half-finished writes leave beside images."""
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") and part != ".." for part in parts) or "__MACOSX" in parts
    return not hidden and not name.endswith("/") and PurePosixPath(name).suffix.lower() in SUFFIXES


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
        raise ValueError("its array is in Fortran order")
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


def read_labels(archive: zipfile.ZipFile, count: int) -> np.ndarray | None:
    """`arr_1` if it is one integer an image, else None: other tools put other things there."""
    with archive.open("arr_1.npy") as member:
        shape, dtype = read_header(member)
    if shape != (count,) or dtype.kind not in "iu":
        return None
    return read_array(archive, "arr_1.npy", count * dtype.itemsize).astype(np.int64)


def _opened(source: Path | BinaryIO) -> BinaryIO:
    return open_regular(source, MAX_FILE) if isinstance(source, Path) else source


def read_image(source: Path | BinaryIO, where: str, crop: int | None = None) -> np.ndarray:
    """One image as (H, W, 3) uint8; see `Images` for `crop`.

    Raises:
        UserError: if it is damaged, too large, or (without `crop`) not 8-bit RGB.
    """
    try:
        with _opened(source) as file, Image.open(file, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{where} is {image.width} x {image.height}, more than {MAX_PIXELS:,} pixels")
            if image.mode.startswith(("I", "F")) or any(";16" in str(tile[3]) for tile in image.tile):
                raise UserError(f"{where} has more than 8 bits a channel; convert it first, so that the rounding is yours")
            if crop is not None:
                return centre_crop(image.convert("RGB"), crop)
            if image.mode != "RGB":
                raise UserError(f"{where} is not an 8-bit RGB image (its mode is {image.mode})")
            return np.array(image)
    except DAMAGED_IMAGE as error:
        raise UserError(f"{where} cannot be read as an image ({one_line(error)})") from error


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """ADM's preparation of training images: halved by box averages while twice as large as needed, scaled bicubically until
    the short side is `size`, and cut out of the middle. (size, size, 3) uint8.

    Raises:
        ValueError: if it is so narrow that scaling it would take more than `MAX_PIXELS`.
    """
    while min(image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    if max(image.size) * scale * size > MAX_PIXELS:
        raise ValueError(f"it is {image.width} x {image.height}, too long to be scaled to {size}")
    image = image.resize(tuple(round(side * scale) for side in image.size), resample=Image.Resampling.BICUBIC)
    pixels = np.array(image)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


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


def one_line(error: BaseException) -> str:
    """An exception's message without line breaks, for use inside a sentence."""
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    return " ".join(str(error).split())[:300] or type(error).__name__
