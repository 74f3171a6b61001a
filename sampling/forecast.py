"""What a run would draw, where, and what it takes: `sample_ddp.py --dry-run`. Nothing but compiled kernels is written.

The same checks as before a run are made; then each rank loads its networks and draws one block, as the run would, and its
seconds, memory and PNGs are told. What the whole run takes is that block as often as there are some to draw.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from fiducial import Group, say
from fiducial.models import probe
from fiducial.sampling import memory, numerics, plan
from fiducial.sampling.drawing import Drawer
from fiducial.sampling.engine import COMPILING_SECONDS, fetch, told_by_probing, vae_of_node
from fiducial.sampling.noise import check_stream
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.prepare import Task, examine, find_batch_size
from fiducial.sampling.store import disk, lock, records
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store.png import png_bytes


@dataclass(frozen=True)
class Measured:
    """By one rank, which drew one block of the run."""

    loading: float  # seconds for weights and compilation
    drawing: float  # seconds of the block
    evaluations: int  # of the network, for it
    batch: int  # images drawn at once, fewer than a block's where memory did not do for more
    memory: int  # bytes held at most
    png: float | None  # bytes of one on the disk


@dataclass(frozen=True)
class Forecast:
    """What a run would take. Seconds and memory are of the rank that takes most."""

    blocks: int
    blocks_of_a_rank: int
    npz: int  # bytes of the whole file
    disk: int  # bytes still to be written
    disk_free: int
    memory: int
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
    """Loads the networks on this rank and draws one block; all ranks do so at once, as they would draw. With it, on rank 0, what
    `told_by_probing` returns.

    Raises:
        UserError: if memory is not enough for a single image.
    """
    folder, latent = Path(vae_of_node(config, group, task)), (task.in_channels, task.input_size)
    batch, evaluations, started = task.batch_size, 0, time.monotonic()

    def note(**event: object) -> None:
        nonlocal batch
        batch = event.get("batch", batch)

    drawer = Drawer(config, group.device, task.how, lambda: folder, latent, note)

    def check() -> None:
        nonlocal evaluations
        evaluations += 1
        group.check()

    with group.allowing(COMPILING_SECONDS if task.how.compile else 0):
        drawer.load()
    loading = time.monotonic() - started
    probed = told_by_probing(drawer, group)  # which waits for all
    started = time.monotonic()
    _, pixels = next(drawer.blocks([0], task.batch_size, check))
    drawing = time.monotonic() - started
    png = disk.on_disk(np.array([len(png_bytes(image)) for image in pixels])) if with_png else None
    return Measured(loading, drawing, evaluations, batch, memory.peak(group.device), png), probed


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
        seconds_loading=max((rank.loading for rank in ranks), default=0.0),
        seconds_drawing=largest_share * max((rank.drawing for rank in ranks), default=0.0),
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
    evaluations = f": {ranks[0].evaluations:,} evaluations of the network for a block" if ranks else ""
    yield f"sampler   {config.sampler}, {config.num_sampling_steps} steps{eta}{evaluations}"
    low, high = config.guidance_interval
    yield f"guidance  cfg-scale {config.cfg_scale} on {config.cfg_channels} channels, interval {low:g},{high:g}"
    compiled = "compiled" if how.compile else "not compiled"
    exact = ", exact" if config.exact else ""
    yield f"numerics  {how.precision}, {compiled}, attention {how.attention}, on {group.device.type}{exact}"
    if ranks:
        yield f"probe     {probe.in_words(probed)}"
    own = f", {pngs:,} PNGs among it" if pngs else ", no PNGs among it"
    yield f"disk      {readable(found.disk)} to be written{own}; {readable(found.disk_free)} are free"
    if not ranks:
        yield "time      nothing is to be drawn; what is there is checked"
        return
    halved = min(rank.batch for rank in ranks)
    short = f"; a block did not fit, and was drawn by {halved} images" if halved < task.batch_size else ""
    yield f"memory    a rank held {readable(found.memory)} at most{short}"
    yield (
        f"time      about {duration(found.seconds_drawing)} for drawing, after {duration(checking)} for checks and "
        f"{duration(found.seconds_loading)} for weights{' and compiling' * how.compile}"
    )
    slowest = max(rank.drawing for rank in ranks)
    yield f"measured  a block of {task.batch_size} took {duration(slowest)} on the slowest of {group.world_size} rank(s)"


def duration(seconds: float) -> str:
    """For people: seconds, or hours and minutes."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min"
