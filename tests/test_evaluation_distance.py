"""FID between two files of statistics, whatever they are called and whoever made them."""

import json

import numpy as np
import pytest
from conftest import features
from test_evaluation_cli import evaluate
from test_evaluation_protocols import distance

from fiducial.evaluation.data.published import kept_at

WIDE = 48


@pytest.fixture
def files(tmp_path):
    """Statistics of 64 features without provenance, and of 48 under MeanFlow's names."""
    for name, seed in (("a", 0), ("b", 1)):
        rows = features(300, seed, 64)
        np.savez(tmp_path / f"{name}.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
        sigma = np.diag(np.linspace(1, 2, WIDE)) * (1 + seed)
        np.savez(tmp_path / f"{name}-other.npz", ref_mu=np.full(WIDE, seed / 4), ref_sigma=sigma)
    return tmp_path


def test_fid_between_two_files(files, monkeypatch, capsys):
    given = "calc", files / "a.npz", "--ref", files / "b.npz"
    code, out, err = evaluate(monkeypatch, capsys, *given, "--json", files / "r.json")
    assert code == 0, err
    found = json.loads((files / "r.json").read_text())
    assert found["format"] == "fiducial-distance-1"
    assert found["value"] == pytest.approx(distance(features(300, 0, 64), features(300, 1, 64)), rel=1e-5)
    assert (found["label"], found["extractor"]) == ("FD of 64 features", "unknown")
    assert f"{found['value']:.4f}" in out
    code, out, err = evaluate(monkeypatch, capsys, "calc", files / "a.npz", "--ref", "digits", "--json", files / "r.json")
    assert code == 0, err
    assert json.loads((files / "r.json").read_text())["label"] == "FID-digits"


def test_fid_between_files_of_other_names_and_published_ones(files, monkeypatch, capsys):
    """Of commuting covariances S and 2 S the trace is (root of 2 less 1) squared times that of S."""
    place = kept_at("jit_in256_stats", files / "cache")
    place.parent.mkdir(parents=True)
    (files / "b-other.npz").rename(place)
    more = "--json", files / "r.json", "--cache-dir", files / "cache", "--protocol", "pytorch-fid"
    code, _, err = evaluate(monkeypatch, capsys, "calc", files / "a-other.npz", "--ref", "jit_in256_stats", *more[:-2])
    assert code == 0, err
    found = json.loads((files / "r.json").read_text())
    assert found["value"] == pytest.approx(WIDE / 16 + (2**0.5 - 1) ** 2 * WIDE * 1.5, rel=1e-6)
    assert found["label"] == "FD of 48 features"
    assert found["sides"][1]["kind"] == "JiT's statistics"
    code, _, err = evaluate(monkeypatch, capsys, "calc", files / "a-other.npz", "--ref", "jit_in256_stats", *more)
    assert code == 2
    assert "--ref jit_in256_stats: was made with inception, and inception-pytorch-fid is wanted" in err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{0}/a.npz --ref {0}/b-other.npz", "has 64 features, and"),
        ("{0}/a-other.npz --ref digits", "has 48 features"),
        ("{0}/a.npz --ref {0}/b.npz --metrics kid", "--metrics kid: between two files of statistics there is fid alone"),
        ("{0}/a.npz --ref {0}/b.npz --html {0}/r.html", "--html: "),
        ("{0}/a.npz --ref {0}/images.npz", "so it is a reference and no samples; were samples and --ref exchanged?"),
    ],
)
def test_what_has_no_distance_is_told(given, said, files, monkeypatch, capsys):
    np.savez(files / "images.npz", arr_0=np.zeros((2, 64, 64, 3), np.uint8))
    code, _, err = evaluate(monkeypatch, capsys, "calc", *given.format(files).split())
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
