"""One pass of a network over images, shared out over the ranks; its features stay in a folder, so that there is no second.

CACHE_DIR/KEY/features.f32     (N, D) float32, without a header, so that rows of pool3 begin on pages
             /spatial.f32      (N, S) float32, where the extractor has spatial features
             /pixels.sha256    (N, 32) bytes: the hash of each image's pixels
             /statistics.npz   means and scatter matrices, float64
             /about.json       what it was made of; written last, with the hash of features.f32

KEY is a hash of everything that the features depend on: nothing in there is ever out of date, and all of it may be deleted.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from fiducial import (
    Group,
    UserError,
    file_sha256,
    in_the_making,
    make_folder,
    open_to_write,
    progress_bar,
    read_json,
    remove_leftovers,
    write_whole,
)
from fiducial.cache import FEATURES_MARK, hold, release
from fiducial.evaluation.data.damage import DAMAGED_ARCHIVE
from fiducial.evaluation.data.images import Images, read_ahead
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.metrics.statistics import FeatureStatistics
from fiducial.precision import plain_float32

FORMAT = "fiducial-features-3"
FEATURES, SPATIAL, PIXELS = "features.f32", "spatial.f32", "pixels.sha256"
STATISTICS, ABOUT = "statistics.npz", FEATURES_MARK
DIGEST = 32  # bytes
LARGEST_ABOUT = 1 << 20


class Rows:
    """Rows (N, D) float32 of a file, read when a slice of them is asked for, and not kept in memory as mapped ones are."""

    def __init__(self, path: Path, count: int, dimension: int):
        self._path, self.shape = path, (count, dimension)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(len(self))
        size = self.shape[1]
        values = np.fromfile(self._path, np.float32, count=max(stop - start, 0) * size, offset=start * size * 4)
        return values.reshape(-1, size)


@dataclass(frozen=True)
class Features:
    """Features of a set of images.

    `rows` are the features (N, D) float32, mapped from the disk, in the order of the images, `spatial_rows` (N, S) the spatial
    ones, read from there; `pixels_sha256` is the hash of the images' own hashes in that order, the same for an npz and for the
    PNGs that it was packed from. `content_sha256` is None where they were in no file, or in a run's own npz, which is known by
    its pixels.
    """

    folder: Path
    rows: np.ndarray
    statistics: FeatureStatistics
    spatial_rows: Rows | None
    spatial: FeatureStatistics | None
    content_sha256: str | None
    pixels_sha256: str
    origin: str  # in words: whether they were computed for this, or how else they came to be

    def first_of_each(self) -> np.ndarray:
        """The images without those that an earlier one is equal to, pixel by pixel: their indices, ascending."""
        hashes = np.fromfile(self.folder / PIXELS, dtype=f"S{DIGEST}")
        return np.sort(np.unique(hashes, return_index=True)[1])


@contextmanager
def temporary_cache(beside: Path, group: Group) -> Iterator[Path]:
    """A cache that rank 0 removes in the end, whatever happens. What is mapped from it stays readable."""
    folder = Path(group.once(lambda: str(in_the_making(beside / "features"))))
    try:
        yield folder
        group.wait()
    finally:
        if group.is_main:
            shutil.rmtree(folder, ignore_errors=True)
        release(folder)


def extract(images: Images, extractor: Extractor, group: Group, batch_size: int, cache: Path) -> Features:
    """The features of `images` by one extractor; see `extract_each`."""
    return extract_each(images, [extractor], group, batch_size, cache)[0]


def extract_each(images: Images, extractors: Sequence[Extractor], group: Group, batch_size: int, cache: Path) -> list[Features]:
    """The features of `images` by each extractor: from the cache where they are there, the others by one pass of all ranks over
    the images, each decoded once, and put there.

    They do not depend on `batch_size`, which is how many images are read at once, nor on the number of ranks or extractors.

    Raises:
        UserError: if an image cannot be read, gives NaN, or the cache cannot be written.
    """
    known = group.once(images.known_pixels)
    content = None if known else group.once(images.content_sha256)
    parts = [_parts(images, extractor, known, content) for extractor in extractors]
    entries = [cache / hashlib.sha256(json.dumps(one).encode()).hexdigest()[:32] for one in parts]
    there = [group.once(lambda entry=entry: hold(entry / ABOUT) and _is_whole(entry)) for entry in entries]
    lacking = [number for number, found in enumerate(there) if not found]
    if lacking:
        with ExitStack() as folders:
            making = [_in_the_making(entries[one], images.count, extractors[one], group) for one in lacking]
            runs = [_Making(extractors[one], folders.enter_context(made)) for one, made in zip(lacking, making, strict=True)]
            _run(images, runs, group, batch_size)
            for run in runs:
                run.add_up(group)
            group.wait()
            if group.is_main:
                if known and file_sha256(runs[0].folder / PIXELS) != known:
                    raise UserError(f"{images.path} is damaged: its images are not those that its run has recorded")
                for one, run in zip(lacking, runs, strict=True):
                    _complete(run.folder, entries[one], parts[one], run.sums[FEATURES], run.sums.get(SPATIAL))
            group.wait()
    made = zip(entries, extractors, there, strict=True)
    return [_open(entry, extractor, "from the cache" if found else "computed") for entry, extractor, found in made]


def _parts(images: Images, extractor: Extractor, known: str | None, content: str | None) -> dict:
    """All that features depend on; images are told by their pixels where those are `known`, else by their files' `content`."""
    return {
        "format": FORMAT,
        "content": content,
        **({"pixels": known} if known else {}),
        "crop": images.crop,
        "count": images.count,
        "extractor": extractor.name,
        "weights": extractor.weights_sha256,
        "dtype": extractor.dtype,
        "device": extractor.device.type,
        **{package: version(package) for package in ("torch", "pillow", *extractor.packages)},
        **({"preparation": extractor.preparation} if extractor.preparation else {}),
    }


def gathered(
    count: int,
    parts: Iterable[tuple[np.ndarray, dict[str, np.ndarray]]],
    extractor: Extractor,
    group: Group,
    cache: Path,
) -> Features:
    """The features of `count` images that the ranks have extracted between them, as `extract` would give them.

    Args:
        parts: this rank's: the places of some images among all, and their rows of `FEATURES`, `PIXELS` and, where there are
            spatial features, `SPATIAL`, by these names.
        cache: a folder that all ranks see.
    """
    entry = Path(group.once(lambda: str(cache / uuid.uuid4().hex)))
    dimensions = {FEATURES: extractor.dimension, SPATIAL: extractor.spatial_dimension}
    sums = {name: FeatureStatistics.empty(dimension) for name, dimension in dimensions.items() if dimension}
    with _in_the_making(entry, count, extractor, group) as folder:
        mapped = {}
        for positions, rows in parts:
            group.check()
            for name, values in rows.items():
                if name not in mapped:
                    shape = (count, *values.shape[1:])
                    mapped[name] = np.memmap(folder / name, dtype=values.dtype, mode="r+", shape=shape)
                mapped[name][positions] = values
                if name in sums:
                    sums[name].update(values)
        for rows in mapped.values():
            rows.flush()
        sums = {name: statistics.merged(group) for name, statistics in sums.items()}
        group.wait()
        if group.is_main:
            _complete(folder, entry, {"content": None, "count": count}, sums[FEATURES], sums.get(SPATIAL))
        group.wait()
    return _open(entry, extractor, "gathered as the images were made")


def share(count: int, batch_size: int, group: Group) -> tuple[int, int]:
    """This rank's images, from and to: consecutive whole batches, as evenly as they go."""
    batches = -(-count // batch_size)
    first, last = (batches * rank // group.world_size for rank in (group.rank, group.rank + 1))
    return min(first * batch_size, count), min(last * batch_size, count)


class _Making:
    """One extractor's part of a pass: its rows go to files in `folder`, `sums` has their statistics by the files' names."""

    def __init__(self, extractor: Extractor, folder: Path):
        self.extractor, self.folder = extractor, folder
        dimensions = {FEATURES: extractor.dimension, SPATIAL: extractor.spatial_dimension}
        self.sums = {name: FeatureStatistics.empty(dimension) for name, dimension in dimensions.items() if dimension}

    def open(self, files: ExitStack, row: int) -> None:
        """Open the files to be written from a row on."""
        sizes = _row_bytes(self.extractor)
        self._write = {name: files.enter_context(_at_row(self.folder / name, row, size)) for name, size in sizes.items()}

    def add(self, images: Images, batch: np.ndarray, hashes: bytes, at: int) -> None:
        """Extract a batch (B, H, W, 3) that begins with image `at`; raises UserError if features are not finite."""
        features, spatial = (made if made is None else made.cpu().numpy() for made in self.extractor.run(batch))
        finite = np.isfinite(features).all(1) & (spatial is None or np.isfinite(spatial).all(1))
        if not finite.all():
            bad = at + int(np.flatnonzero(~finite)[0])
            raise UserError(f"{images.path}: the features of image {bad} are not finite; are the extractor's weights whole?")
        for name, rows in {FEATURES: features, SPATIAL: spatial}.items():
            if rows is not None:
                self.sums[name].update(rows)
                self._write[name](rows.tobytes())
        self._write[PIXELS](hashes)

    def add_up(self, group: Group) -> None:
        """Make the sums those of all ranks."""
        self.sums = {name: statistics.merged(group) for name, statistics in self.sums.items()}


@torch.inference_mode()
@plain_float32()
def _run(images: Images, runs: list[_Making], group: Group, batch_size: int) -> None:
    """Extract this rank's images by every extractor, batch by batch."""
    at, stop = share(images.count, batch_size, group)
    extracted = group.counter()
    with ExitStack() as files, progress_bar(images.count, "evaluating") as bar:
        for run in runs:
            run.open(files, at)
        for batch in read_ahead(images.batches(batch_size, at, stop)):
            hashes = b"".join(hashlib.sha256(image).digest() for image in batch)
            for run in runs:
                run.add(images, batch, hashes, at)
                group.check()
            at += len(batch)
            bar.update(extracted.add(len(batch)) - bar.n)
        group.wait()
        bar.update(images.count - bar.n)


def _row_bytes(extractor: Extractor) -> dict[str, int]:
    """The files that have a row for each image, and how long one is."""
    spatial = {SPATIAL: extractor.spatial_dimension * 4} if extractor.spatial_dimension else {}
    return {FEATURES: extractor.dimension * 4, **spatial, PIXELS: DIGEST}


@contextmanager
def _at_row(path: Path, row: int, size: int) -> Iterator[Callable[[bytes], int]]:
    """A writer to a file that is there, from a row on."""
    with open(path, "wb", opener=_without_truncating) as file:
        file.seek(row * size)
        yield file.write


def _without_truncating(path: str, _: int) -> int:
    """For writing one's own part of a file that others write too; not for reading, so that no client fetches the rest."""
    return open_to_write(Path(path), os.O_WRONLY)


@contextmanager
def _in_the_making(entry: Path, count: int, extractor: Extractor, group: Group) -> Iterator[Path]:
    """A folder beside `entry` for all ranks to write to, removed by rank 0 if it is still there in the end."""

    def make() -> str:
        remove_leftovers(entry.parent)
        if os.path.lexists(entry) and (entry.is_symlink() or not entry.is_dir()):
            raise UserError(f"{entry}: it is a link or no folder, where features are to be kept; remove it")
        folder = in_the_making(entry)
        make_folder(folder)
        for name, size in _row_bytes(extractor).items():
            with open(folder / name, "wb") as file:
                file.truncate(count * size)
        return str(folder)

    folder = None
    try:
        folder = Path(group.once(make))
        if not (folder / FEATURES).is_file():
            raise UserError(
                f"--cache-dir {entry.parent}: rank {group.rank} does not see what rank 0 puts there; it must be shared"
            )
        yield folder
    except OSError as error:
        raise UserError(f"--cache-dir {entry.parent} cannot be written ({error.strerror or error})") from error
    finally:
        if group.is_main and folder:
            shutil.rmtree(folder, ignore_errors=True)


def _complete(folder: Path, entry: Path, parts: dict, statistics: FeatureStatistics, spatial: FeatureStatistics | None) -> None:
    """Add the sums and what it all is, and put the folder in its place."""
    arrays = {"mean": statistics.mean, "scatter": statistics.scatter}
    if spatial:
        arrays |= {"spatial_mean": spatial.mean, "spatial_scatter": spatial.scatter}
    with open(folder / STATISTICS, "wb") as file:
        np.savez(file, **arrays)
    rows = (FEATURES, *([SPATIAL] if spatial else []), PIXELS)
    hashes = {name: file_sha256(folder / name) for name in (*rows, STATISTICS)}
    about = json.dumps({**parts, "sha256": hashes, "created": time.strftime("%Y-%m-%d %H:%M:%S")}, indent=2)
    write_whole(folder / ABOUT, lambda beside: beside.write_text(about + "\n"))
    hold(folder / ABOUT)
    try:
        os.rename(folder, entry)
    except OSError:  # someone else was faster with the same
        if not _is_whole(entry):
            shutil.rmtree(entry, ignore_errors=True)
            os.rename(folder, entry)


def _is_whole(entry: Path) -> bool:
    """Whether everything is there and as it was written."""
    try:
        hashes = read_json(entry / ABOUT, LARGEST_ABOUT)["sha256"]
        return {FEATURES, PIXELS, STATISTICS} <= hashes.keys() and all(
            file_sha256(entry / name) == digest for name, digest in hashes.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _open(entry: Path, extractor: Extractor, origin: str) -> Features:
    hold(entry / ABOUT)
    try:
        about = read_json(entry / ABOUT, LARGEST_ABOUT)
        count = about["count"]
        rows = _mapped(entry / FEATURES, count, extractor.dimension)
        with np.load(entry / STATISTICS, allow_pickle=False) as arrays:
            statistics = FeatureStatistics(count, arrays["mean"], arrays["scatter"])
            spatial_rows = spatial = None
            if "spatial_mean" in arrays.files:
                spatial_rows = Rows(entry / SPATIAL, count, extractor.spatial_dimension)
                spatial = FeatureStatistics(count, arrays["spatial_mean"], arrays["spatial_scatter"])
    except DAMAGED_ARCHIVE as error:
        raise UserError(f"{entry} cannot be read ({error}); remove it") from error
    pixels_sha256 = file_sha256(entry / PIXELS)
    return Features(entry, rows, statistics, spatial_rows, spatial, about["content"], pixels_sha256, origin)


def _mapped(path: Path, count: int, dimension: int) -> np.ndarray:
    """Rows of a file, read when they are needed."""
    return np.memmap(path, dtype=np.float32, mode="c", shape=(count, dimension))  # private: torch wants it writable
