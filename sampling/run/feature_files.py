"""Features kept instead of images, straight from the decoder; no image, and no npz, is ever written.

SAMPLE_DIR/RUN-online/online.json          what the run is, and its history
SAMPLE_DIR/RUN-online/lock                 while someone is drawing
SAMPLE_DIR/RUN-online/NAME-SHA/00000064.npz   what the extractor of that name and weights made of the block that begins there
SAMPLE_DIR/RUN-online.json, .html          the result

A run that was killed goes on with the blocks that have no file.
"""

import struct
import time
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from fiducial import Group, UserError, check_lengths, make_folder, open_regular, remove_leftovers, require_place, write_whole
from fiducial.sampling.plan import Plan
from fiducial.sampling.run.checks import SHORTER
from fiducial.sampling.run.sinks import OnWritten, Redraw, RunFolder
from fiducial.sampling.source.protocol import ResolvedRun
from fiducial.sampling.store import disk
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store.folder import longest_path
from fiducial.sampling.store.manifest import ONLINE_FORMAT, Manifest

RUN = "run"
LATE_SECONDS = 60
# What zipfile, numpy and an evaluator raise of a file that is not as it was written.
DAMAGED = (
    *(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
    *(RuntimeError, SyntaxError, TypeError, IndexError, AttributeError, MemoryError, OverflowError),
)


class Evaluator(Protocol):
    """The part of `evaluation.Evaluator` that this sink needs, which this package does not import."""

    extractor: str
    bytes_of_image: int

    def fresh(self) -> "Evaluator": ...
    def expect(self, labels: np.ndarray) -> None: ...
    def update(self, images: np.ndarray, indices: np.ndarray, labels: np.ndarray) -> object: ...
    def state_dict(self) -> dict: ...
    def merge(self, other: dict) -> object: ...


class FeatureFiles:
    """A sink that leaves a file of features for each block, and gives the evaluators of all ranks everything between them."""

    made, suffix, with_png = ONLINE_FORMAT, "-online", False

    def __init__(self, evaluator: Evaluator):
        self.evaluator = evaluator

    def check_lengths(self, folder: Path) -> None:
        check_lengths(SHORTER, folder.with_name(f"{folder.name}.json"), longest_path(folder))

    def look(self, folder: Path, manifest: Manifest | None, run: ResolvedRun) -> np.ndarray:
        needed = run.config.num_fid_samples * self.evaluator.bytes_of_image
        if (free := disk.room(folder)) < needed:
            there, room = disk.nearest(folder), disk.readable(free)
            raise UserError(f"{there} has {room} of room, and the features of the images need about {disk.readable(needed)}")
        return np.full(run.config.num_fid_samples, manifest is not None)  # what is there takes long to be read

    def claim(self, folder: Path, manifest: Manifest) -> np.ndarray:
        make_folder(folder / "records")
        (folder / self.evaluator.extractor).mkdir(exist_ok=True)
        plan = Plan.of(manifest.identity, manifest.num_fid_samples)
        return done_images(folder, self.evaluator, plan, manifest.identity.image_size, manifest.fingerprint)

    def begin(self, *_: object) -> None:
        """Nothing is to be made: each block's file is written whole."""

    def open(self, folder: RunFolder, group: Group) -> None:
        self._run, self._group, self._folder = folder, group, folder.task.folder
        self._fingerprint, self._size = folder.task.identity.fingerprint, folder.task.identity.image_size
        self._plan = folder.task.plan
        self._labels = self._plan.labels
        self.evaluator.expect(self._labels)

    @contextmanager
    def writing(self, on_written: OnWritten) -> Iterator[None]:
        self._on_written = on_written
        yield

    def put(self, indices: np.ndarray, pixels: np.ndarray) -> None:
        """Leave on the disk what the extractor makes of a block."""
        part = self.evaluator.fresh()
        part.update(pixels, indices, self._labels[indices])
        arrays = {name: np.asarray(value) for name, value in part.state_dict().items()} | {RUN: np.array(self._fingerprint)}

        def write(beside: Path) -> None:
            with open(beside, "wb") as file:
                np.savez(file, **arrays)

        write_whole(block_path(self._folder, self.evaluator, int(indices[0])), write)
        self._on_written(indices)

    def mend(self, _: Redraw) -> None:
        """Nothing is drawn again: each block's file was written whole, and is checked when it is gathered."""

    def finish(self, _: Manifest) -> str:
        return ""

    def clear(self) -> None:
        remove_leftovers(self._folder / self.evaluator.extractor, nobody_writes=True)

    def gather(self) -> Path:
        """The folder, once this rank's evaluator has its share of the blocks."""
        rank, world_size, size = self._group.rank, self._group.world_size, self._plan.block_size
        for start in range(rank * size, self._plan.count, world_size * size):
            self._run.check()
            path = block_path(self._folder, self.evaluator, start)
            self._await(path)
            try:
                self.evaluator.merge(read_block(path, self.evaluator, size, self._size))
            except DAMAGED as error:
                raise UserError(f"{path} is damaged ({error}); the same command draws its images again") from error
        return self._folder

    def _await(self, path: Path) -> None:
        """A network file system may show late what other hosts have written."""
        for _ in range(LATE_SECONDS):
            if path.exists():
                return
            time.sleep(1)
            self._run.check()


def block_path(folder: Path, evaluator: Evaluator, start: int) -> Path:
    """Where the features of the block that begins with image `start` are."""
    return folder / evaluator.extractor / f"{start:08d}.npz"


def most_block_bytes(evaluator: Evaluator, block_size: int, image_size: int) -> int:
    """Bytes that the file of a block may have: what is kept of its images, and the pixels of those that the report shows."""
    return block_size * (2 * evaluator.bytes_of_image + archive.image_bytes(image_size)) + (1 << 20)


def read_block(path: Path, evaluator: Evaluator, block_size: int, image_size: int) -> dict[str, np.ndarray]:
    """The arrays in the file of a block, by name.

    Raises:
        Exception: one of `DAMAGED`, if it is not a file as `FeatureFiles` writes it; no more memory is taken than the file has
            bytes.
    """
    with open_regular(path, most_block_bytes(evaluator, block_size, image_size)) as file:
        with zipfile.ZipFile(file) as zipped:
            if any(member.compress_type != zipfile.ZIP_STORED for member in zipped.infolist()):
                raise ValueError("it is compressed")
        with np.load(file, allow_pickle=False) as state:
            return dict(state)  # all of it is read, so that its checksums are compared


def done_images(folder: Path, evaluator: Evaluator, plan: Plan, image_size: int, run: str) -> np.ndarray:
    """(N,) bool: the images whose block has a whole file of the run with that fingerprint.

    Raises:
        OSError: if something that is no file stands in the place of one.
    """
    labels, done = plan.labels, np.zeros(plan.count, dtype=bool)
    for start in range(0, plan.count, plan.block_size):
        path, wanted = block_path(folder, evaluator, start), np.arange(start, min(start + plan.block_size, plan.count))
        try:
            state = read_block(path, evaluator, plan.block_size, image_size)
            evaluator.fresh().merge(state)
            expected = {"indices": wanted, "labels": labels[wanted], "size": [image_size] * 2}
            done[wanted] = str(state[RUN]) == run and all(np.array_equal(state[name], expected[name]) for name in expected)
        except FileNotFoundError:
            continue
        except DAMAGED:
            require_place(path)
    return done
