"""One pass of a network over images, shared out over the ranks; its features stay in a folder, so that there is no second.

CACHE_DIR/KEY/features.f32     (N, D) float32, without a header, so that rows of pool3 begin on pages
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from distributed import Group, UserError, file_sha256, progress_bar, write_whole
from evaluation.features import Extractor
from evaluation.images import DAMAGED_ARCHIVE, Images, read_ahead
from evaluation.statistics import FeatureStatistics

FORMAT = "fiducial-features-2"
FEATURES, PIXELS, STATISTICS, ABOUT = "features.f32", "pixels.sha256", "statistics.npz", "about.json"
DIGEST = 32  # bytes


@dataclass(frozen=True)
class Features:
    """What an extractor made of a set of images.

    `rows` are the features (N, D) float32, mapped from the disk, in the order of the images; `pixels_sha256` is the hash of
    the images' own hashes in that order, the same for an npz and for the PNGs that it was packed from.
    """

    folder: Path
    rows: np.ndarray
    statistics: FeatureStatistics
    spatial: FeatureStatistics | None
    content_sha256: str
    pixels_sha256: str
    reused: bool


@contextmanager
def temporary_cache(beside: Path, group: Group) -> Iterator[Path]:
    """A cache that rank 0 removes in the end, whatever happens. What is mapped from it stays readable."""
    folder = Path(group.once(lambda: str(beside / f"{uuid.uuid4().hex}.temporary")))
    try:
        yield folder
        group.wait()
    finally:
        if group.is_main:
            shutil.rmtree(folder, ignore_errors=True)


def extract(images: Images, extractor: Extractor, group: Group, batch_size: int, cache: Path) -> Features:
    """The features of `images`: from the cache if they are there, else computed by all ranks and put there.

    They do not depend on `batch_size`, which is how many images are read at once, nor on the number of ranks.

    Raises:
        UserError: if an image cannot be read, gives NaN, or the cache cannot be written.
    """
    content = group.once(images.content_sha256)
    parts = {
        "format": FORMAT,
        "content": content,
        "crop": images.crop,
        "count": images.count,
        "extractor": extractor.name,
        "weights": extractor.weights_sha256,
        "dtype": extractor.dtype,
        "device": extractor.device.type,
        **{package: version(package) for package in ("torch", "pillow", *extractor.packages)},
    }
    entry = cache / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    if reused := group.once(lambda: str(_is_whole(entry))) == "True":
        return _open(entry, reused, extractor)
    with _in_the_making(entry, images.count, extractor, group) as folder:
        statistics, spatial = _run(images, extractor, group, batch_size, folder)
        statistics = statistics.merged(group)
        spatial = spatial.merged(group) if spatial else None
        group.wait()
        if group.is_main:
            _complete(folder, entry, parts, statistics, spatial)
        group.wait()
    return _open(entry, reused, extractor)


@contextmanager
def plain_float32() -> Iterator[None]:
    """No TF32 in here: a number must not depend on what else the process does, or on torch's defaults."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def share(count: int, batch_size: int, group: Group) -> tuple[int, int]:
    """This rank's images, from and to: consecutive whole batches, as evenly as they go."""
    batches = -(-count // batch_size)
    first, last = (batches * rank // group.world_size for rank in (group.rank, group.rank + 1))
    return min(first * batch_size, count), min(last * batch_size, count)


@torch.inference_mode()
@plain_float32()
def _run(
    images: Images, extractor: Extractor, group: Group, batch_size: int, folder: Path
) -> tuple[FeatureStatistics, FeatureStatistics | None]:
    """Extracts this rank's images, writes features and hashes to their places, and returns the sums."""
    statistics = FeatureStatistics.empty(extractor.dimension)
    spatial_statistics = FeatureStatistics.empty(extractor.spatial_dimension) if extractor.spatial_dimension else None
    at, stop = share(images.count, batch_size, group)
    counter = f"extracted/{folder.name}"
    with (
        open(folder / FEATURES, "wb", opener=_without_truncating) as features_file,
        open(folder / PIXELS, "wb", opener=_without_truncating) as pixels_file,
        progress_bar(images.count, "evaluating") as bar,
    ):
        features_file.seek(at * extractor.dimension * 4)
        pixels_file.seek(at * DIGEST)
        for batch in read_ahead(images.batches(batch_size, at, stop)):
            features, spatial = extractor.run(batch)
            features = features.cpu().numpy()
            finite = np.isfinite(features).all(1) & (spatial is None or spatial.isfinite().all(1).cpu().numpy())
            if not finite.all():
                bad = at + int(np.flatnonzero(~finite)[0])
                raise UserError(f"{images.path}: the features of image {bad} are not finite; are the extractor's weights whole?")
            statistics.update(features)
            if spatial_statistics:
                spatial_statistics.update(spatial.cpu().numpy())
            features_file.write(features.tobytes())
            pixels_file.write(b"".join(hashlib.sha256(image).digest() for image in batch))
            at += len(batch)
            bar.update(group.count(counter, len(batch)) - bar.n)
        group.wait()
        bar.update(images.count - bar.n)
    return statistics, spatial_statistics


def _without_truncating(path: str, _: int) -> int:
    """For writing one's own part of a file that others write too; not for reading, so that no client fetches the rest."""
    return os.open(path, os.O_WRONLY)


@contextmanager
def _in_the_making(entry: Path, count: int, extractor: Extractor, group: Group) -> Iterator[Path]:
    """A folder beside `entry` for all ranks to write to, removed by rank 0 if it is still there in the end."""

    def make() -> str:
        folder = entry.with_name(f"{entry.name}.{uuid.uuid4().hex[:8]}.partial")
        folder.mkdir(parents=True)
        for name, size in ((FEATURES, count * extractor.dimension * 4), (PIXELS, count * DIGEST)):
            with open(folder / name, "wb") as file:
                file.truncate(size)
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
    """Adds the sums and what it all is, and puts the folder in its place."""
    arrays = {"mean": statistics.mean, "scatter": statistics.scatter}
    if spatial:
        arrays |= {"spatial_mean": spatial.mean, "spatial_scatter": spatial.scatter}
    with open(folder / STATISTICS, "wb") as file:
        np.savez(file, **arrays)
    hashes = {name: file_sha256(folder / name) for name in (FEATURES, PIXELS, STATISTICS)}
    about = json.dumps({**parts, "sha256": hashes, "created": time.strftime("%Y-%m-%d %H:%M:%S")}, indent=2)
    write_whole(folder / ABOUT, lambda beside: beside.write_text(about + "\n"))
    try:
        os.rename(folder, entry)
    except OSError:  # someone else was faster with the same
        if not _is_whole(entry):
            shutil.rmtree(entry, ignore_errors=True)
            os.rename(folder, entry)


def _is_whole(entry: Path) -> bool:
    """Whether everything is there and as it was written."""
    try:
        hashes = json.loads((entry / ABOUT).read_text())["sha256"]
        return all(file_sha256(entry / name) == hashes[name] for name in (FEATURES, PIXELS, STATISTICS))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _open(entry: Path, reused: bool, extractor: Extractor) -> Features:
    try:
        about = json.loads((entry / ABOUT).read_text())
        shape = (about["count"], extractor.dimension)
        rows = np.memmap(entry / FEATURES, dtype=np.float32, mode="c", shape=shape)  # private: torch wants it writable
        with np.load(entry / STATISTICS, allow_pickle=False) as arrays:
            statistics = FeatureStatistics(shape[0], arrays["mean"], arrays["scatter"])
            spatial = None
            if "spatial_mean" in arrays.files:
                spatial = FeatureStatistics(shape[0], arrays["spatial_mean"], arrays["spatial_scatter"])
    except DAMAGED_ARCHIVE as error:
        raise UserError(f"{entry} cannot be read ({error}); remove it") from error
    return Features(entry, rows, statistics, spatial, about["content"], file_sha256(entry / PIXELS), reused)
