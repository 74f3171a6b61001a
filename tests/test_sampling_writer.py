"""PNGs and the writer that makes them beside the model."""

import os
import threading

import numpy as np
import pytest
from PIL import Image

from fiducial import NotAFile
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store import records
from fiducial.sampling.store import writer as writer_module
from fiducial.sampling.store.png import png_bytes, png_path, read_png, write_png
from fiducial.sampling.store.repair import Copies
from fiducial.sampling.store.writer import BlockWriter


def picture(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def write(folder, pictures, with_png: bool = True, block: int = 4) -> list[np.ndarray]:
    """Writes images in blocks, the last one first."""
    npz = folder.parent / "run.npz.part"
    npz.touch()
    os.truncate(npz, archive.slot(len(pictures), pictures.shape[1]))
    recorder, written = records.Recorder(folder, 1, 0), []
    with BlockWriter(folder, npz, pictures.shape[1], with_png, recorder, written.append) as writer:
        for start in reversed(range(0, len(pictures), block)):
            indices = np.arange(start, min(start + block, len(pictures)))
            writer.submit(indices, pictures[indices], lambda: None)
    return written


@pytest.mark.parametrize("with_png", [True, False])
def test_images_reach_both_copies_and_the_records(with_png, tmp_path):
    (folder := tmp_path / "run").mkdir()
    pictures = np.stack([picture(8, seed) for seed in range(30)])
    written = write(folder, pictures, with_png)
    assert [len(rows) for rows in written] == [2] + [4] * 7
    records.merge(folder, {1: 1})
    rows = records.table(folder, 0, 30)
    assert (rows["check"] != 0).all()
    npz = os.open(tmp_path / "run.npz.part", os.O_RDONLY)
    copies = Copies(folder, npz, 8)
    for index, row in enumerate(rows):
        assert copies.in_npz(row) == pictures[index].tobytes()
        assert (copies.in_png(row) == pictures[index].tobytes()) == with_png
        assert copies.png_file_is_whole(row) == with_png
    os.close(npz)
    assert len(list(folder.glob("*.png"))) == (30 if with_png else 0)


def test_an_image_is_recorded_when_it_is_there(tmp_path, monkeypatch):
    (folder := tmp_path / "run").mkdir()
    seen = []
    original = records.Recorder.add

    def add(self, rows):
        seen.extend((folder / f"{row['index']:06d}.png").exists() for row in rows)
        original(self, rows)

    monkeypatch.setattr(records.Recorder, "add", add)
    write(folder, np.stack([picture(8, seed) for seed in range(20)]))
    assert seen == [True] * 20


def test_a_failed_write_reaches_the_sampler_and_leaves_no_row(tmp_path):
    (folder := tmp_path / "run").mkdir()
    (folder / "000005.png").mkdir()
    with pytest.raises(NotAFile, match="it is a folder, not a file"):
        write(folder, np.stack([picture(8, 0)] * 8))
    assert not records.done(folder, 8, {1: 1})[4:].any()
    assert not list(folder.glob(".*"))


def test_whoever_waits_for_room_hears_that_work_ends(tmp_path, monkeypatch):
    """A disk that hangs must not keep a rank from ending."""
    (folder := tmp_path / "run").mkdir()
    hanging = threading.Event()
    monkeypatch.setattr(writer_module, "write_png", lambda *_: hanging.wait())
    npz = tmp_path / "run.npz.part"
    npz.touch()

    def check():
        hanging.set()
        raise TimeoutError("told to stop")

    def write_ten():
        with BlockWriter(folder, npz, 8, True, recorder, lambda _: None) as writer:
            for start in range(10):
                writer.submit(np.array([start]), picture(8, 0)[None], check)

    recorder = records.Recorder(folder, 1, 0)
    with pytest.raises(TimeoutError):
        write_ten()


def test_large_runs_are_spread_over_folders_that_sort_by_index(tmp_path):
    indices = [0, 7, 99_999, 100_000, 199_999, 200_000, 999_999, 1_000_000, 10_000_000]
    paths = [png_path(tmp_path, index) for index in indices]
    assert paths[0].parent == tmp_path
    assert sorted(paths, key=str) == paths
    assert len({path.parent for path in paths}) == 6
    write_png(paths[4], png_bytes(picture(8, 0)))
    assert read_png(paths[4], 8) == picture(8, 0).tobytes()


@pytest.mark.parametrize("content", [b"", b"no image", "other size", "grey"])
def test_what_is_no_image_of_ours_is_not_read(content, tmp_path):
    path = tmp_path / "000000.png"
    if content == "other size":
        Image.fromarray(picture(9, 0)).save(path)
    elif content == "grey":
        Image.fromarray(picture(8, 0)[..., 0]).save(path)
    else:
        path.write_bytes(content)
    assert read_png(path, 8) is None
