"""Finished runs made by hand, so that nothing has to be drawn: random pixels, their PNGs, npz, records and manifest."""

import zlib
from pathlib import Path

import numpy as np

from fiducial.sampling import plan
from fiducial.sampling.identity import Identity
from fiducial.sampling.store import manifest as manifests
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store import records
from fiducial.sampling.store.manifest import MANIFEST_FORMAT, Manifest, Npz, Session
from fiducial.sampling.store.png import png_bytes, png_path

IDENTITY = {"image_size": 8, "num_classes": 10, "global_seed": 0, "labels": "random", "per_proc_batch_size": 4, "cfg_scale": 1.5}


def make_run(parent: Path, name: str = "run", count: int = 9, seed: int = 0, marked: bool = True, **identity) -> Path:
    """The folder of a run whose pixels depend on its seed; its records bear no mark if it is of before there were marks."""
    (folder := parent / name).mkdir(parents=True)
    identity = IDENTITY | {"global_seed": seed} | identity
    size, pixels = identity["image_size"], np.random.default_rng(seed)
    manifest = Manifest.begun(MANIFEST_FORMAT, Identity(identity), count)
    if not marked:
        manifest.records_format = None
    mark = manifest.mark
    rows = []
    with open(archive.part_path(folder), "wb") as npz:
        for index in range(count):
            image = pixels.integers(0, 256, (size, size, 3), dtype=np.uint8)
            png = png_bytes(image)
            png_path(folder, index).write_bytes(png)
            archive.write_pixels(npz.fileno(), index, image.tobytes(), size)
            rows.append(records.row(index, image.tobytes(), zlib.crc32(image.tobytes()), (zlib.crc32(png), len(png))))
    records.Recorder(folder, 1, 0, mark).add(np.concatenate(rows))
    records.merge(folder, {1: 1}, count, mark)
    crcs, pixels_sha256 = records.summary(folder, count, mark)
    labels = plan.labels(identity["labels"], identity["num_classes"], seed, 0, count)
    whole = archive.npz_path(folder)
    archive.complete(archive.part_path(folder), whole, archive.frame(labels, size, crcs))
    manifest.sessions.append(Session(world_size=1, images_before=0, png=True, finished="2026-01-01T00:00:00+00:00"))
    manifest.merged, manifest.npz = 1, Npz(whole.name, count, whole.stat().st_size, pixels_sha256)
    manifests.write(folder, manifest)
    return folder
