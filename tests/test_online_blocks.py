"""Blocks of features of `--evaluate-online`: whatever was done to one, it is drawn again, or refused in a sentence."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from made_runs import IDENTITY

from fiducial import NotAFile, UserError
from fiducial.evaluation import Evaluator
from fiducial.sampling.identity import fingerprint
from fiducial.sampling.plan import Plan
from fiducial.sampling.run import feature_files
from fiducial.sampling.store.folder import ONLINE
from fiducial.sampling.store.manifest import ONLINE_FORMAT, Manifest, read, write

COUNT, SIZE, RUN = 8, 4, "a" * 64
PLAN = Plan("0-7", 10, 0, COUNT, SIZE)


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator("digits")


@pytest.fixture
def damaged(evaluator, tmp_path) -> Path:
    """The second block of a run whose first is whole."""
    (tmp_path / evaluator.extractor).mkdir()
    images, labels = np.random.default_rng(0).integers(0, 256, (COUNT, 64, 64, 3), dtype=np.uint8), PLAN.labels
    for start in range(0, COUNT, SIZE):
        part, indices = evaluator.fresh(), np.arange(start, start + SIZE)
        part.update(images[indices], indices, labels[indices])
        arrays = {name: np.asarray(value) for name, value in part.state_dict().items()} | {feature_files.RUN: np.array(RUN)}
        np.savez(path := feature_files.block_path(tmp_path, evaluator, start), **arrays)
    assert feature_files.done_images(tmp_path, evaluator, PLAN, 64, RUN).all()
    return path


def is_drawn_again(path: Path, evaluator: Evaluator) -> bool:
    """Whether a run takes only the other block for done; and none is ever merged that was not taken for that."""
    done = feature_files.done_images(path.parent.parent, evaluator, PLAN, 64, RUN)
    assert done[:SIZE].all()
    with pytest.raises(feature_files.DAMAGED):
        evaluator.fresh().merge(feature_files.read_block(path, evaluator, SIZE, 64))
    return not done[SIZE:].any()


def test_no_byte_makes_a_traceback(damaged, evaluator):
    """Each of the zip's headers, of an array's header, and some of the rest; any one is told, or does not matter."""
    whole, random = damaged.read_bytes(), np.random.default_rng(1)
    directory = whole.index(b"PK\x01\x02")
    places = {*range(60), *range(128, 200), *range(directory, directory + 60), *range(len(whole) - 22, len(whole))}
    for place in sorted(places) + random.integers(0, len(whole), 40).tolist():
        changed = bytearray(whole)
        changed[place] ^= int(random.integers(1, 256))
        damaged.write_bytes(changed)
        done = feature_files.done_images(damaged.parent.parent, evaluator, PLAN, 64, RUN)
        assert done[:SIZE].all()
        if done[SIZE:].all():  # then it is read again without a word
            evaluator.fresh().merge(feature_files.read_block(damaged, evaluator, SIZE, 64))


@pytest.mark.parametrize("method", [99, 8, 12])
def test_a_method_of_compression_that_is_not_its_own(method, damaged, evaluator):
    """One changed byte, which was a traceback at every further start."""
    content = bytearray(damaged.read_bytes())
    content[content.index(b"PK\x01\x02") + 10] = method
    damaged.write_bytes(content)
    assert is_drawn_again(damaged, evaluator)


@pytest.mark.parametrize("kind", ["empty", "cut", "text", "npy", "encrypted", "compressed", "pickled", "huge"])
def test_a_file_that_is_not_one(kind, damaged, evaluator):
    whole = damaged.read_bytes()
    with np.load(damaged) as state:
        arrays = dict(state)
    if kind == "encrypted":
        at = whole.index(b"PK\x01\x02") + 8
        damaged.write_bytes(whole[:at] + bytes([whole[at] | 1]) + whole[at + 1 :])
    elif kind == "compressed":  # which could unpack to anything
        np.savez_compressed(damaged, **arrays)
    elif kind == "pickled":
        np.savez(damaged, **arrays | {"features": np.array([{}], dtype=object)})
    elif kind == "npy":
        with open(damaged, "wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "huge":
        with zipfile.ZipFile(damaged, "a") as archive, archive.open("x.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    else:
        damaged.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"features"}[kind])
    assert is_drawn_again(damaged, evaluator)


CHANGED = {
    "features": [np.full((4, 64), np.nan, np.float32), np.zeros((3, 64), np.float32), np.zeros((4, 64)), np.array("x")],
    "pixels": [np.zeros((4, 31), np.uint8), np.zeros(4, np.uint8)],
    "size": [np.array([64, 64, 3]), np.array([[64], [64]]), np.array([10**9] * 2), np.array([32, 32]), np.array([np.nan] * 2)],
    "kept": [np.array([[0]]), np.array([0.5]), np.array([4]), np.array([-1]), np.array("x")],
    "thumbnails": [np.zeros((4, 64, 64), np.uint8), np.zeros((4, 64, 64, 3)), np.array("x")],
    "indices": [np.arange(4), np.array([4, 5, 6, -7]), np.arange(4.0, 8.0), np.array(4)],
    "labels": [np.arange(4), np.array([4, 5, 6, -7])],
    "extractor": [np.array("inception 00"), np.zeros((2, 2))],
    feature_files.RUN: [np.array("b" * 64)],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in CHANGED.items() for value in values])
def test_a_state_that_is_not_whole(name, value, damaged, evaluator):
    with np.load(damaged) as state:
        arrays = dict(state)
    np.savez(damaged, **arrays | {name: value})
    assert not feature_files.done_images(damaged.parent.parent, evaluator, PLAN, 64, RUN)[SIZE:].any()
    del arrays[name]
    np.savez(damaged, **arrays)
    assert not feature_files.done_images(damaged.parent.parent, evaluator, PLAN, 64, RUN)[SIZE:].any()


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_file_is_told_before_anything_is_drawn(kind, damaged, evaluator, tmp_path):
    damaged.unlink()
    {"folder": os.mkdir, "pipe": os.mkfifo, "link": lambda path: os.symlink(tmp_path / "nowhere", path)}[kind](damaged)
    if kind == "link":
        (tmp_path / "nowhere").write_bytes(b"no block")
    with pytest.raises(NotAFile, match="it is a"):
        feature_files.done_images(tmp_path, evaluator, PLAN, 64, RUN)


def test_online_json_is_held_against_what_it_must_have(tmp_path):
    session = {"world_size": 1, "images_before": 0}
    about = {"format": ONLINE_FORMAT, "fingerprint": fingerprint(IDENTITY), "identity": IDENTITY, "sessions": [session]}
    about |= {"num_fid_samples": 8}
    write(tmp_path, Manifest.from_json(about))
    assert read(tmp_path, ONLINE_FORMAT).to_json() == about
    for wrong in ({"num_fid_samples": "8"}, {"sessions": [3]}, {"sessions": [{}]}, {"class_names": {}}, {"identity": []}):
        (tmp_path / ONLINE).write_text(json.dumps({"sessions": []} | about | wrong))
        with pytest.raises(UserError, match=r"online\.json is not whole"):
            read(tmp_path, ONLINE_FORMAT)
