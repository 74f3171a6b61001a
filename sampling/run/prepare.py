"""Rank 0's part before anything is drawn: the run folder is checked and claimed, and what is missing in it is found out."""

import platform
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from fiducial import Group, UserError, about, make_folder, say, warn
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.options.file import recorded
from fiducial.sampling.run import deviations
from fiducial.sampling.run.checks import check_folder, check_kind, check_names, tell_of_block_size
from fiducial.sampling.run.hardware import Ranks
from fiducial.sampling.run.sinks import Sink
from fiducial.sampling.source.protocol import ResolvedRun, Source, SourceSpec, Unfit
from fiducial.sampling.store import disk
from fiducial.sampling.store import manifest as manifests
from fiducial.sampling.store.folder import ENDED, read_ended
from fiducial.sampling.store.lock import Lock
from fiducial.sampling.store.manifest import FILES, Manifest, Names, Session
from fiducial.sampling.store.task import Task, read_events, remove_events


@dataclass(frozen=True)
class Found:
    """Findings of the checks before a run; nothing is written by then."""

    run: ResolvedRun
    folder: Path
    manifest: Manifest | None
    done: np.ndarray  # (N,) bool, as far as it is known without reading what stands in the folder
    source: Source  # tried out, if an image is missing as far as that is known
    unfit: tuple[Mapping, ...] = ()  # events of what was tried before it


def examine(config: SamplingConfig, spec: SourceSpec, sink: Sink, group: Group, ranks: Ranks, stack: ExitStack) -> Found:
    """Check everything, and write nothing. Until `stack` closes, torch's switches are as the source wants them.

    Of several identities that the options may come to, a run that was begun keeps its own; else the first whose source is fit is
    taken, and the last in any case.

    Args:
        ranks: compared if an image is missing, as far as that is known.

    Raises:
        UserError: if something given cannot be used.
    """
    resolved, unfit = spec.resolve(config, group), []
    choices, begun = resolved.choices(), begun_of(resolved, sink)
    for run in begun or choices:
        found = look(run, spec, sink, group)
        with ExitStack() as switched:
            switched.enter_context(found.source.switched())
            if error := try_out(found, ranks):
                unfit.append(error.event)
                if run.others and not begun:
                    found.source.release()
                    say(f"note: {error}; the next is tried")
                    continue
                accept(error, found)
            stack.enter_context(switched.pop_all())
            break
    if found.manifest is None:
        tell_of_block_size(found.run.plan, group.world_size)
    return replace(found, unfit=tuple(unfit))


def begun_of(resolved: ResolvedRun, sink: Sink) -> list[ResolvedRun]:
    """The first of the runs that the options may come to that was begun, if one was; says so if another would be begun now."""
    choices = resolved.choices()
    every = [*choices, *resolved.begun_elsewhere()]
    there = {folder: manifests.read(folder, sink.made) for folder in {folder_of(run, sink) for run in every}}
    begun = [run for run in every if (manifest := there[folder_of(run, sink)]) and manifest.identity == run.identity][:1]
    for run in begun:
        if unlike := run.identity.differing(choices[0].identity):
            said = ", ".join(f"{name} {run.identity.values[name]}" for name in unlike)
            say(f"note: {folder_of(run, sink)} was begun with {said}, and goes on so")
    return begun


def look(run: ResolvedRun, spec: SourceSpec, sink: Sink, group: Group) -> Found:
    """Findings in the folder of a run, and its source, nothing of which is loaded.

    Raises:
        UserError: if it cannot be drawn there.
    """
    folder = folder_of(run, sink)
    sink.check_lengths(folder)
    manifest = manifests.read(folder, sink.made)
    check_kind(folder, FILES[sink.made])
    check_folder(folder, manifest, run)
    check_names(folder, manifest, run.names)
    done = sink.look(folder, manifest, run)
    return Found(run, folder, manifest, done, spec.open_source(run.config, run.identity, run.facts, group))


def try_out(found: Found, ranks: Ranks) -> Unfit | None:
    """Compare the ranks and try the source out, if an image is missing; return why it should not be drawn from.

    Raises:
        UserError: if it cannot be: then there is no folder yet, and a run stays as it is.
    """
    missing = int((~found.done).sum())
    if missing and found.run.identity in found.run.uncompiled:
        raise UserError(
            f"{found.folder} was begun with compiled networks, and torch.compile does not work here; go on with it where it "
            "does, or give --no-compile and another --run-name"
        )
    try:
        if missing:
            ranks.compare(found.run.identity, found.manifest, found.folder, len(found.done) - missing)
            found.source.try_out(missing)
    except Unfit as error:
        return Unfit(str(error), error.event)  # without the frames, which hold the networks
    return None


def accept(error: Unfit, found: Found) -> None:
    """Warn of a source that is drawn from all the same, as the person asked for what it is.

    Raises:
        UserError: if nobody did, and the run was begun so.
    """
    if found.run.others:
        raise UserError(f"{error}; {found.folder} was begun so, and --check off goes on with it all the same")
    warn(f"warning: {error}; it is drawn so all the same, as it was asked for")


def folder_of(run: ResolvedRun, sink: Sink) -> Path:
    return run.config.sample_dir / f"{run.config.named_run(run.identity.fingerprint)}{sink.suffix}"


def prepare(
    config: SamplingConfig, spec: SourceSpec, sink: Sink, group: Group, ranks: Ranks, stack: ExitStack, options: Mapping
) -> tuple[Source, Task, Lock]:
    """Check everything, claim the folder, and find out what is to be done, and what draws it. Until `stack` closes, the lock is
    held, and torch's switches are as that wants them.

    Args:
        options: for the manifest, those that are not in `config`.

    Raises:
        UserError: before anything is written, if something given cannot be used.
    """
    found = examine(config, spec, sink, group, ranks, stack)
    run, folder = found.run, found.folder
    group.check()  # whoever was stopped while something was tried leaves no folder
    try:
        make_folder(folder)
    except OSError as error:
        raise UserError(f"--sample-dir {config.sample_dir}: cannot create {folder} ({error.strerror})") from error
    try:
        held = stack.enter_context(Lock(folder, group.check))
        check_kind(folder, FILES[sink.made])  # another run may have been here since
        manifest = manifests.read(folder, sink.made) or Manifest.begun(sink.made, run.identity, config.num_fid_samples)
        if manifest.sessions:
            check_folder(folder, manifest, run)
            conclude(folder, manifest)
        check_names(folder, manifest, run.names)
        manifest.identity, manifest.num_fid_samples = run.identity, config.num_fid_samples
        done = sink.claim(folder, manifest)
        if error := try_out(replace(found, done=done, manifest=manifest), ranks):
            accept(error, found)
            found = replace(found, unfit=(*found.unfit, error.event))
        manifest.paths = run.paths
        if run.names:
            manifest.class_names = Names(**run.names.recorded())
        manifest.grid = run.facts.get("grid")
        weights = run.settled.get("weights_key")
        manifest.published = deviations.told(options.get("preset"), run.config, weights, run.weights) or manifest.published
        if manifest.published is None and options.get("preset") is None and (note := deviations.tell_of_rows(run.config)):
            say(note)
        manifest.options = recorded(run.config, run.identity, {**run.settled, **options})
        manifest.sessions.append(describe_session(group, ranks, int(done.sum()), sink.with_png))
        manifests.write(folder, manifest)
        forget_last_session(folder, manifest)
        npz = sink.begin(folder, run.plan, run.identity.image_size)
    except OSError as error:
        raise disk.explained(error, folder) from error
    say(f"{folder}: {done.sum():,} of {len(done):,} images are there")
    session, mark = len(manifest.sessions), manifest.mark
    task = Task(folder, session, held.token, run.identity, done, run.facts, sink.made, npz, mark)
    held.told = task.told
    for event in found.unfit:
        task.note(group, dict(event))
    return found.source, task, held


def conclude(folder: Path, manifest: Manifest) -> None:
    """Take into the manifest what the last session left, if it did not finish: why it ended, and what happened in it."""
    last, number = manifest.sessions[-1], len(manifest.sessions)
    if last.finished is not None:
        return
    if number > manifest.merged:
        last.events = read_events(folder, number, last.world_size)
    if last.ended is None:
        last.ended = read_ended(folder) or {"kind": "lost", "message": "killed without a word"}


def forget_last_session(folder: Path, manifest: Manifest) -> None:
    """Remove what `conclude` has taken, when that is written."""
    (folder / ENDED).unlink(missing_ok=True)
    if len(manifest.sessions) > 1:
        remove_events(folder, len(manifest.sessions) - 1, manifest.sessions[-2].world_size)


def describe_session(group: Group, ranks: Ranks, images_before: int, with_png: bool) -> Session:
    """The record of where and when a run was worked on."""
    own = ranks.told[0]
    return Session(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        images_before=images_before,
        world_size=group.world_size,
        hosts=group.hosts(),
        png=with_png,
        device=own["device"],
        hardware=own["hardware"],
        mixed=ranks.mixed or None,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        packages=own["packages"],
        fiducial=about(),
    )
