"""The engine: rank 0 checks everything and claims the folder, every rank draws its blocks and checks its share of the images.

No collective is called. Ranks meet in the process group's store: rank 0 publishes what is to be done, each rank counts its
images there as they are written. When all are drawn, each holds a share of them against the records, and rank 0 completes the
npz, of which only checksums are missing by then.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from fiducial import Cause, Group, Stopped, UserError, open_to_write, progress_bar, say, warn, write_whole
from fiducial.classes import read as read_names
from fiducial.models import probe
from fiducial.models.checkpoints import catalogue, checkpoint
from fiducial.models.decoders.table import decoder_of
from fiducial.sampling import memory, numerics, plan
from fiducial.sampling.drawing import Drawer
from fiducial.sampling.noise import check_stream
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.prepare import Task, check_options, events_path, has_null_label, prepare, read_events, remove_events, told
from fiducial.sampling.store import disk, records, repair
from fiducial.sampling.store import manifest as output
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store.folder import ENDED, RESERVE
from fiducial.sampling.store.lock import LOCK, Lock, await_token, read
from fiducial.sampling.store.png import remove_unfinished
from fiducial.sampling.store.writer import BlockWriter

IMAGES_DRAWN, IMAGES_CHECKED, COPIES_RESTORED, IMAGES_REDRAWN = (
    "images",
    "checked",
    "restored",
    "redrawn",
)  # counters in the store
POLL_SECONDS = 0.2
LATE_SECONDS = 60
Done = TypeVar("Done")  # what a session leaves
COMPILING_SECONDS = 1800  # at most, on a busy machine; it cannot say how far it has come


def run(
    config: SamplingConfig, group: Group, with_png: bool = True, hang_seconds: float = 600.0, options: Mapping | None = None
) -> Path:
    """Draws what is missing of the run, and leaves it whole. Returns the npz, on every rank.

    Args:
        with_png: also write each image as a PNG.
        hang_seconds: how long a rank may make no progress; 0 for ever.
        options: for the manifest, those of the command that are not in `config`.

    Raises:
        UserError: before weights are loaded, if something given cannot be used; later, if an image cannot be drawn or written.
    """

    def begin(config: SamplingConfig, stack: ExitStack) -> tuple[Task, Lock]:
        return prepare(config, group, with_png, stack, options or {})

    def work(config: SamplingConfig, task: Task, held: Lock | None, started: float) -> Path:
        return Work(config, group, task, with_png, held).do(started)

    return session(config, group, hang_seconds, begin, work)


def session(
    config: SamplingConfig,
    group: Group,
    hang_seconds: float,
    begin: Callable[[SamplingConfig, ExitStack], tuple[Task, Lock]],
    work: Callable[[SamplingConfig, Task, Lock | None, float], Done],
) -> Done:
    """What `work` returns, on every rank, after rank 0 has found out by `begin` what is to be done.

    Args:
        begin: checks everything and claims a folder, until the stack closes; on rank 0 only.
        work: has the configuration with what was found, the task, rank 0's lock, and when this began.
    """
    started = time.monotonic()
    check_stream()
    config = fetch(config, group)  # before a rank that waits for a download could count as hung
    numerics.ready_torch()
    task = None
    with ExitStack() as stack:
        group.on_end(None, hang_seconds)
        try:
            if group.is_main:
                task, held = begin(config, stack)
                group.publish("task", task.to_json())
            else:
                task, held = Task.from_json(group.receive("task")), None
                await_token(task.folder, task.token, group.rank)
                numerics.apply(task.how, config, group.device)
            config = replace(config, per_proc_batch_size=task.batch_size, labels=task.labels)
            if held:
                held.told = task.told
            group.on_end(partial(keep_cause, task), hang_seconds)
            done = work(config, task, held, started)
            group.on_end(None, hang_seconds)
            return done
        except OSError as error:
            raise disk.explained(error, config.sample_dir, task and task.told) from error


class Work:
    """One rank's part of a session: drawing, checking, and on rank 0 the end."""

    def __init__(self, config: SamplingConfig, group: Group, task: Task, with_png: bool, held: Lock | None):
        self._config, self._group, self._task, self._with_png, self._held = config, group, task, with_png, held
        self._recorder = records.Recorder(task.folder, task.session, group.rank, task.mark)
        self.drawer = NodeDrawer(config, group, task)

    def do(self, started: float) -> Path:
        """All of it. Returns the npz."""
        task, group = self._task, self._group
        blocks = plan.pending_blocks(task.done, self._config.per_proc_batch_size)
        checked = time.monotonic()
        if len(mine := plan.share(blocks, group.rank, group.world_size)):
            self.drawer.load_on_node()
        if told := told_by_probing(self.drawer, group):
            output.write_manifest(task.folder, output.reread_manifest(task.folder) | told)
        if task.missing and group.is_main:
            say_ready(group, task.how, checked - started, time.monotonic() - checked)
        drawing = time.monotonic()
        with progress(task.missing, len(task.done), IMAGES_DRAWN, "sampling", group):
            self.draw(mine, ~task.done, lambda rows: group.tally(IMAGES_DRAWN, len(rows)))
            group.wait()
        drawing = time.monotonic() - drawing
        self.mend()
        group.publish(f"peak/{group.rank}", str(memory.peak(group.device)))
        return Path(group.once(lambda: str(self.finish(drawing))))

    def _check(self) -> None:
        self._group.check()
        if self._held:
            self._held.check()

    def draw(self, blocks: np.ndarray, wanted: np.ndarray, on_written: Callable[[np.ndarray], object]) -> None:
        """Draws `blocks`, each whole and in its fixed composition, and writes what is `wanted` (N,) bool of them."""
        if not len(blocks):
            return
        task, size = self._task, self._config.per_proc_batch_size
        folders = task.folder, task.npz, self._config.image_size
        with BlockWriter(*folders, self._with_png, self._recorder, on_written) as writer:
            for start, pixels in self.drawer.blocks(blocks * size, wanted.size, self._check):
                # Indices beyond N fill up the last block, so that a run that grows finds its images as they were.
                indices = np.arange(start, min(start + size, len(wanted)))
                keep = np.flatnonzero(wanted[indices])
                writer.submit(indices[keep], pixels[keep], self._group.heed)

    def mend(self) -> None:
        """Holds this rank's share of all images against the records, restores what has a whole copy, and redraws the rest."""
        task, group = self._task, self._group
        group.once(self._merge)
        count = len(task.done)
        first, last = (count * rank // group.world_size for rank in (group.rank, group.rank + 1))
        with opened(task.npz) as npz, progress(count, count, IMAGES_CHECKED, "checking", group):
            copies = repair.Copies(task.folder, npz, self._config.image_size)
            for start in range(first, last, records.CHUNK):
                self._mend(copies, start, min(start + records.CHUNK, last))
            group.wait()
        group.once(self._merge)

    def _mend(self, copies: repair.Copies, start: int, stop: int) -> None:
        def advance(images: int) -> None:
            self._check()
            self._group.tally(IMAGES_CHECKED, images)

        rows, older = records.table(self._task.folder, start, stop, self._task.mark), self._task.done[start:stop]
        found = repair.mend(copies, rows, self._with_png, older, advance)
        if found.rows:
            self._recorder.add(np.concatenate(found.rows))
        if restored := len(found.slots) + len(found.pngs):
            self._group.tally(COPIES_RESTORED, restored)
        if not found.lost:
            return
        lost = np.array(found.lost) + start
        wanted = np.zeros(len(self._task.done), dtype=bool)
        wanted[lost] = True
        written: list[np.ndarray] = []
        self.draw(plan.pending_blocks(~wanted, self._config.per_proc_batch_size), wanted, written.append)
        self._group.tally(IMAGES_REDRAWN, len(lost))
        for row in np.concatenate(written):
            if copies.in_npz(row) is None:
                raise UserError(f"image {row['index']} is not in {self._task.npz} as it was written; this disk cannot be trusted")

    def _merge(self) -> None:
        task = self._task
        records.merge(task.folder, {task.session: self._group.world_size}, len(task.done), task.mark)

    def _await_records(self) -> None:
        """A network file system may show late what other hosts have added."""
        for _ in range(LATE_SECONDS):
            missing = int((~records.done(self._task.folder, len(self._task.done), {}, self._task.mark)).sum())
            if not missing:
                return
            time.sleep(1)
            self._check()
            self._merge()
        raise UserError(f"{missing:,} images are not recorded in {self._task.folder}, though drawn; run the same command again")

    def finish(self, seconds: float) -> Path:
        """On rank 0, when all is as recorded: the npz and the manifest."""
        config, task, group = self._config, self._task, self._group
        manifest, count, path = output.reread_manifest(task.folder), len(task.done), archive.npz_path(task.folder)
        labels = plan.labels(config.labels, config.num_classes, config.global_seed, 0, count)
        self._await_records()
        crcs, pixels_sha256 = records.summary(task.folder, count, task.mark)
        archive.complete(task.npz, path, archive.frame(labels, config.image_size, crcs))
        manifest["npz"] = {"file": path.name, "count": count, "bytes": path.stat().st_size, "pixels_sha256": pixels_sha256}
        peak = max(int(group.receive(f"peak/{rank}")) for rank in range(group.world_size))
        manifest["merged"] = task.session
        manifest["sessions"][-1] |= {
            "images_drawn": task.missing,
            "seconds": round(seconds, 3),
            "peak_memory": peak,
            "copies_restored": group.tally(COPIES_RESTORED, 0),
            "images_redrawn": group.tally(IMAGES_REDRAWN, 0),
            "events": read_events(task.folder, task.session, group.world_size),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        output.write_manifest(task.folder, manifest)
        remove_events(task.folder, task.session, group.world_size)
        (task.folder / RESERVE).unlink(missing_ok=True)
        if task.session > 1:
            remove_unfinished(task.folder)
        restored, redrawn = (manifest["sessions"][-1][name] for name in ("copies_restored", "images_redrawn"))
        damage = f"; {restored:,} copies restored, {redrawn:,} images redrawn" if restored or redrawn else ""
        say(f"{path}: {count:,} images{damage}; a rank held at most {disk.readable(peak)}")
        return path


class NodeDrawer(Drawer):
    """A drawer whose weights are those of this node, once rank 0's are known to be the same, and which notes for the manifest
    what happened to this rank."""

    def __init__(self, config: SamplingConfig, group: Group, task: Task):
        self._group, self._task, self._vae = group, task, ""
        latent = task.in_channels, task.input_size
        super().__init__(config, group.device, task.how, self._find_vae, latent, self._keep_note)

    def load_on_node(self) -> None:
        """For all ranks that have blocks to draw: the first of a node, which has some if any has, sees to the node's files."""
        self._vae = vae_of_node(self.config, self._group, self._task)
        self.load()

    def _compile(self) -> None:
        with self._group.allowing(COMPILING_SECONDS):
            super()._compile()

    def _find_vae(self) -> Path:
        return Path(self._vae or find_weights(self.config, self._task))

    def _keep_note(self, **event: object) -> None:
        line = json.dumps({"rank": self._group.rank, "host": socket.gethostname(), **event})
        events = events_path(self._task.folder, self._task.session, self._group.rank)
        with open(open_to_write(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "a") as file:
            file.write(line + "\n")


def told_by_probing(drawer: Drawer, group: Group) -> dict:
    """Waits for all ranks to have loaded their networks. On rank 0, what these made of pure noise as an entry of the
    manifest, the least of each number; empty elsewhere, and where none was asked."""
    response = drawer.response.recorded() if drawer.response else None
    group.publish(f"probe/{group.rank}", json.dumps(response))
    group.wait()
    if not group.is_main:
        return {}
    told = [json.loads(group.receive(f"probe/{rank}")) for rank in range(group.world_size)]
    if not (asked := [one for one in told if one]):
        return {}
    worst = {name: min(one[name] for one in asked) for name in asked[0]}
    if said := next(filter(None, map(probe.doubt_of, asked)), None):
        warn(f"warning: {drawer.config.ckpt}: {said}")
    return {"probe": worst}


def say_ready(group: Group, how: numerics.Numerics, checking: float, loading: float) -> None:
    """How many seconds went by before drawing began."""
    compiling = " and compiling" if how.compile else ""
    seconds = f"{checking:.1f} s for checks, {loading:.1f} s for weights{compiling}"
    say(f"ready on {group.world_size} rank(s), {how.precision}: {seconds}")


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor for reading and writing."""
    file = open_to_write(path, os.O_RDWR)
    try:
        yield file
    finally:
        os.close(file)


def keep_cause(task: Task, cause: Cause) -> None:
    """Leaves in the run's folder why it ended, the first cause if hosts that lost each other have two; also on a full disk."""
    folder, holder = task.folder, read(task.folder / LOCK)
    if (folder / ENDED).exists() or (holder and holder["token"] != task.token):  # another run is here by now
        return
    ended = {**asdict(cause), "time": datetime.now(UTC).isoformat(timespec="seconds")}
    (folder / RESERVE).unlink(missing_ok=True)
    write_whole(folder / ENDED, lambda beside: beside.write_text(json.dumps(ended, indent=2) + "\n"))


def check_given(config: SamplingConfig, group: Group) -> None:
    """What can be told before anything is downloaded.

    Raises:
        UserError: for options that no files make right, without `--ckpt` where none is published, and on rank 0 for a file
            or folder that is no checkpoint of that model and so many classes.
    """
    check_options(config)
    if config.ckpt is None:
        catalogue.choose(config.model, config.image_size, config.num_classes)
        if config.weights_key not in (None, checkpoint.PLAIN):
            raise UserError(f"--weights-key {config.weights_key}: published weights are alone in their file; leave it out")
    elif group.is_main and catalogue.is_path(config.ckpt):
        found = checkpoint.read(config.ckpt, config.weights_key)
        checkpoint.require_family(found, config.ckpt, config.model)
        given = {"model": config.model, "num_classes": config.num_classes}
        given = {name: value for name, value in given.items() if value is not None}
        checkpoint.check_shape(found.state, config.ckpt, given, has_null_label(config, found))
    if group.is_main and config.class_names:
        read_names(config.class_names, f"--class-names {config.class_names}")


def fetch(config: SamplingConfig, group: Group) -> SamplingConfig:
    """The configuration with a local path as `ckpt`, and with what that says where nothing was given; it and the VAE are
    downloaded if need be, by rank 0 and then by the first rank of each node that does not see them."""

    def find() -> str:
        return str(catalogue.find(config.ckpt, config.model, config.image_size, config.num_classes, config.cache_dir))

    check_given(config, group)
    given = config.ckpt
    folder = Path(
        group.once_per_node(["vae-files", config.vae, config.cache_dir], lambda: str(find_vae(config)), main_first=True)
    )
    wanted = ["checkpoint", config.ckpt, config.model, config.image_size, config.num_classes, config.cache_dir]
    config = replace(config, ckpt=Path(group.once_per_node(wanted, find, main_first=True)))
    if config.untold():
        config = replace(config, **group.once(lambda: told(config, folder)))
    unlike = catalogue.unlike_published(given, config.model, config.image_size, config.num_classes, config.cache_dir)
    if unlike and group.is_main:
        warn(f"warning: {unlike}")
    return config


def find_vae(config: SamplingConfig) -> Path:
    """The VAE's folder on this node, fetched if it has to be."""
    return decoder_of(config.vae).resolve(config.vae, config.cache_dir)


def vae_of_node(config: SamplingConfig, group: Group, task: Task) -> str:
    """The VAE's folder, found by the first rank of each node, which makes sure of the node's files."""
    find = find_vae if group.is_main else partial(find_weights, task=task)
    return group.once_per_node(["vae", config.vae, config.cache_dir], lambda: str(find(config)))


def find_weights(config: SamplingConfig, task: Task) -> Path:
    """The VAE's folder on this node, after making sure that the node's files are those that rank 0 checked.

    Raises:
        UserError: if one differs.
    """
    folder = find_vae(config)
    for path, found, expected in (
        (config.ckpt, checkpoint.sha256(config.ckpt) if config.ckpt.exists() else None, task.checkpoint_sha256),
        (folder, decoder_of(config.vae).sha256(folder), task.vae_sha256),
    ):
        if found != expected:
            raise UserError(f"{path} on {socket.gethostname()} is missing or another file than on the first node")
    return folder


@contextmanager
def progress(missing: int, count: int, counter: str, name: str, group: Group) -> Iterator[None]:
    """On rank 0, one bar for the images of all ranks, read from a counter of the store's by a thread of its own."""
    if not group.is_main or not missing:
        yield
        return
    stopped = threading.Event()
    bar = progress_bar(total=count, initial=count - missing, desc=name, smoothing=0)

    def advance() -> None:
        if news := bar.initial + group.tally(counter, 0) - bar.n:
            bar.update(news)

    def follow() -> None:
        while not stopped.wait(POLL_SECONDS):
            with suppress(RuntimeError, Stopped):  # the store may be gone, which the work hears of by itself
                advance()

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
        advance()
    finally:
        stopped.set()
        thread.join(POLL_SECONDS)
        bar.close()
