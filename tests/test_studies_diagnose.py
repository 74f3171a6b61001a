"""`fiducial diagnose` on two halves of the digits, one of which a cause was put into."""

import json
from pathlib import Path

import numpy as np
import pytest

import fiducial  # noqa: F401 (which finds the packages of a checkout)
from fiducial.studies.diagnose import __main__ as command
from fiducial.studies.diagnose.pixels import as_jpeg
from fiducial.wings import ASSETS


@pytest.fixture(scope="module")
def halves() -> tuple[np.ndarray, np.ndarray]:
    """Two halves of digits, (N, 64, 64, 3) uint8 each, of the embedded pictures in random order."""
    with np.load(ASSETS / "digits" / "reference.pictures.npz") as file:
        images = next(file[name] for name in file.files if file[name].ndim == 4)
    images = images[np.random.default_rng(0).permutation(len(images))[:600]]
    return images[: len(images) // 2], images[len(images) // 2 :]


def diagnosed(folder: Path, monkeypatch: pytest.MonkeyPatch, a: np.ndarray, b: np.ndarray, labels: tuple = ()) -> list[str]:
    """The causes that the command names, in its order."""
    for name, images in (("a", a), ("b", b)):
        own = {"arr_1": labels["ab".index(name)]} if labels else {}
        np.savez(folder / f"{name}.npz", arr_0=images, **own)
    monkeypatch.setattr("sys.argv", ["d", f"{folder}/a.npz", f"{folder}/b.npz", "--ref", "digits", "--json", f"{folder}/f.json"])
    command.main()
    return [row["cause"] for row in json.loads((folder / "f.json").read_text())["causes"]]


def test_halves_of_one_set(tmp_path, monkeypatch, halves, capsys):
    assert diagnosed(tmp_path, monkeypatch, *halves) == []
    assert "nothing found" in capsys.readouterr().out


def test_jpeg(tmp_path, monkeypatch, halves):
    assert diagnosed(tmp_path, monkeypatch, as_jpeg(halves[0], 75), halves[1])[0] == "JPEG traces"


def test_duplicates(tmp_path, monkeypatch, halves):
    a = halves[0].copy()
    a[len(a) // 2 :] = a[0]
    assert diagnosed(tmp_path, monkeypatch, a, halves[1])[0] == "duplicates"


def test_half_level_shift_of_pairs(tmp_path, monkeypatch, halves):
    exact = halves[0] + np.random.default_rng(1).uniform(-0.5, 0.5, halves[0].shape)
    a, b = (np.clip(how(exact), 0, 255).astype(np.uint8) for how in (np.floor, np.rint))
    assert diagnosed(tmp_path, monkeypatch, a, b)[0] == "half-level shift"


def test_sorted_labels(tmp_path, monkeypatch, halves):
    a, labels = halves[0], np.random.default_rng(2).integers(0, 10, len(halves[0]))
    order = np.argsort(labels, kind="stable")
    assert diagnosed(tmp_path, monkeypatch, a[order], a, (labels[order], labels))[0] == "sorted labels"


def test_another_resize(tmp_path, monkeypatch, halves):
    a = halves[0].reshape(-1, 32, 2, 32, 2, 3).mean((2, 4)).repeat(2, 1).repeat(2, 2).astype(np.uint8)
    assert diagnosed(tmp_path, monkeypatch, a, halves[1])[0] == "resize kernel"


def test_balanced_against_random_classes(tmp_path, monkeypatch, halves):
    count = len(halves[0])
    drawn = np.random.default_rng(3).integers(0, 10, count)
    found = diagnosed(tmp_path, monkeypatch, *halves, (np.arange(count) % 10, drawn))
    assert found == ["class balance"]


def test_wrong_reference(tmp_path, monkeypatch, halves):
    with np.load(ASSETS / "digits" / "reference.npz") as file:
        np.savez(tmp_path / "other.npz", **{name: file[name] for name in file.files} | {"mu": file["mu"] + 0.5})
    np.savez(tmp_path / "a.npz", arr_0=halves[0])
    np.savez(tmp_path / "b.npz", arr_0=halves[1])
    words = [f"{tmp_path}/a.npz", f"{tmp_path}/b.npz", "--ref", f"{tmp_path}/other.npz", "--ref-b", "digits"]
    monkeypatch.setattr("sys.argv", ["d", *words, "--json", f"{tmp_path}/f.json"])
    command.main()
    first = json.loads((tmp_path / "f.json").read_text())["causes"][0]
    assert first["cause"] == "reference"
    assert abs(first["gap_undone"]) < abs(first["gap"]) / 2


@pytest.mark.parametrize(
    ("setting", "values"), [("cfg_channels", (3, 4)), ("num_sampling_steps", (8, 50)), ("vae", ("ema", "mse"))]
)
def test_settings_of_runs(tmp_path, monkeypatch, halves, capsys, setting, values):
    for name, value in zip("ab", values, strict=True):
        (tmp_path / name).mkdir()
        identity = {"cfg_scale": 1.5, "global_seed": "ab".index(name), setting: value}
        (tmp_path / name / "manifest.json").write_text(json.dumps({"identity": identity}))
    a = np.clip(halves[0].astype(int) * 0.7 + 30, 0, 255).astype(np.uint8)
    assert diagnosed(tmp_path, monkeypatch, a, halves[0])[0] == "settings"
    assert f"{setting} {values[0]} against {values[1]}" in capsys.readouterr().out


def test_pairs_that_differ_for_no_known_reason(tmp_path, monkeypatch, halves):
    a = np.clip(halves[0].astype(int) * 0.7 + 30, 0, 255).astype(np.uint8)
    assert "pictures" in diagnosed(tmp_path, monkeypatch, a, halves[0])
