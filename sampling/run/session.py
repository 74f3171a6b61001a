"""One session of a run: rank 0 checks everything and claims the folder, then every rank goes through the trunk."""

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from fiducial import Cause, Group, write_whole
from fiducial.sampling.noise import check_stream
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.run import hardware, trunk
from fiducial.sampling.run.prepare import prepare
from fiducial.sampling.run.sinks import RunFolder, Sink
from fiducial.sampling.run.telling import Hearer
from fiducial.sampling.source import numerics
from fiducial.sampling.source.table import source_of
from fiducial.sampling.store import disk
from fiducial.sampling.store.folder import ENDED, RESERVE
from fiducial.sampling.store.lock import LOCK, await_token, read
from fiducial.sampling.store.task import Task


def draw(
    config: SamplingConfig,
    group: Group,
    sink: Sink,
    hang_seconds: float = 600.0,
    options: Mapping | None = None,
    hearer: Hearer | None = None,
) -> Path:
    """Draw what is missing of the run, and leave it whole. Return what the sink leaves, on every rank.

    Args:
        hang_seconds: how long a rank may make no progress; 0 for ever.
        options: for the manifest, those of the command that are not in `config`.
        hearer: hears on rank 0 how far the run is.

    Raises:
        UserError: before weights are loaded, if something given cannot be used; later, if an image cannot be drawn or written.
    """
    began, spec, group = time.monotonic(), source_of(config), group.scope()
    check_stream()
    config = spec.fetch(config, group)  # before a rank that waits for a download could count as hung
    numerics.ready_torch()
    task = None
    with ExitStack() as stack:
        group.on_end(None, hang_seconds)
        try:
            told, options = group.gather(hardware.own(group.device)), options or {}
            if group.is_main:
                ranks = hardware.Ranks(told, bool(options.get("allow_mixed")))
                source, task, held = prepare(config, spec, sink, group, ranks, stack, options)
                held.told = task.told
            told = group.once(lambda: task.to_json())
            if not group.is_main:
                task, held = Task.from_json(told), None
                await_token(task.folder, task.token, group.rank)
                source = spec.open_source(config, task.identity, task.facts, group)
                stack.enter_context(source.switched())
            source.begin(lambda **event: task.note(group, event))
            group.on_end(partial(keep_cause, task), hang_seconds)
            left = trunk.run(task.plan, source, sink, RunFolder(task, group, held, began, hearer), group)
            group.on_end(None, hang_seconds)
            return left
        except OSError as error:
            raise disk.explained(error, config.sample_dir, task and task.told) from error


def keep_cause(task: Task, cause: Cause) -> None:
    """Leave in the run's folder why it ended, the first cause if hosts that lost each other have two; also on a full disk."""
    folder, holder = task.folder, read(task.folder / LOCK)
    if (folder / ENDED).exists() or (holder and holder["token"] != task.token):  # another run is here by now
        return
    ended = {**asdict(cause), "time": datetime.now(UTC).isoformat(timespec="seconds")}
    (folder / RESERVE).unlink(missing_ok=True)
    write_whole(folder / ENDED, lambda beside: beside.write_text(json.dumps(ended, indent=2) + "\n"))
