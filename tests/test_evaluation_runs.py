"""Class names beside samples are shown, and whatever else stands there is not believed."""

import hashlib
import json
import os

import numpy as np
import pytest

from fiducial import UserError
from fiducial.evaluation.data.images import Images
from fiducial.evaluation.data.opening import open_images
from fiducial.evaluation.data.runs import ClassNames, find_names, known_pixels
from fiducial.evaluation.features.extraction import PIXELS, extract
from fiducial.evaluation.features.load import load_extractor
from fiducial.evaluation.report.gallery import gallery_html, names_html
from fiducial.evaluation.results.grid import Grid

NAMES = ["tench", "<b>&'\"", "ä", "3"]
KNOWN = {"names": NAMES, "sha256": "ab" * 32}
NPZ = {"pixels_sha256": "cd" * 32}


def manifest(folder, content):
    (folder / "run").mkdir(exist_ok=True)
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "run" / "manifest.json").write_bytes(text)
    return folder / "run.npz"


def test_names_are_those_of_the_run_that_drew_these_pixels(tmp_path):
    samples = manifest(tmp_path, {"class_names": KNOWN, "npz": NPZ})
    assert find_names(samples, "cd" * 32) == ClassNames(tuple(NAMES), "ab" * 32)
    assert find_names(tmp_path / "run", "cd" * 32) == ClassNames(tuple(NAMES), "ab" * 32)
    assert find_names(samples, "ce" * 32) is None
    assert find_names(tmp_path / "other.npz", "cd" * 32) is None


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff", b"[]", b"7", b"[" * 100_000, b'{"class_names": {}}'),
        {"npz": NPZ},
        {"npz": NPZ, "class_names": None},
        {"npz": None, "class_names": KNOWN},
        {"npz": NPZ, "class_names": KNOWN | {"names": "tench"}},
        {"npz": NPZ, "class_names": KNOWN | {"names": ["tench", 7]}},
        {"npz": NPZ, "class_names": KNOWN | {"names": ["tench", ""]}},
        {"npz": NPZ, "class_names": KNOWN | {"names": ["tench", "x" * 201]}},
        {"npz": NPZ, "class_names": KNOWN | {"names": ["\ud800"]}},
        {"npz": NPZ, "class_names": KNOWN | {"sha256": 7}},
        {"npz": NPZ, "class_names": KNOWN | {"sha256": "x" * 1000}},
    ],
    ids=lambda content: str(content)[:60],
)
def test_what_is_not_as_expected_counts_as_absent(content, tmp_path):
    assert find_names(manifest(tmp_path, content), "cd" * 32) is None


def page(labels: list[int], names: ClassNames | None) -> str:
    """The report's grid and list of names."""
    grid = Grid.choose(np.array(labels), len(labels), 10, 10)
    grid.fill(lambda indices: {index: np.zeros((8, 8, 3), dtype=np.uint8) for index in indices})
    return gallery_html(grid, names) + names_html(names)


def test_the_grid_shows_names_and_escapes_them():
    found = page([0, 1, 2, 3, 4], ClassNames(tuple(NAMES), "<&>"))
    assert "<th><bdi>tench</bdi> <small>class 0</small></th>" in found
    assert "<th><bdi>&lt;b&gt;&amp;&#x27;&quot;</bdi> <small>class 1</small></th>" in found
    assert "<th>class 3</th>" in found  # a name that says no more than the number
    assert "<th>class 4</th>" in found  # the null label
    assert "4 class names, SHA-256 &lt;&amp;&gt;" in found
    assert "<b>" not in found
    assert [f"<li><bdi>{name}</bdi></li>" in found for name in ("tench", "ä", "3")] == [True] * 3


def test_without_names_the_grid_shows_numbers():
    found = page([0, 1], None)
    assert "<th>class 0</th>" in found
    assert "<bdi>" not in found
    assert "<details>" not in found
    assert 'class="grid"' in found


COUNT = 5


@pytest.fixture
def drawn(tmp_path):
    """The npz of a run as it leaves it, and what its manifest says of that."""
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 64, 64, 3), dtype=np.uint8)
    npz = tmp_path / "run.npz"
    np.savez(npz, pixels)
    digest = hashlib.sha256(b"".join(hashlib.sha256(image).digest() for image in pixels)).hexdigest()
    about = {"file": "run.npz", "count": COUNT, "bytes": npz.stat().st_size, "pixels_sha256": digest}
    content = {"npz": about, "sessions": [{"finished": None}, {"finished": "2026-01-01T00:00:00"}]}
    manifest(tmp_path, content)
    return npz, content


def test_a_runs_own_npz_is_known_by_its_records(drawn):
    npz, content = drawn
    assert known_pixels(npz, COUNT) == content["npz"]["pixels_sha256"]
    assert known_pixels(npz, COUNT - 1) is None
    assert known_pixels(npz.with_suffix(""), COUNT) is None


@pytest.mark.parametrize(
    "changed",
    [
        *({"file": "other.npz"}, {"count": COUNT + 1}, {"bytes": 7}, {"pixels_sha256": None}, {"pixels_sha256": 7}),
        *({"sessions": []}, {"sessions": [{"finished": "2026-01-01T00:00:00"}, {}]}, {"sessions": [{"finished": None}]}),
        {"npz": None},
    ],
    ids=str,
)
def test_an_npz_that_its_run_did_not_leave_so_is_not_known(changed, drawn):
    npz, content = drawn
    told = content | changed if changed.keys() & content.keys() else content | {"npz": content["npz"] | changed}
    manifest(npz.parent, told)
    assert known_pixels(npz, COUNT) is None


@pytest.mark.parametrize("moment", ["st_mtime_ns", "st_ctime_ns"])
def test_an_npz_that_was_touched_since_is_not_known(moment, drawn):
    npz, _ = drawn
    if moment == "st_ctime_ns":
        os.utime(npz, (0, 0))  # as a file of another place keeps its time
    else:
        os.utime(npz, ns=(0, 1 << 61))
    own = getattr(npz.stat(), moment)
    os.utime(npz.parent / "run" / "manifest.json", ns=(own - 1, own - 1))
    assert known_pixels(npz, COUNT) is None


def test_a_runs_own_npz_is_not_hashed_once_more(drawn, alone, tmp_path, monkeypatch):
    npz, content = drawn
    extractor = load_extractor("digits", None, alone)
    hashed = extract(open_images(npz.rename(tmp_path / "else.npz")), extractor, alone, 4, tmp_path / "cache")
    npz = (tmp_path / "else.npz").rename(npz)
    manifest(tmp_path, content)
    monkeypatch.setattr(Images, "content_sha256", lambda _: pytest.fail("read as a whole"))
    for origin in ("computed", "from the cache"):
        found = extract(open_images(npz), extractor, alone, 4, tmp_path / "cache")
        assert (found.origin, found.content_sha256, found.pixels_sha256) == (origin, None, hashed.pixels_sha256)
        assert (found.rows == hashed.rows).all()


def test_an_npz_that_has_changed_under_its_records_is_refused(drawn, alone, tmp_path):
    npz, content = drawn
    content["npz"]["pixels_sha256"] = "ab" * 32
    manifest(tmp_path, content)
    with pytest.raises(UserError, match=r"run\.npz is damaged: its images are not those"):
        extract(open_images(npz), load_extractor("digits", None, alone), alone, 4, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob(PIXELS))
