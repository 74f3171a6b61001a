"""The trunk of every run: each rank draws its blocks of the plan from a source, and a sink keeps the images.

No collective is called. Ranks meet in the process group's store, where each counts its images as they are kept. When all are
drawn, each rank compares its share with what was recorded of it, and rank 0 completes the files.
"""

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from fiducial import Group, say
from fiducial.sampling import memory
from fiducial.sampling.plan import Plan
from fiducial.sampling.run.hardware import device_name
from fiducial.sampling.run.progress import progress
from fiducial.sampling.run.signs import Signs
from fiducial.sampling.run.sinks import OnWritten, RunFolder, Sink
from fiducial.sampling.run.telling import telling
from fiducial.sampling.source.protocol import Source
from fiducial.sampling.store import disk
from fiducial.sampling.store import manifest as manifests
from fiducial.sampling.store.task import Task, read_events, remove_events


def run(plan: Plan, source: Source, sink: Sink, folder: RunFolder, group: Group) -> Path:
    """Draw what is missing, and leave the run whole. Return, on every rank, what the sink leaves.

    Raises:
        UserError: if an image cannot be drawn or written.
    """
    checked = time.monotonic()
    sink.open(folder, group)
    own = plan.starts(folder.task.done)[group.rank :: group.world_size]
    with telling(folder.task, assigned(plan, own, folder.task.done), group, folder.hearer) as signs:
        draw_all(plan, source, sink, replace(folder, signs=signs), own, signs, checked)
    return sink.gather()


def assigned(plan: Plan, starts: np.ndarray, done: np.ndarray) -> int:
    """How many images are missing in the blocks that begin at `starts`; done: (N,) bool."""
    return sum(int((~done[start : start + plan.block_size]).sum()) for start in starts)


def draw_all(plan: Plan, source: Source, sink: Sink, folder: RunFolder, own: np.ndarray, signs: Signs, checked: float) -> None:
    """Draw this rank's `own` blocks, and with all others leave the run whole; `checked` is when its checks were over."""
    task, group = folder.task, folder.group
    if len(own):
        source.load()
    keep_told(source.told(group), task)
    if task.missing and group.is_main:
        seconds = f"{checked - folder.began:.1f} s for checks, {time.monotonic() - checked:.1f} s for {source.loading}"
        device = f"{group.device.type} {device_name(group.device)}"
        say(f"ready on {group.world_size} rank(s), {device}, {source.ready}: {seconds}")
    drawing, drawn = time.monotonic(), group.counter()

    def keep(rows: np.ndarray) -> None:
        drawn.add(len(rows))
        signs.drew(len(rows))

    with progress(task.missing, plan.count, drawn, "sampling", group):
        signs.tell("sampling")
        draw(plan, source, sink, folder, own, ~task.done, keep)
        signs.tell("waiting")
        group.wait()
    drawing = time.monotonic() - drawing
    signs.tell("checking")
    sink.mend(lambda *given: draw(plan, source, sink, folder, *given))
    source.release()
    peaks = group.gather(memory.peak(group.device))
    signs.tell("packing" if group.is_main else "waiting")
    group.once(lambda: finish(sink, task, group, drawing, max(peaks)))


def draw(
    plan: Plan, source: Source, sink: Sink, folder: RunFolder, starts: np.ndarray, wanted: np.ndarray, on_written: OnWritten
) -> None:
    """Draw the blocks that begin at `starts`, each whole and in its fixed composition, and keep what is `wanted` (N,) bool."""
    if not len(starts):
        return
    with sink.writing(on_written):
        for start, pixels in source.blocks(starts, plan.count, folder.check):
            # Indices beyond N fill up the last block, so that a run that grows finds its images as they were.
            indices = np.arange(start, min(start + plan.block_size, plan.count))
            keep = np.flatnonzero(wanted[indices])
            sink.put(indices[keep], pixels[keep])
            if folder.signs:
                folder.signs.show(pixels[keep])


def keep_told(told: dict | None, task: Task) -> None:
    """On rank 0: puts what the source has told of itself into the manifest."""
    if told is not None:
        manifest = task.manifest()
        manifest.probe = told
        manifests.write(task.folder, manifest)


def finish(sink: Sink, task: Task, group: Group, seconds: float, peak: int) -> None:
    """On rank 0: completes the files, and the manifest by what the session did, in which a rank held `peak` bytes."""
    manifest = task.manifest()
    said, last = sink.finish(manifest), manifest.sessions[-1]
    last.images_drawn, last.seconds, last.peak_memory = task.missing, round(seconds, 3), peak
    last.events = read_events(task.folder, task.session, group.world_size)
    last.finished = datetime.now(UTC).isoformat(timespec="seconds")
    manifests.write(task.folder, manifest)
    remove_events(task.folder, task.session, group.world_size)
    sink.clear()
    say(f"{said}a rank held at most {disk.readable(peak)}")
