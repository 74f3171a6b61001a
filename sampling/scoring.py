"""Scoring while sampling: features straight from the decoder; no image, and no npz, is ever written.

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
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import numpy as np

from fiducial import (
    Group,
    UserError,
    check_lengths,
    make_folder,
    open_regular,
    remove_leftovers,
    require_place,
    say,
    write_whole,
)
from fiducial.models.checkpoints import checkpoint
from fiducial.sampling import memory, plan
from fiducial.sampling.engine import IMAGES_DRAWN, LATE_SECONDS, NodeDrawer, progress, say_ready, session, told_by_probing
from fiducial.sampling.numerics import RESOLVED, Numerics
from fiducial.sampling.options.config import AUTO, SamplingConfig, fingerprint
from fiducial.sampling.options.file import recorded
from fiducial.sampling.prepare import (
    SHORTER,
    Found,
    Task,
    check_folder,
    check_kind,
    check_names,
    class_names,
    describe_session,
    find_batch_size,
    inspect,
    read_events,
    remove_events,
    try_networks,
)
from fiducial.sampling.store import disk
from fiducial.sampling.store import manifest as output
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store.folder import ENDED, ONLINE, longest_path
from fiducial.sampling.store.lock import Lock

SUFFIX, FORMAT, RUN = "-online", "fiducial-online-1", "run"
# What zipfile, numpy and an evaluator raise of a file that is not as it was written.
DAMAGED = (
    *(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
    *(RuntimeError, SyntaxError, TypeError, IndexError, AttributeError, MemoryError, OverflowError),
)


class Evaluator(Protocol):
    """What scoring needs of `evaluation.Evaluator`, which this package does not import."""

    extractor: str
    bytes_of_image: int

    def fresh(self) -> "Evaluator": ...
    def expect(self, labels: np.ndarray) -> None: ...
    def update(self, images: np.ndarray, indices: np.ndarray, labels: np.ndarray) -> object: ...
    def state_dict(self) -> dict: ...
    def merge(self, other: dict) -> object: ...


@dataclass(frozen=True)
class Drawn:
    """What a result is told of the run: its folder, and `online.json`."""

    folder: Path
    about: dict


def run(config: SamplingConfig, group: Group, evaluator: Evaluator, hang_seconds: float, options: Mapping) -> Drawn:
    """Draws what is missing, and gives the evaluators of all ranks everything between them.

    Raises:
        UserError: before weights are loaded, if something given cannot be used; later, if an image cannot be drawn.
    """

    def begin(config: SamplingConfig, stack: ExitStack) -> tuple[Task, Lock]:
        return prepare(config, group, evaluator, stack, options)

    def work(config: SamplingConfig, task: Task, held: Lock | None, started: float) -> Drawn:
        return Scoring(config, group, task, held, evaluator).do(started)

    return session(config, group, hang_seconds, begin, work)


def prepare(config: SamplingConfig, group: Group, evaluator: Evaluator, stack: ExitStack, options: Mapping) -> tuple[Task, Lock]:
    """Rank 0's part before anything is drawn: checks, claims the folder, and finds out which blocks have no file.

    Raises:
        UserError: before anything is written, if something given cannot be used.
    """
    identity, size, vae = inspect(config, group)
    config = replace(config, labels=identity["labels"])  # without names
    names, how = class_names(config), Numerics(**{name: identity[name] for name in RESOLVED})
    folder = config.sample_dir / f"{config.named_run(fingerprint(identity))}{SUFFIX}"
    result = folder.with_name(f"{folder.name}.json")
    check_lengths(SHORTER, result, longest_path(folder))
    about = read_about(folder)
    if about and config.per_proc_batch_size == AUTO:
        identity["per_proc_batch_size"] = about["identity"]["per_proc_batch_size"]
    check_kind(folder, ONLINE)
    check_folder(folder, about, config, identity)
    check_names(folder, about, names)
    needed = config.num_fid_samples * evaluator.bytes_of_image
    if (free := disk.room(folder)) < needed:
        there, room = disk.nearest(folder), disk.readable(free)
        raise UserError(f"{there} has {room} of room, and the features of the images need about {disk.readable(needed)}")
    found = Found(identity, folder, None, np.zeros(0, bool), how, size, vae, names)
    if about is None:
        try_networks(config, group, found)  # so that networks that cannot be drawn from leave no folder
    try:
        make_folder(folder / "records")
        (folder / evaluator.extractor).mkdir(exist_ok=True)
        held = stack.enter_context(Lock(folder, group.check))
        check_kind(folder, ONLINE)  # another run may have been here since
        if identity["per_proc_batch_size"] == "auto":
            identity["per_proc_batch_size"] = find_batch_size(config, group, found)
        config = replace(config, per_proc_batch_size=identity["per_proc_batch_size"])
        done = done_images(folder, evaluator, config, fingerprint(identity))
        if about and not done.all():
            try_networks(config, group, found)  # and a run as it is
        about = read_about(folder) or {"format": FORMAT, "sessions": []}
        (folder / ENDED).unlink(missing_ok=True)
        about |= {"fingerprint": fingerprint(identity), "identity": identity, "num_fid_samples": config.num_fid_samples}
        about |= {"class_names": names.recorded()} if names else {}
        weights = checkpoint.read(config.ckpt, config.weights_key).kind
        about["paths"] = {"ckpt": str(config.ckpt), "weights": weights, "vae": config.vae}
        about["options"] = recorded(replace(config, weights_key=weights), identity, options)
        about["sessions"].append(describe_session(group, int(done.sum()), with_png=False))
        write_about(folder, about)
    except OSError as error:
        raise disk.explained(error, folder) from error
    say(f"{folder}: {done.sum():,} of {len(done):,} images are there")
    return found.task(folder, len(about["sessions"]), held.token, done), held


class Scoring:
    """One rank's part of a session."""

    def __init__(self, config: SamplingConfig, group: Group, task: Task, held: Lock | None, evaluator: Evaluator):
        self._config, self._group, self._task, self._held, self._evaluator = config, group, task, held, evaluator
        self._count, self._size = len(task.done), config.per_proc_batch_size
        self._labels = labels_of(config)
        self._fingerprint = reread_about(task.folder)["fingerprint"]

    def do(self, started: float) -> Drawn:
        """All of it. Returns what there is to say of the run, on every rank."""
        task, group = self._task, self._group
        networks = NodeDrawer(self._config, group, task)
        mine = plan.share(plan.pending_blocks(task.done, self._size), group.rank, group.world_size)
        checked = time.monotonic()
        if len(mine):
            networks.load_on_node()
        if told := told_by_probing(networks, group):
            write_about(task.folder, reread_about(task.folder) | told)
        if task.missing and group.is_main:
            say_ready(group, task.how, checked - started, time.monotonic() - checked)
        drawing = time.monotonic()
        self._evaluator.expect(self._labels)
        with progress(task.missing, len(task.done), IMAGES_DRAWN, "sampling", group):
            if len(mine):
                for start, pixels in networks.blocks(mine * self._size, self._count, self._check):
                    self._keep(start, pixels)
            group.wait()
        drawing = time.monotonic() - drawing
        group.publish(f"peak/{group.rank}", str(memory.peak(group.device)))
        about = group.once(lambda: self._finish(drawing))
        self._gather()
        return Drawn(task.folder, about)

    def _check(self) -> None:
        self._group.check()
        if self._held:
            self._held.check()

    def _keep(self, start: int, pixels: np.ndarray) -> None:
        """Leaves on the disk what the extractor makes of a block."""
        indices = np.arange(start, min(start + self._size, self._count))
        part = self._evaluator.fresh()
        part.update(pixels[: len(indices)], indices, self._labels[indices])
        arrays = {name: np.asarray(value) for name, value in part.state_dict().items()} | {RUN: np.array(self._fingerprint)}

        def write(beside: Path) -> None:
            with open(beside, "wb") as file:
                np.savez(file, **arrays)

        write_whole(block_path(self._task.folder, self._evaluator, start), write)
        self._group.tally(IMAGES_DRAWN, len(indices))

    def _gather(self) -> None:
        """Gives this rank's evaluator its share of the blocks."""
        for start in range(self._group.rank * self._size, self._count, self._group.world_size * self._size):
            self._check()
            path = block_path(self._task.folder, self._evaluator, start)
            self._await(path)
            try:
                self._evaluator.merge(read_block(path, self._evaluator, self._config))
            except DAMAGED as error:
                raise UserError(f"{path} is damaged ({error}); the same command draws its images again") from error

    def _await(self, path: Path) -> None:
        """A network file system may show late what other hosts have written."""
        for _ in range(LATE_SECONDS):
            if path.exists():
                return
            time.sleep(1)
            self._check()

    def _finish(self, seconds: float) -> dict:
        """On rank 0, when all is drawn: what the session did."""
        task, group = self._task, self._group
        about = reread_about(task.folder)
        about["sessions"][-1] |= {
            "images_drawn": task.missing,
            "seconds": round(seconds, 3),
            "peak_memory": max(int(group.receive(f"peak/{rank}")) for rank in range(group.world_size)),
            "events": read_events(task.folder, task.session, group.world_size),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_about(task.folder, about)
        remove_events(task.folder, task.session, group.world_size)
        remove_leftovers(task.folder / self._evaluator.extractor, nobody_writes=True)
        say(f"a rank held at most {disk.readable(about['sessions'][-1]['peak_memory'])}")
        return about


def block_path(folder: Path, evaluator: Evaluator, start: int) -> Path:
    """Where the features of the block that begins with image `start` are."""
    return folder / evaluator.extractor / f"{start:08d}.npz"


def most_block_bytes(evaluator: Evaluator, config: SamplingConfig) -> int:
    """Bytes that the file of a block may have: what is kept of its images, and the pixels of those that the report shows."""
    return config.per_proc_batch_size * (2 * evaluator.bytes_of_image + archive.image_bytes(config.image_size)) + (1 << 20)


def read_block(path: Path, evaluator: Evaluator, config: SamplingConfig) -> dict[str, np.ndarray]:
    """What the file of a block holds, by name.

    Raises:
        Exception: one of `DAMAGED`, if it is not a file as `Scoring` writes it; no more memory is taken than the file has bytes.
    """
    with open_regular(path, most_block_bytes(evaluator, config)) as file:
        with zipfile.ZipFile(file) as zipped:
            if any(member.compress_type != zipfile.ZIP_STORED for member in zipped.infolist()):
                raise ValueError("it is compressed")
        with np.load(file, allow_pickle=False) as state:
            return dict(state)  # all of it is read, so that checksums are held against it


def labels_of(config: SamplingConfig) -> np.ndarray:
    """The classes of all images, (N,)."""
    return plan.labels(config.labels, config.num_classes, config.global_seed, 0, config.num_fid_samples)


def done_images(folder: Path, evaluator: Evaluator, config: SamplingConfig, run: str) -> np.ndarray:
    """(N,) bool: the images whose block has a whole file of the run with that fingerprint.

    Raises:
        OSError: if something that is no file stands in the place of one.
    """
    size, labels, image = config.per_proc_batch_size, labels_of(config), [config.image_size] * 2
    done = np.zeros(config.num_fid_samples, dtype=bool)
    for start in range(0, len(done), size):
        path, wanted = block_path(folder, evaluator, start), np.arange(start, min(start + size, len(done)))
        try:
            state = read_block(path, evaluator, config)
            evaluator.fresh().merge(state)
            expected = {"indices": wanted, "labels": labels[wanted], "size": image}
            done[wanted] = str(state[RUN]) == run and all(np.array_equal(state[name], expected[name]) for name in expected)
        except FileNotFoundError:
            continue
        except DAMAGED:
            require_place(path)
    return done


def read_about(folder: Path) -> dict | None:
    """What `online.json` says, or None if there is none.

    Raises:
        UserError: if it is not one of ours.
    """
    path = folder / ONLINE
    if not path.exists():
        return None
    try:
        return output.load_run(path, FORMAT)
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise UserError(f"{path} is not whole ({reason}); move {folder} away, or choose another --run-name")


def reread_about(folder: Path) -> dict:
    """The same of the run that is being drawn in `folder`; UserError if it is not there any more, too."""
    if (about := read_about(folder)) is None:
        raise UserError(disk.gone(folder / ONLINE))
    return about


def write_about(folder: Path, about: dict) -> None:
    output.write_run(folder / ONLINE, about)
