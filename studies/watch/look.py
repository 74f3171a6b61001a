"""One look after the other at a run's folder: what state it is in, as far as its files tell. No torch.

A run is alive if something in its files moves between two looks, by this machine's own steady clock: no time stamp is compared.
Files may be half-written, late, or gone: what cannot be read now is read at the next look.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fiducial import UserError, is_running, own_process
from fiducial.sampling.commands.status import as_named, judge
from fiducial.sampling.store import lock, progress, records
from fiducial.sampling.store import manifest as manifests
from fiducial.sampling.store.folder import MANIFEST, ONLINE, read_ended, sheet_path
from fiducial.sampling.store.manifest import MANIFEST_FORMAT, ONLINE_FORMAT, Manifest
from fiducial.sampling.store.progress import DRAWING, ENDED, EVALUATED, Progress
from fiducial.studies.watch.events import events_of

COMPLETE, FAILED, RESUMABLE, SILENT, ABSENT = "complete", "failed", "resumable", "silent", "absent"
BEGINNING, AT_WORK, EVALUATES = "beginning", "drawing", "evaluating"
ALIVE = (BEGINNING, AT_WORK, EVALUATES)
EVENTS_SECONDS = 10.0  # between two readings of events, which are in a file a rank


@dataclass(frozen=True)
class View:
    """A run at one look.

    `state` is complete, failed, resumable, silent, absent, beginning, drawing or evaluating, `reason` why; `quiet` the seconds
    for which nothing has moved; `events` the newest, oldest first; `sheet` and `result` are files that are there.
    """

    folder: Path
    state: str
    reason: str = ""
    images: int = 0
    of: int = 0
    session: int = 0
    world_size: int = 0
    quiet: float = 0.0
    progress: Progress | None = None
    events: tuple[str, ...] = ()
    sheet: Path | None = None
    result: Path | None = None


@dataclass
class Look:
    """Looks at one run, again and again.

    Args:
        silence: seconds without a movement after which a run counts as silent.
        now: a clock that never goes back.
    """

    folder: Path
    silence: float = 120.0
    now: Callable[[], float] = time.monotonic
    _mark: object = field(default=None, repr=False)
    _moved: float | None = field(default=None, repr=False)
    _manifest: Manifest | None = field(default=None, repr=False)
    _events: tuple[float, int, tuple[str, ...]] = field(default=(-EVENTS_SECONDS, 0, ()), repr=False)

    def __call__(self) -> View:
        """Look once.

        Raises:
            UserError: if what stands there is no run, or one that was changed by hand.
        """
        folder = as_named(self.folder)
        holder, ended = lock.read(folder / lock.LOCK), read_ended(folder)
        manifest = self._read(folder)
        if manifest is None or not manifest.sessions:
            return View(self.folder, BEGINNING if holder else ABSENT, "nothing of it is told yet" if holder else "")
        number, last = len(manifest.sessions), manifest.sessions[-1]
        told = progress.read(folder)
        told = told if told and told.session == number and told.of == manifest.num_fid_samples else None
        quiet = self._quiet((number, last.finished, ended, holder, told and (told.stage, told.beat)))
        images = told.images if told else images_done(folder, manifest)
        result = result_of(folder)
        state, reason = self._judge(folder, manifest, images, holder, ended, told, quiet)
        if told and state in (RESUMABLE, FAILED):  # of its last seconds nothing was told
            images = images_done(folder, manifest)
        sheet = sheet_path(folder)
        return View(
            self.folder,
            state,
            reason,
            images,
            manifest.num_fid_samples,
            number,
            last.world_size,
            quiet,
            told,
            self._newest_events(folder, manifest, ended),
            sheet if sheet.is_file() else None,
            result,
        )

    @property
    def moved(self) -> float | None:
        """When something has moved last, by the clock of this look; None before the first."""
        return self._moved

    def is_here(self) -> bool:
        """Whether the process that draws is one of this machine, so that it is known whether it runs."""
        holder = lock.read(as_named(self.folder) / lock.LOCK)
        return bool(holder and holder["scope"] and holder["scope"] == own_process()["scope"])

    def _read(self, folder: Path) -> Manifest | None:
        """The manifest; the one before, where it is being replaced just now."""
        for made, name in ((MANIFEST_FORMAT, MANIFEST), (ONLINE_FORMAT, ONLINE)):
            if (folder / name).exists():
                try:
                    self._manifest = manifests.read(folder, made) or self._manifest
                except UserError:
                    if self._manifest is None:
                        raise
                return self._manifest
        return None

    def _quiet(self, mark: object) -> float:
        """Seconds since something has moved that was seen from here."""
        now = self.now()
        if mark != self._mark or self._moved is None:
            self._mark, self._moved = mark, now
        return now - self._moved

    def _judge(
        self,
        folder: Path,
        manifest: Manifest,
        images: int,
        holder: dict | None,
        ended: dict | None,
        told: Progress | None,
        quiet: float,
    ) -> tuple[str, str]:
        """State and reason."""
        last = manifest.sessions[-1]
        if last.finished is not None and not ended:
            return self._after_drawing(folder, manifest, images, told, quiet)
        if ended and not holder:
            return (FAILED if ended["kind"] == "failed" else RESUMABLE), ended["message"]
        if holder is None:
            return RESUMABLE, "its last session did not finish"
        who = f"process {holder['pid']} on {holder['host']}"
        if holder["scope"] == own_process()["scope"] and not is_running(holder):
            return RESUMABLE, f"{who} was killed without a word"
        if quiet > self.silence:
            return (
                SILENT,
                f"{who} has written nothing for {quiet:.0f} s: it stands still, was killed, or its disk does not answer",
            )
        if ended or told is None or told.stage != DRAWING:
            return BEGINNING, f"{who} is at it"
        return AT_WORK, ""

    def _after_drawing(
        self, folder: Path, manifest: Manifest, images: int, told: Progress | None, quiet: float
    ) -> tuple[str, str]:
        """The same once all is drawn: the evaluation that was asked for has begun, or is still to begin."""
        if manifest.format == MANIFEST_FORMAT:
            state, reason = judge(folder, manifest, images)
            if state not in (COMPLETE, "running"):
                return state, reason
        if "ref" not in (manifest.options or {}) or (told and told.stage == EVALUATED):
            return COMPLETE, ""
        if told and told.stage == ENDED:
            return (FAILED if told.kind == "failed" else RESUMABLE), f"its evaluation ended early: {told.message}"
        if told and quiet <= self.silence:
            return EVALUATES, ""
        if result_of(folder):
            return COMPLETE, ""
        return RESUMABLE, "it is drawn, but not evaluated; the same command evaluates it"

    def _newest_events(self, folder: Path, manifest: Manifest, ended: dict | None) -> tuple[str, ...]:
        """The events, read anew when a session has begun or some time is over."""
        then, number, found = self._events
        if self.now() - then >= EVENTS_SECONDS or number != len(manifest.sessions) or ended:
            found = events_of(folder, manifest, ended)
            self._events = (self.now(), len(manifest.sessions), found)
        return found


def images_done(folder: Path, manifest: Manifest) -> int:
    """How many images are there by records or files of features, where nothing is told of it: of an older run."""
    count = manifest.num_fid_samples
    if manifest.format == MANIFEST_FORMAT:
        return int(np.count_nonzero(records.done(folder, count, manifest.unmerged, manifest.mark)))
    blocks = max((len(list(inner.glob("[0-9]*.npz"))) for inner in folder.iterdir() if inner.is_dir()), default=0)
    return min(blocks * manifest.identity.block_size, count)


def result_of(folder: Path) -> Path | None:
    """The page of the result, or the JSON where there is none; None before there is one."""
    beside = (folder.with_name(folder.name + ending) for ending in (".html", ".json"))
    return next((path for path in beside if path.is_file()), None)
