"""What state a run is in, for people and for job scripts. No torch."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fiducial import NO_FILE, RESUMABLE, UserError, is_running, no_file, open_regular, own_process
from fiducial.sampling import plan
from fiducial.sampling.store import lock, records, repair
from fiducial.sampling.store import manifest as output
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store.folder import MANIFEST, ONLINE, read_ended
from fiducial.sampling.store.png import png_path

COMPLETE, FAILED = 0, 1
STEP = 8192  # images looked at between two signs of life
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
    """Reads manifest, records and lock, but no image.

    Raises:
        UserError: if there is no run in `folder`.
    """
    folder = as_named(folder)
    manifest = require_manifest(folder)
    count, sessions = manifest["num_fid_samples"], manifest["sessions"]
    images = int(records.done(folder, count, output.unmerged(manifest), output.mark(manifest)).sum())
    state, reason = judge(folder, manifest, images)
    return Status(str(folder), state, images, count, len(sessions), reason)


def judge(folder: Path, manifest: dict, images: int) -> tuple[str, str]:
    """State and reason."""
    holder, ended, path = lock.read(folder / lock.LOCK), read_ended(folder), archive.npz_path(folder)
    if holder and holder["scope"] == own_process()["scope"] and is_running(holder):
        return "running", f"process {holder['pid']} on {holder['host']} is at it"
    if reason := output.mixed_up(folder, manifest):
        return "failed", f"{reason}; put back the files of one run"
    npz, all_drawn = manifest["npz"], images == manifest["num_fid_samples"]
    finished = not ended and bool(manifest["sessions"]) and "finished" in manifest["sessions"][-1]
    is_whole = npz and npz["count"] == images and path.is_file() and path.stat().st_size == npz["bytes"]
    if finished and all_drawn and is_whole:
        return "complete", ""
    if ended and ended["kind"] == "failed":
        return "failed", ended["message"]
    most = FRUITLESS if not all_drawn else FRUITLESS_CHECKS
    last = manifest["sessions"][-most:]
    fruitless = [session for session in last if session["images_before"] == images and "finished" not in session]
    if len(fruitless) == most:
        return "failed", f"{most} sessions drew nothing; the last: {ended['message'] if ended else 'killed without a word'}"
    if ended:
        return "resumable", ended["message"]
    if holder:
        is_here = holder["scope"] == own_process()["scope"]
        how = "was killed without a word" if is_here else "may be at it, or was killed"
        return "resumable", f"process {holder['pid']} on {holder['host']} {how}"
    if not all_drawn:
        return "resumable", f"{manifest['num_fid_samples'] - images:,} images are not drawn, or not recorded"
    return "resumable", f"all images are drawn, but {path} is not whole" if finished else "the last session did not finish"


def verify(folder: Path, on_checked: Callable[[int], object]) -> Iterator[str]:
    """Holds the pixels of every PNG, and all of the npz, against what is recorded; yields a line for each thing that is wrong.

    on_checked: called with how many images have been looked at since.

    Raises:
        UserError: if there is no run in `folder`.
    """
    folder = as_named(folder)
    manifest = require_manifest(folder)
    count, size, session = manifest["num_fid_samples"], manifest["identity"]["image_size"], output.unmerged(manifest)
    mark = output.mark(manifest)
    done, crcs = records.done(folder, count, session, mark), np.zeros(count, np.uint32)
    if reason := output.mixed_up(folder, manifest):
        yield reason
    whole = archive.npz_path(folder)
    path = next((path for path in (whole, archive.part_path(folder)) if path.is_file()), None)
    if path is None:
        reason = no_file(whole)
        yield f"{whole} is not there" if reason == NO_FILE else f"{whole}: {reason}"
    with open_regular(path) if path else open(os.devnull, "rb") as npz:
        copies = repair.Copies(folder, npz.fileno(), size)
        for first in range(0, count, records.CHUNK):
            last = min(first + records.CHUNK, count)
            if not done[first:last].any():
                on_checked(last - first)
                continue
            rows = records.latest(folder, count, session, mark, range(first, last))
            crcs[first:last] = rows["pixels_crc"]
            for start in range(0, len(rows), STEP):
                some = rows[start : start + STEP]
                for offset, wrong in repair.verify(copies, some[some["check"] != 0], path is not None):
                    yield f"{png_path(folder, offset)}: {wrong}"
                on_checked(len(some))
    if path == whole and manifest["npz"] and done.all() and not archive.has_frame(whole, expected_frame(manifest, crcs)):
        yield f"{whole}: its headers or labels are damaged"


def expected_frame(manifest: dict, crcs: np.ndarray) -> tuple[bytes, bytes]:
    """What stands around the pixels in the npz, by the CRC-32 of each image's."""
    identity = manifest["identity"]
    labels = plan.labels(identity["labels"], identity["num_classes"], identity["global_seed"], 0, len(crcs))
    return archive.frame(labels, identity["image_size"], crcs)


def as_named(folder: Path) -> Path:
    """The folder by the name that its npz bears, too: not `.`, nor a link."""
    return folder if archive.npz_path(folder).exists() or archive.part_path(folder).exists() else folder.resolve()


def require_manifest(folder: Path) -> dict:
    manifest = output.read_manifest(folder)
    if manifest is None:
        if (folder / ONLINE).exists():
            raise UserError(f"{folder} is of --evaluate-online, which keeps no images; the same command goes on where it ended")
        raise UserError(f"{folder} is not the folder of a run: it has no {MANIFEST}")
    return manifest
