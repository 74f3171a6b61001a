"""Class names beside samples are shown, and whatever else stands there is not believed."""

import json

import numpy as np
import pytest

from fiducial.evaluation.data.runs import ClassNames, find_names
from fiducial.evaluation.report.page import grid_html, names_html
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
    return grid_html(grid, names) + names_html(names)


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
