"""The state of a run, for people and for job scripts. No torch."""

from dataclasses import dataclass
from pathlib import Path

from fiducial import RESUMABLE, UserError, is_running, own_process
from fiducial.sampling.store import lock, records
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store.folder import MANIFEST, ONLINE, read_ended
from fiducial.sampling.store.manifest import Manifest, mixed_up, read

COMPLETE, FAILED = 0, 1
FRUITLESS_CHECKS = 10  # the same, once all images are drawn and only checked
FRUITLESS = 3  # sessions in a row without a new image, after which starting another is no remedy
EXIT_CODES = {"complete": COMPLETE, "running": RESUMABLE, "resumable": RESUMABLE, "failed": FAILED}


@dataclass(frozen=True)
class Status:
    """`state` is complete, running, resumable or failed; `reason` says why it is not complete."""

    folder: str
    state: str
    images: int
    of: int
    sessions: int
    reason: str

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.state]


def status(folder: Path) -> Status:
    """Read manifest, records and lock, but no image.

    Raises:
        UserError: if there is no run in `folder`.
    """
    folder = as_named(folder)
    manifest = require_manifest(folder)
    count, sessions = manifest.num_fid_samples, manifest.sessions
    images = int(records.done(folder, count, manifest.unmerged, manifest.mark).sum())
    state, reason = judge(folder, manifest, images)
    return Status(str(folder), state, images, count, len(sessions), reason)


def judge(folder: Path, manifest: Manifest, images: int) -> tuple[str, str]:
    """State and reason."""
    holder, ended, path = lock.read(folder / lock.LOCK), read_ended(folder), archive.npz_path(folder)
    if holder and holder["scope"] == own_process()["scope"] and is_running(holder):
        return "running", f"process {holder['pid']} on {holder['host']} is at it"
    if reason := mixed_up(folder, manifest):
        return "failed", f"{reason}; put back the files of one run"
    npz, all_drawn = manifest.npz, images == manifest.num_fid_samples
    finished = not ended and bool(manifest.sessions) and manifest.sessions[-1].finished is not None
    is_whole = npz and npz.count == images and path.is_file() and path.stat().st_size == npz.bytes
    if finished and all_drawn and is_whole:
        return "complete", ""
    if ended and ended["kind"] == "failed":
        return "failed", ended["message"]
    most = FRUITLESS if not all_drawn else FRUITLESS_CHECKS
    last = manifest.sessions[-most:]
    fruitless = [session for session in last if session.images_before == images and session.finished is None]
    if len(fruitless) == most:
        return "failed", f"{most} sessions drew nothing; the last: {ended['message'] if ended else 'killed without a word'}"
    if ended:
        return "resumable", ended["message"]
    if holder:
        is_here = holder["scope"] == own_process()["scope"]
        how = "was killed without a word" if is_here else "may be at it, or was killed"
        return "resumable", f"process {holder['pid']} on {holder['host']} {how}"
    if not all_drawn:
        return "resumable", f"{manifest.num_fid_samples - images:,} images are not drawn, or not recorded"
    return "resumable", f"all images are drawn, but {path} is not whole" if finished else "the last session did not finish"


def as_named(folder: Path) -> Path:
    """The folder by the name that its npz bears, too: not `.`, nor a link."""
    return folder if archive.npz_path(folder).exists() or archive.part_path(folder).exists() else folder.resolve()


def require_manifest(folder: Path) -> Manifest:
    manifest = read(folder)
    if manifest is None:
        if (folder / ONLINE).exists():
            raise UserError(f"{folder} is of --evaluate-online, which keeps no images; the same command goes on where it ended")
        raise UserError(f"{folder} is not the folder of a run: it has no {MANIFEST}")
    return manifest
