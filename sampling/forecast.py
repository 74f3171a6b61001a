"""What a run would draw, where, and what it would take: `sample_ddp.py --dry-run`. Nothing but compiled kernels is written.

The same checks as before a run are made; then each rank loads its networks as the run would, and measures memory and time on
batches that take seconds. A batch is drawn to the end where that is quick, which also tells how large PNGs are.
"""

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from fiducial import Group, UserError, say
from fiducial.diffusion.prediction import is_guided
from fiducial.sampling import memory, numerics, plan
from fiducial.sampling.drawing import Drawer, is_out_of_memory
from fiducial.sampling.engine import COMPILING_SECONDS, fetch, in_words, told_by_probing, vae_of_node
from fiducial.sampling.noise import check_stream
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.prepare import Task, examine, find_batch_size
from fiducial.sampling.store import disk, lock, records
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store.png import png_bytes

TRIAL_SECONDS = 8.0  # that an evaluation and a decoding of the measured batch may take
BATCH_SECONDS = 30.0  # that a batch may take to be drawn to the end
REPEATS = 3


@dataclass(frozen=True)
class Measured:
    """By one rank, on a batch of `images`. Seconds are of that batch."""

    images: int
    evaluations: int  # of the network
    guided_of_them: int
    guided: float  # seconds of one evaluation; 0 if there is none of its kind
    plain: float
    decoding: float
    batch: float  # seconds of all
    drawn: bool  # to the end, and not only its parts
    loading: float  # seconds for weights and compilation
    memory: int  # bytes held at most with a batch of the run's size
    room: int  # bytes that this rank can hold
    png: float | None  # bytes of one on the disk, where some were drawn


@dataclass(frozen=True)
class Forecast:
    """What a run would take. Seconds and memory are of the rank that takes most."""

    blocks: int
    blocks_of_a_rank: int
    npz: int  # bytes of the whole file
    disk: int  # bytes still to be written
    disk_free: int
    memory: int
    memory_room: int
    seconds_loading: float
    seconds_drawing: float


def forecast(config: SamplingConfig, group: Group, with_png: bool, hang_seconds: float) -> None:
    """Prints it, on rank 0, after all ranks have measured.

    Raises:
        UserError: if the run could not begin.
    """
    started = time.monotonic()
    check_stream()
    config = fetch(config, group)
    numerics.ready_torch()
    group.on_end(None, hang_seconds)
    if group.is_main:
        found = examine(config, group, with_png)
        if found.identity["per_proc_batch_size"] == "auto":
            numbered = replace(config, labels=found.identity["labels"])
            found.identity["per_proc_batch_size"] = find_batch_size(numbered, group, found)
        task = found.task(archive.npz_path(found.folder), 0, "", found.done)
        group.publish("task", task.to_json())
    else:
        task = Task.from_json(group.receive("task"))
        numerics.apply(task.how, config, group.device)
    checking = time.monotonic() - started
    config = replace(config, per_proc_batch_size=task.batch_size, labels=task.labels)
    own, probed = measure(config, group, task, with_png) if task.missing else (None, {})
    group.publish(f"measured/{group.rank}", json.dumps(asdict(own) if own else None))
    if group.is_main:
        told = [json.loads(group.receive(f"measured/{rank}")) for rank in range(group.world_size)]
        pngs = task.missing + records.without_png(task.folder, len(task.done), task.mark) if with_png else 0
        for line in lines(config, task, group, [Measured(**one) for one in told if one], pngs, checking, probed.get("probe")):
            say(line)
    group.wait()


def measure(config: SamplingConfig, group: Group, task: Task, with_png: bool) -> tuple[Measured, dict]:
    """Loads the networks on this rank and tries them; all ranks do so at once, as they would draw. With it, on rank 0, what
    `told_by_probing` returns.

    Raises:
        UserError: if memory is not enough for that.
    """
    folder, latent = Path(vae_of_node(config, group, task)), (task.in_channels, task.input_size)
    drawer = Drawer(config, group.device, replace(task.how, compile=False), lambda: folder, latent, lambda **_: None)
    started = time.monotonic()
    drawer.load()
    loading = time.monotonic() - started
    probed = told_by_probing(drawer, group)  # which waits for all
    try:
        with group.allowing(COMPILING_SECONDS if task.how.compile else 0):
            return Trial(drawer, group).measured(task.how, loading, with_png), probed
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        size = config.per_proc_batch_size
        raise UserError(f"--per-proc-batch-size {size}: memory is not even enough to try a smaller one; free some") from error


class Trial:
    """Trying out networks that are loaded and not compiled yet."""

    def __init__(self, drawer: Drawer, group: Group):
        self._drawer, self._device, self._check, config = drawer, group.device, group.check, drawer.config
        self._size = config.per_proc_batch_size
        self._numbers, _ = drawer.rehearse(1, self._check)
        is_doubled = [config.cfg_scale > 1 and is_guided(t, config.guidance_interval) for t in self._numbers]
        self._guided = [t for t, doubled in zip(self._numbers, is_doubled, strict=True) if doubled]
        self._plain = [t for t, doubled in zip(self._numbers, is_doubled, strict=True) if not doubled]
        self._highest = 0  # bytes held so far
        self._base = memory.held(self._device)
        self._used: dict[int, int] = {}  # beyond that, by images of a batch
        self._seconds: dict[int, tuple[float, float]] = {}  # of the same batches: an evaluation, and decoding

    def measured(self, how: numerics.Numerics, loading: float, with_png: bool) -> Measured:
        """All of it; `loading` is what it took so far."""
        for images in range(1, min(2, self._size) + 1):
            self._try_memory(images)
        images = timed_batch(self._size, sum(self._seconds[images]) / images)
        self._drawer.how, started, before = how, time.monotonic(), memory.held(self._device)
        self._drawer.compile_for(images)
        loading += time.monotonic() - started
        self._base += max(0, memory.held(self._device) - before)
        self._try_memory(images)
        parts = self._time_parts(images)
        batch, drawn, png = parts.pop("batch"), False, None
        if batch <= BATCH_SECONDS:
            started = time.monotonic()
            _, pixels = next(self._drawer.blocks([0], images, self._check))
            batch, drawn = time.monotonic() - started, True
            png = disk.on_disk(np.array([len(png_bytes(image)) for image in pixels])) if with_png else None
        highest = max(self._highest, memory.peak(self._device))
        most = max(highest, self._base + extended(self._used, self._size))
        room = memory.held(self._device) + memory.room(self._device, 0)
        counts = len(self._numbers), len(self._guided)
        return Measured(images, *counts, **parts, batch=batch, drawn=drawn, loading=loading, memory=most, room=room, png=png)

    def _attempt(self, images: int, guided: bool = True) -> tuple[float, float]:
        """Seconds of an evaluation, guided if any is and that is asked for, and of decoding."""
        numbers = (self._guided or self._plain) if guided else self._plain
        return self._drawer.attempt(images, numbers[0], self._check)

    def _try_memory(self, images: int) -> None:
        self._highest = max(self._highest, memory.peak(self._device))

        def attempt() -> None:
            self._seconds[images] = self._attempt(images)

        self._used[images] = memory.used_by(attempt, self._base, self._device)

    def _time_parts(self, images: int) -> dict[str, float]:
        """Seconds of one evaluation of each kind and of decoding, for a batch; and of the whole batch, by adding up."""
        _, beside = self._drawer.rehearse(images, self._check)
        first = self._seconds[images]
        repeats = REPEATS if sum(first) < TRIAL_SECONDS / 2 else 0  # what takes long is timed well enough by once
        tried = [self._attempt(images) for _ in range(repeats)] or [first]
        dear, decoding = (statistics.median(column) for column in zip(*tried, strict=True))
        guided = dear if self._guided else 0.0
        plain = 0.0
        if self._plain:
            again = self._guided and [self._attempt(images, guided=False)[0] for _ in range(max(1, repeats))]
            plain = statistics.median(again) if again else dear
        batch = len(self._guided) * guided + len(self._plain) * plain + beside + decoding
        return {"guided": guided, "plain": plain, "decoding": decoding, "batch": batch}


def timed_batch(size: int, seconds: float) -> int:
    """Images of the batch that is timed: all of a block where an evaluation of it is quick, else as many as are."""
    return max(1, min(size, int(TRIAL_SECONDS / seconds)))


def extended(used: dict[int, int], images: int) -> int:
    """Bytes of a batch of so many images, by the line through the two largest that were tried."""
    (_, few), (most, many) = ((0, 0), *sorted(used.items()))[-2:]
    fewer = sorted(used)[-2] if len(used) > 1 else 0
    return int(many + (many - few) / (most - fewer) * (images - most))


def add_up(config: SamplingConfig, task: Task, world_size: int, ranks: list[Measured], pngs: int) -> Forecast:
    """What the run will take, from what each rank measured; `ranks` is empty if nothing is left to be drawn."""
    blocks = plan.pending_blocks(task.done, task.batch_size)
    largest_share = len(plan.share(blocks, 0, world_size))
    count, size = len(task.done), config.image_size
    png = next((rank.png for rank in ranks if rank.png), None)
    if records.done(task.folder, count, {}, task.mark).any():
        png = None  # the run's own tell better
    return Forecast(
        blocks=len(blocks),
        blocks_of_a_rank=largest_share,
        npz=archive.size(count, size),
        disk=disk.needed(task.folder, count, task.missing, size, pngs, png, task.mark),
        disk_free=disk.room(task.folder),
        memory=max((rank.memory for rank in ranks), default=0),
        memory_room=min((rank.room for rank in ranks), default=0),
        seconds_loading=max((rank.loading for rank in ranks), default=0.0),
        seconds_drawing=largest_share * task.batch_size * max((rank.batch / rank.images for rank in ranks), default=0.0),
    )


def lines(
    config: SamplingConfig,
    task: Task,
    group: Group,
    ranks: list[Measured],
    pngs: int,
    checking: float,
    probed: dict | None = None,
) -> Iterator[str]:
    """The forecast for people; `probed` is what the networks made of pure noise, None where it was not asked."""
    readable, how, count = disk.readable, task.how, len(task.done)
    found = add_up(config, task, group.world_size, ranks, pngs)
    yield f"folder    {task.folder}"
    yield f"npz       {task.npz}, {readable(found.npz)}"
    if holder := lock.read(task.folder / lock.LOCK):
        yield f"note      locked by process {holder['pid']} on {holder['host']}; if that is alive, the run will not begin"
    yield f"images    {count:,} of {config.image_size} x {config.image_size}, of which {count - task.missing:,} are there"
    yield (
        f"work      {found.blocks:,} block(s) of {task.batch_size} on {group.world_size} rank(s), "
        f"at most {found.blocks_of_a_rank:,} each"
    )
    yield f"labels    {config.labels}, of {config.num_classes:,} classes; seed {config.global_seed}"
    eta = f", eta {config.eta}" if config.eta else ""
    evaluations = (
        f": {ranks[0].evaluations:,} evaluations of the network, {ranks[0].guided_of_them:,} of them guided" if ranks else ""
    )
    yield f"sampler   {config.sampler}, {config.num_sampling_steps} steps{eta}{evaluations}"
    low, high = config.guidance_interval
    yield f"guidance  cfg-scale {config.cfg_scale} on {config.cfg_channels} channels, interval {low:g},{high:g}"
    compiled = "compiled" if how.compile else "not compiled"
    exact = ", exact" if config.exact else ""
    yield f"numerics  {how.precision}, {compiled}, attention {how.attention}, on {group.device.type}{exact}"
    if ranks:
        yield f"probe     {in_words(probed)}"
    own = f", {pngs:,} PNGs among it" if pngs else ", no PNGs among it"
    yield f"disk      {readable(found.disk)} to be written{own}; {readable(found.disk_free)} are free"
    if not ranks:
        yield "time      nothing is to be drawn; what is there is checked"
        return
    short = "" if found.memory <= found.memory_room else "; a rank will halve its batches, or be killed"
    yield f"memory    a rank holds about {readable(found.memory)} at most, and has room for {readable(found.memory_room)}{short}"
    yield (
        f"time      about {duration(found.seconds_drawing)} for drawing, after {duration(checking)} for checks and "
        f"{duration(found.seconds_loading)} for weights{' and compiling' * how.compile}"
    )
    slowest = max(ranks, key=lambda rank: rank.batch / rank.images)
    yield f"measured  {described(slowest)}"


def described(rank: Measured) -> str:
    """What an estimate of time hangs on."""
    kinds = (("a guided evaluation", rank.guided), ("one without guidance", rank.plain), ("decoding", rank.decoding))
    parts = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in kinds if seconds)
    whole = f"all of it {'drawn' if rank.drawn else 'added up'} {rank.batch:.3g} s"
    return f"a batch of {rank.images} on the slowest rank, now: {parts}, {whole}"


def duration(seconds: float) -> str:
    """For people: seconds, or hours and minutes."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min"
