"""Forecast of a run, what it would draw, where, and what it takes: `sample_ddp.py --dry-run`. Nothing is written but compiled
kernels and verdicts on numerics, in the cache.

The same checks as before a run are made; then each rank loads its networks and draws one block, as the run would, and its
seconds, memory and PNGs are told. What the whole run takes is that block as often as there are some to draw.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import numpy as np

from fiducial import Group, say
from fiducial.sampling import memory, plan
from fiducial.sampling.noise import check_stream
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.run import hardware
from fiducial.sampling.run.image_files import ImageFiles
from fiducial.sampling.run.prepare import examine
from fiducial.sampling.run.sheet import size_of_sheet
from fiducial.sampling.source import numerics
from fiducial.sampling.source.protocol import Source
from fiducial.sampling.source.table import source_of
from fiducial.sampling.store import disk, lock, records
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store.png import png_bytes
from fiducial.sampling.store.task import Task


@dataclass(frozen=True)
class Measured:
    """By one rank, which drew one block of the run."""

    loading: float  # seconds for weights and compilation
    drawing: float  # seconds of the block
    evaluations: int  # of the network, for it
    batch: int  # images drawn at once, fewer than a block's where memory did not do for more
    memory: int  # bytes held at most
    png: float | None  # bytes of one on the disk
    sheet: int  # bytes of the sheet of newest images


@dataclass(frozen=True)
class Forecast:
    """Forecast of a run. Seconds and memory are of the rank that takes most."""

    blocks: int
    blocks_of_a_rank: int
    npz: int  # bytes of the whole file
    disk: int  # bytes still to be written
    disk_free: int
    memory: int
    seconds_loading: float
    seconds_drawing: float


def forecast(config: SamplingConfig, group: Group, with_png: bool, hang_seconds: float, allow_mixed: bool = False) -> None:
    """Print it, on rank 0, after all ranks have measured.

    Raises:
        UserError: if the run could not begin.
    """
    started, spec, group = time.monotonic(), source_of(config), group.scope()
    check_stream()
    config = spec.fetch(config, group)
    numerics.ready_torch()
    group.on_end(None, hang_seconds)
    told = group.gather(hardware.own(group.device))
    with ExitStack() as stack:
        if group.is_main:
            found = examine(config, spec, ImageFiles(with_png), group, hardware.Ranks(told, allow_mixed), stack)
            mark = found.manifest.mark if found.manifest else 0
            npz = archive.npz_path(found.folder)
            task = Task(found.folder, 0, "", found.run.identity, found.done, found.run.facts, npz=npz, mark=mark)
        told = group.once(lambda: task.to_json())
        if group.is_main:
            source = found.source
        else:
            task = Task.from_json(told)
            source = spec.open_source(config, task.identity, task.facts, group)
            stack.enter_context(source.switched())
        events: list[dict] = []
        source.begin(lambda **event: events.append(event))
        checking = time.monotonic() - started
        own, probed = measure(source, events, group, task, with_png) if task.missing else (None, None)
    told = group.gather(asdict(own) if own else None)
    if group.is_main:
        ranks = [Measured(**one) for one in told if one]
        of_source = source.lines(probed, ranks[0].evaluations if ranks else 0)
        pngs = task.missing + records.without_png(task.folder, len(task.done), task.mark) if with_png else 0
        for line in lines(of_source, task, group, ranks, pngs, checking, source.loading):
            say(line)
    group.wait()


def measure(source: Source, events: list[dict], group: Group, task: Task, with_png: bool) -> tuple[Measured, dict | None]:
    """Load the source on this rank and draw one block; all ranks do so at once, as they would draw. With it, on rank 0, what
    the source has told of itself.

    Args:
        events: what the source notes, as it does.

    Raises:
        UserError: if memory is not enough for a single image.
    """
    evaluations, started = 0, time.monotonic()

    def check() -> None:
        nonlocal evaluations
        evaluations += 1
        group.check()

    source.load()
    loading = time.monotonic() - started
    probed = source.told(group)  # which waits for all
    started = time.monotonic()
    _, pixels = next(source.blocks([0], task.identity.block_size, check))
    drawing = time.monotonic() - started
    batch = min([task.identity.block_size, *(event["batch"] for event in events if "batch" in event)])
    png = disk.on_disk(np.array([len(png_bytes(image)) for image in pixels])) if with_png else None
    sheet = size_of_sheet(pixels, len(task.done))
    return Measured(loading, drawing, evaluations, batch, memory.peak(group.device), png, sheet), probed


def add_up(task: Task, world_size: int, ranks: list[Measured], pngs: int) -> Forecast:
    """The forecast from what each rank measured; `ranks` is empty if nothing is left to be drawn."""
    blocks = task.plan.starts(task.done)
    largest_share = len(plan.share(blocks, 0, world_size))
    count, size = len(task.done), task.identity.image_size
    png = next((rank.png for rank in ranks if rank.png), None)
    if records.done(task.folder, count, {}, task.mark).any():
        png = None  # the run's own tell better
    return Forecast(
        blocks=len(blocks),
        blocks_of_a_rank=largest_share,
        npz=archive.size(count, size),
        disk=disk.needed(task.folder, count, task.missing, size, pngs, png, task.mark)
        + max((rank.sheet for rank in ranks), default=0),
        disk_free=disk.room(task.folder),
        memory=max((rank.memory for rank in ranks), default=0),
        seconds_loading=max((rank.loading for rank in ranks), default=0.0),
        seconds_drawing=largest_share * max((rank.drawing for rank in ranks), default=0.0),
    )


def lines(
    of_source: list[str], task: Task, group: Group, ranks: list[Measured], pngs: int, checking: float, loading: str
) -> Iterator[str]:
    """The forecast for people; `of_source` is what the source says of itself, `loading` what loading it takes."""
    readable, count, identity = disk.readable, len(task.done), task.identity
    found = add_up(task, group.world_size, ranks, pngs)
    yield f"folder    {task.folder}"
    yield f"npz       {task.npz}, {readable(found.npz)}"
    if holder := lock.read(task.folder / lock.LOCK):
        yield f"note      locked by process {holder['pid']} on {holder['host']}; if that is alive, the run will not begin"
    yield f"images    {count:,} of {identity.image_size} x {identity.image_size}, of which {count - task.missing:,} are there"
    yield (
        f"work      {found.blocks:,} block(s) of {identity.block_size} on {group.world_size} rank(s), "
        f"at most {found.blocks_of_a_rank:,} each"
    )
    yield f"labels    {identity.labels}, of {identity.num_classes:,} classes; seed {identity.global_seed}"
    yield from of_source
    own = f", {pngs:,} PNGs among it" if pngs else ", no PNGs among it"
    yield f"disk      {readable(found.disk)} to be written{own}; {readable(found.disk_free)} are free"
    if not ranks:
        yield "time      nothing is to be drawn; what is there is checked"
        return
    halved = min(rank.batch for rank in ranks)
    short = f"; a block did not fit, and was drawn by {halved} images" if halved < identity.block_size else ""
    yield f"memory    a rank held {readable(found.memory)} at most{short}"
    yield (
        f"time      about {duration(found.seconds_drawing)} for drawing, after {duration(checking)} for checks and "
        f"{duration(found.seconds_loading)} for {loading}"
    )
    slowest = max(rank.drawing for rank in ranks)
    yield f"measured  a block of {identity.block_size} took {duration(slowest)} on the slowest of {group.world_size} rank(s)"


def duration(seconds: float) -> str:
    """For people: seconds, or hours and minutes."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min"
