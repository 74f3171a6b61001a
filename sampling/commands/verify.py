"""Whether the images of a run are what was drawn. No torch."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fiducial import NO_FILE, no_file, open_regular
from fiducial.sampling.commands.status import as_named, require_manifest
from fiducial.sampling.plan import Plan
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store import records, repair
from fiducial.sampling.store.manifest import Manifest, mixed_up
from fiducial.sampling.store.png import png_path

STEP = 8192  # images looked at between two signs of life


def verify(folder: Path, on_checked: Callable[[int], object]) -> Iterator[str]:
    """Compare the pixels of every PNG, and all of the npz, with what is recorded; yield a line for each thing that is wrong.

    on_checked: called with how many images have been looked at since.

    Raises:
        UserError: if there is no run in `folder`.
    """
    folder = as_named(folder)
    manifest = require_manifest(folder)
    count, size = manifest.num_fid_samples, manifest.identity.image_size
    session, mark = manifest.unmerged, manifest.mark
    done, crcs = records.done(folder, count, session, mark), np.zeros(count, np.uint32)
    if reason := mixed_up(folder, manifest):
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
    if path == whole and manifest.npz and done.all() and not archive.has_frame(whole, expected_frame(manifest, crcs)):
        yield f"{whole}: its headers or labels are damaged"


def expected_frame(manifest: Manifest, crcs: np.ndarray) -> tuple[bytes, bytes]:
    """The bytes around the pixels in the npz, by the CRC-32 of each image's."""
    return archive.frame(Plan.of(manifest.identity, len(crcs)).labels, manifest.identity.image_size, crcs)
