"""Ranks that watch each other: who counts as lost, and what counts as a sign of life."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image
from torch.distributed import HashStore

from fiducial import Group, file_sha256, files, life, own_process
from fiducial.evaluation.data import npz
from fiducial.evaluation.data.opening import open_images
from fiducial.ranks import fellows
from fiducial.ranks.beats import LOST_BEATS, START_BEATS, beat_key
from fiducial.ranks.cause import Ending
from fiducial.ranks.counting import Counter
from fiducial.ranks.fellows import Fellows
from fiducial.ranks.listening import Listener

HANG_BEATS = 600
ALIVE = own_process()
ELSEWHERE = {"host": "another", "scope": "another"}


def silent_for(other: dict, beat: str, hang_beats: int) -> int | None:
    """After how many beats rank 0 gives up another, which is silent after this one; None for never."""
    processes = [{**ALIVE, "launcher": None}, {**ALIVE, **other, "launcher": None}]
    store, ending, ranks = HashStore(), Ending(0), Fellows(0, 2, processes)
    store.set(beat_key(1), beat)
    counter = Counter(ending, ranks, None, None)
    counter.hang_beats = hang_beats
    listener = Listener(store, ending, ranks, None, counter)
    for counter.ticks in range(2000):
        listener._exchange(1)
        if ending.cause:
            assert (ending.cause.kind, ending.cause.lost_rank) == ("lost", 1)
            return counter.ticks
    return None


@pytest.mark.parametrize(
    ("other", "beat", "hang_beats", "given_up"),
    [
        ({}, "7", HANG_BEATS, LOST_BEATS + HANG_BEATS),
        ({}, "7", 0, None),
        ({}, "", 0, START_BEATS),
        ({"started": "1"}, "7", HANG_BEATS, LOST_BEATS),
        ({"started": "1"}, "", HANG_BEATS, LOST_BEATS),
        (ELSEWHERE, "7", HANG_BEATS, LOST_BEATS),
        (ELSEWHERE, "", HANG_BEATS, START_BEATS),
        (ELSEWHERE, "left", HANG_BEATS, None),
    ],
)
def test_who_counts_as_lost(other, beat, hang_beats, given_up):
    """A process that is there on this machine may be silent as long as it may make no progress; one that has not begun to beat
    may still wait for its GPU."""
    assert silent_for(other, beat, hang_beats) == (given_up and given_up + 1)


def test_one_that_is_stopped_on_this_machine_is_lost_at_once(monkeypatch):
    monkeypatch.setattr(fellows, "is_stopped", lambda _: True)
    assert silent_for({}, "7", HANG_BEATS) == silent_for({}, "", 0) == LOST_BEATS + 1


@pytest.fixture
def signs(monkeypatch) -> list[int]:
    """One for each sign of life that a group has heard, in which the test is."""
    heard = []
    monkeypatch.setattr(Counter, "progressed", lambda _: heard.append(1))
    with Group(0, 1, 0, "0", None, HashStore()):
        yield heard
    assert life.watchers == []


def test_each_chunk_of_a_hashed_file_is_a_sign_of_life(signs, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "CHUNK", 10)
    (tmp_path / "file").write_bytes(b"x" * 95)
    file_sha256(tmp_path / "file")
    assert len(signs) == 10


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("zipped", [False, True])
def test_each_image_file_is_a_sign_of_life(zipped, signs, tmp_path):
    names = [f"{number}.png" for number in range(20)]
    for name in names:
        (tmp_path / name).write_bytes(picture())
    path = tmp_path / "images.zip" if zipped else tmp_path
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.write(tmp_path / name, name)
    images = open_images(path)
    reads = [lambda: list(images.batches(20)), lambda: images.headers, *([] if zipped else [images.content_sha256])]
    for read in reads:
        signs.clear()
        read()
        assert len(signs) == 20


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_each_chunk_of_an_npz_is_a_sign_of_life(save, signs, monkeypatch, tmp_path):
    monkeypatch.setattr(npz, "CHUNK", 1000)
    save(tmp_path / "images.npz", np.zeros((100, 8, 8, 3), np.uint8))
    images = open_images(tmp_path / "images.npz")
    signs.clear()
    list(images.batches(50))
    assert len(signs) >= 2 * 50 * 192 // 1000
