"""Records of each image: the hash of its pixels, and the size and CRC that its PNG file must have. No torch.

RUN/records.bin              a row for each index at a fixed place; written by rank 0 alone
RUN/records/0003-00017.bin   rows that rank 17 has appended in the third session, until rank 0 has moved them

An image is done when its row is there, and a row is written when its image is on the disk. Each rank has a file of its own
because network file systems lose neighbouring writes of several hosts to one page. A row holds a sum over itself, so
that what was torn by a crash is as good as absent. On the disk that sum has the run's mark added, a number by which rows of
another run that were put here are told; runs from before there were marks have the mark 0.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from fiducial import open_regular, open_to_write, require_place

ROW = np.dtype(
    [
        ("index", "<u8"),
        ("sha256", "u1", 32),  # of the pixels
        ("pixels_crc", "<u4"),
        ("png_crc", "<u4"),
        ("png_bytes", "<u4"),  # 0 where no PNG was written
        ("check", "<u4"),
    ]
)
SALT = 0xF1D0C1A1
CHUNK = 1 << 18  # rows in memory at a time
TIMES = 3  # that a session records an image at most: drawn, restored from a copy, drawn again
MOST = 1 << 40  # images


def checks(rows: np.ndarray) -> np.ndarray:
    """The sum over each of some rows (N,), uint32."""
    words = np.ascontiguousarray(rows).view("<u4").reshape(len(rows), ROW.itemsize // 4)[:, :-1].astype(np.uint64)
    factors = 2 * np.arange(words.shape[1], dtype=np.uint64) + 1  # so that words that change places show
    return ((words * factors).sum(axis=1) + SALT).astype(np.uint32)


def row(index: int, pixels: bytes | memoryview, crc: int, png: tuple[int, int] = (0, 0)) -> np.ndarray:
    """One row (1,); `crc` is of the pixels, `png` the CRC-32 and length of the PNG file."""
    made = np.zeros(1, dtype=ROW)
    made["index"], made["pixels_crc"], (made["png_crc"], made["png_bytes"]) = index, crc, png
    made["sha256"] = np.frombuffer(digest(pixels), dtype=np.uint8)
    made["check"] = checks(made)
    return made


def digest(pixels: bytes | memoryview) -> bytes:
    """SHA-256 of an image's pixels, (H, W, 3) uint8 in C order, as an evaluation's result names it too."""
    return hashlib.sha256(pixels).digest()


def table_path(folder: Path) -> Path:
    return folder / "records.bin"


def part_path(folder: Path, session: int, rank: int) -> Path:
    return folder / "records" / f"{session:04d}-{rank:05d}.bin"


class Recorder:
    """Appends this rank's rows to its file, which `merge` may have taken away since; they are on the disk when `add` returns."""

    def __init__(self, folder: Path, session: int, rank: int, mark: int = 0):
        self._path, self._mark = part_path(folder, session, rank), mark
        self._path.parent.mkdir(exist_ok=True)
        require_place(self._path)  # before anything is drawn

    def add(self, rows: np.ndarray) -> None:
        file = open_to_write(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            before, content = os.fstat(file).st_size, memoryview(_marked(rows, self._mark).tobytes())
            try:
                while content:
                    content = content[os.write(file, content) :]
            except OSError:
                os.ftruncate(file, before)  # or what is added later would not begin with a row
                raise
            os.fdatasync(file)
        finally:
            os.close(file)


def _marked(rows: np.ndarray, mark: int) -> np.ndarray:
    """The same rows as they stand on the disk, or with the mark taken off if it is negative."""
    rows = rows.copy()
    rows["check"] += np.uint32(mark % (1 << 32))
    return rows


def whole_rows(path: Path, most: int, mark: int = 0) -> Iterator[np.ndarray]:
    """Those of the first `most` rows of a file that are as a run of this mark has written them, in chunks; none if there is
    no file.

    Raises:
        NotAFile: if there is something else.
    """
    for rows in _rows(path, most):
        rows = _marked(rows, -mark)
        yield rows[rows["check"] == checks(rows)]


def _rows(path: Path, most: int) -> Iterator[np.ndarray]:
    """The first `most` rows of a file, whatever they hold, in chunks."""
    try:
        file = open_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    with file:
        for start in range(0, most, CHUNK):
            content = file.read(min(CHUNK, most - start) * ROW.itemsize)
            yield np.frombuffer(content[: len(content) // ROW.itemsize * ROW.itemsize], dtype=ROW)
            if len(content) < CHUNK * ROW.itemsize:
                return


def _all_rows(folder: Path, count: int, sessions: dict[int, int], mark: int) -> Iterator[np.ndarray]:
    """The rows of the first `count` images in their places in the table, then those that `sessions` have added, in chunks."""
    for start, rows in zip(range(0, count, CHUNK), _rows(table_path(folder), count), strict=False):
        rows = _marked(rows, -mark)
        places = np.arange(start, start + len(rows), dtype=np.uint64)
        yield rows[(rows["check"] == checks(rows)) & (rows["index"] == places)]
    for path in _parts(folder, sessions):
        for rows in whole_rows(path, TIMES * count, mark):
            yield rows[rows["index"] < count]


def _files(folder: Path, count: int, sessions: dict[int, int]) -> Iterator[tuple[Path, int]]:
    """Where rows of the first `count` images are, and how many a file has at most."""
    yield table_path(folder), count
    yield from ((path, TIMES * count) for path in _parts(folder, sessions))


def are_of_another_run(folder: Path, count: int, sessions: dict[int, int], mark: int) -> bool:
    """Whether several rows are whole, were it not for one and the same other mark; looked for where each file begins."""
    for path, most in _files(folder, count, sessions):
        rows = next(_rows(path, most), np.zeros(0, ROW))
        rows = rows[(rows["index"] < count) & (rows["check"] != 0)]
        others = rows["check"] - checks(rows)
        others = others[others != np.uint32(mark)]
        if len(others) > 1 and np.unique(others, return_counts=True)[1].max() > 1:
            return True
    return False


def done(folder: Path, count: int, sessions: dict[int, int], mark: int = 0) -> np.ndarray:
    """Which of the first `count` images are done, (count,) bool, by the table and what `sessions` have added since.

    sessions: by number, how many ranks each had. Files are opened by name, never listed: listings may be old.
    """
    found = np.zeros(count, dtype=bool)
    for rows in _all_rows(folder, count, sessions, mark):
        found[rows["index"]] = True
    return found


def latest(folder: Path, count: int, sessions: dict[int, int], mark: int = 0, some: range | None = None) -> np.ndarray:
    """The rows of the first `count` images, or of `some` of them that are neighbours, from the table and what `sessions` have
    added; absent ones are all zero."""
    some = range(count) if some is None else some
    found = table(folder, some.start, some.stop, mark)
    for path in _parts(folder, sessions):
        for rows in whole_rows(path, TIMES * count, mark):
            rows = rows[(rows["index"] >= some.start) & (rows["index"] < some.stop)]
            found[rows["index"] - np.uint64(some.start)] = rows
    return found


def merge(folder: Path, sessions: dict[int, int], count: int = MOST, mark: int = 0) -> None:
    """Move what `sessions` have added of the first `count` images into the table. For rank 0, while no rank is adding."""
    parts = [path for path in _parts(folder, sessions) if path.exists()]
    if not parts:
        return
    with open(open_to_write(table_path(folder), os.O_RDWR | os.O_CREAT), "r+b") as table:
        for path in parts:
            for rows in whole_rows(path, TIMES * count, mark):
                rows = _marked(rows[rows["index"] < count], mark)
                for run in np.split(rows, np.flatnonzero(np.diff(rows["index"].astype(np.int64)) != 1) + 1):
                    if len(run):
                        table.seek(int(run["index"][0]) * ROW.itemsize)
                        table.write(run.tobytes())
        table.flush()
        os.fsync(table.fileno())
    for path in parts:
        path.unlink(missing_ok=True)


def _parts(folder: Path, sessions: dict[int, int]) -> Iterator[Path]:
    """By name, in the order in which they were written; there are none where their folder is not."""
    if (folder / "records").exists():
        yield from (part_path(folder, number, rank) for number, ranks in sorted(sessions.items()) for rank in range(ranks))


def without_png(folder: Path, count: int, mark: int = 0) -> int:
    """How many of the first `count` images are in the table, but have no PNG."""
    return sum(int((rows["png_bytes"] == 0).sum()) for rows in _all_rows(folder, count, {}, mark))


def table(folder: Path, start: int, stop: int, mark: int = 0) -> np.ndarray:
    """The rows of the indices `start` to `stop` (exclusive); those that are absent or damaged are all zero."""
    rows, content = np.zeros(stop - start, dtype=ROW), b""
    with suppress(FileNotFoundError), open_regular(table_path(folder)) as file:
        file.seek(start * ROW.itemsize)
        content = file.read((stop - start) * ROW.itemsize)
    there = np.frombuffer(content[: len(content) // ROW.itemsize * ROW.itemsize], dtype=ROW)
    rows[: len(there)] = _marked(there, -mark)
    rows[(rows["check"] != checks(rows)) | (rows["index"] != np.arange(start, stop, dtype=np.uint64))] = np.zeros(1, dtype=ROW)
    return rows


def summary(folder: Path, count: int, mark: int = 0) -> tuple[np.ndarray, str]:
    """The CRC-32 of each of the first `count` images' pixels, and the hash of their hashes."""
    crcs, sha256 = np.zeros(count, dtype=np.uint32), hashlib.sha256()
    for start in range(0, count, CHUNK):
        rows = table(folder, start, min(start + CHUNK, count), mark)
        crcs[start : start + len(rows)] = rows["pixels_crc"]
        sha256.update(np.ascontiguousarray(rows["sha256"]))
    return crcs, sha256.hexdigest()
