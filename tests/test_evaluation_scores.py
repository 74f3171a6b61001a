"""Numbers by class, and the features that intervals come from."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, run_command
from PIL import Image
from torchvision.datasets import ImageFolder

import fiducial
from fiducial import UserError
from fiducial.evaluation.data.images import Images
from fiducial.evaluation.data.opening import open_images
from fiducial.evaluation.data.references import Provenance, Reference, open_reference, write_reference
from fiducial.evaluation.evaluate import Evaluation, is_done
from fiducial.evaluation.features.extraction import extract
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.features.load import load_extractor
from fiducial.evaluation.making import make_reference
from fiducial.evaluation.metrics.gaussians import frechet_error
from fiducial.evaluation.metrics.inputs import Inputs
from fiducial.evaluation.metrics.statistics import FeatureStatistics
from fiducial.evaluation.report import write
from fiducial.evaluation.score import Scorer
from fiducial.evaluation.settings import Settings
from scripts.stand_ins import pictures

DIMENSION = 4


def statistics_of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return rows.mean(0, dtype=np.float64), np.cov(rows.astype(np.float64), rowvar=False)


class Owned:
    """Features as an extraction gives them, as far as they are looked at."""

    def __init__(self, rows: np.ndarray):
        self.rows = rows
        self.statistics = FeatureStatistics.empty(rows.shape[1])
        self.statistics.update(rows)
        self.statistics.flush()


def scorer(rows, labels, others, their_labels, group) -> Scorer:
    extractor = Extractor("stub", DIMENSION, "0", group.device, lambda x: (x, None), None)
    mu, sigma = statistics_of(others)
    reference = Reference(Path("r"), None, "images", mu, sigma, features=others, labels=their_labels)
    return Scorer(("fid",), Inputs(Owned(rows), reference, extractor, Settings(), group), labels)


def in_classes(seed: int, counts: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Features of classes that differ, in no order, and their labels."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(list(counts), list(counts.values())))
    rows = random.normal(size=(len(labels), DIMENSION)) * (1 + 0.2 * labels[:, None]) + labels[:, None] + 0.1 * seed
    return rows.astype(np.float32), labels


def sqrt_oracle(one: np.ndarray, other: np.ndarray) -> float:
    """The Fréchet distance by a matrix square root."""
    (m1, s1), (m2, s2) = statistics_of(one), statistics_of(other)
    roots = np.sqrt(np.linalg.eigvals(s1 @ s2).real.clip(0)).sum()
    return float(((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * roots)


def test_fid_of_a_class_is_that_of_its_images(alone):
    """Classes with no more images than dimensions on either side, or on one only, are left out. A class's samples against all of
    the reference, for one, would show."""
    rows, labels = in_classes(0, {0: 30, 2: 4, 3: 5, 5: 40, 7: 20})
    others, theirs = in_classes(1, {0: 25, 2: 50, 3: 5, 5: 4, 7: 60, 9: 50})
    found = {score.label: score for score in scorer(rows, labels, others, theirs, alone).scores().classes}
    assert list(found) == [0, 3, 7]
    for label, score in found.items():
        expected = sqrt_oracle(rows[labels == label], others[theirs == label])
        assert score.distance.value == pytest.approx(expected, rel=1e-6)
        assert abs(sqrt_oracle(rows[labels == label], others) / expected - 1) > 0.1
        assert (score.n, score.reference_n) == ((labels == label).sum(), (theirs == label).sum())
    for label in (0, 3, 7):  # as the whole has an interval from one image more than dimensions on
        assert found[label].distance.low <= found[label].distance.value < found[label].distance.high


def test_without_labels_of_both_sides_there_are_no_classes(alone):
    rows, labels = in_classes(0, {0: 30, 1: 30})
    for ours, theirs in ((None, labels), (labels, None)):
        assert scorer(rows, ours, rows, theirs, alone).scores().classes == []


def test_classes_of_files_are_scored_against_a_reference_with_labels(tmp_path, alone):
    """From files to numbers: labels in an npz, and those that a reference of ours keeps of some of its images."""
    labels = {"a": np.arange(200) % 2, "b": np.arange(220) % 2}
    digits, settings, rows = load_extractor("digits", None, alone), Settings(metrics=("fid", "precision"), cache_dir=tmp_path), {}
    for seed, name in enumerate(labels):
        np.savez(tmp_path / f"{name}.npz", arr_0=pictures(len(labels[name]), seed), arr_1=labels[name])
        rows[name] = extract(open_images(tmp_path / f"{name}.npz"), digits, alone, 64, tmp_path).rows
    write_reference(make_reference(open_images(tmp_path / "b.npz"), digits, alone, settings, keep=180), tmp_path / "own.npz")
    own = open_reference(tmp_path / "own.npz")
    chosen = [rows["b"].tolist().index(row) for row in own.features.tolist()]
    assert own.labels.tolist() == labels["b"][chosen].tolist()
    for path, others, theirs in (("own.npz", own.features, own.labels), ("b.npz", rows["b"], labels["b"])):
        found = Evaluation.prepare(str(tmp_path / path), alone, settings, "digits").evaluate(tmp_path / "a.npz").classes
        assert [score.label for score in found] == [0, 1]
        for score in found:
            expected = sqrt_oracle(rows["a"][labels["a"] == score.label], others[theirs == score.label])
            assert score.distance.value == pytest.approx(expected, rel=1e-3, abs=1e-3)
            assert (score.n, score.reference_n) == (100, int((theirs == score.label).sum()))


TREES = [
    ["b/1.png", "b/2.png", "a/9.png", "c/0.png"],
    ["9/y.png", "10/x.png", "a/z.png", "9/x.png", "B/z.png"],
    ["n02/deep/er/1.png", "n02/0.png", "n01/deep/2.png", "n01-b/3.png", "n01/3.png"],
]


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("zipped", [False, True])
def test_labels_of_folders_are_torchvisions(tree, zipped, tmp_path):
    for name in tree:
        (tmp_path / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures(1, 0)[0]).save(tmp_path / "t" / name)
    theirs = {str(Path(path).relative_to(tmp_path / "t")): label for path, label in ImageFolder(tmp_path / "t").samples}
    path = tmp_path / "t"
    if zipped:
        path = Path(shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path / "t"))
    images = open_images(path)
    assert dict(zip(images.names, images.classes.tolist(), strict=True)) == theirs
    assert images.classes.dtype == np.int64
    in_order_of_appearance = {name: i for i, name in enumerate(dict.fromkeys(n.split("/")[0] for n in tree))}
    assert {name: in_order_of_appearance[name.split("/")[0]] for name in theirs} != theirs


@pytest.mark.parametrize("tree", [["1.png", "2.png"], ["a/1.png", "a/2.png"], ["a/1.png", "b/2.png", "3.png"]])
def test_images_that_are_not_in_folders_of_classes_have_no_labels(tree, tmp_path):
    for name in tree:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures(1, 0)[0]).save(tmp_path / name)
    assert open_images(tmp_path).classes is None


WHOLE = {"mu": np.zeros(3), "sigma": np.eye(3), "features": np.ones((5, 3), dtype=np.float32), "labels": np.arange(5)}


def test_a_reference_keeps_the_labels_of_its_features(tmp_path):
    reference = Reference(tmp_path, None, "", **WHOLE, provenance=Provenance(extractor="digits", features=5))
    write_reference(reference, tmp_path / "r.npz")
    found = open_reference(tmp_path / "r.npz")
    assert found.labels.tolist() == [0, 1, 2, 3, 4]
    assert found.labels.dtype == np.int64
    np.savez(tmp_path / "no.npz", **{name: array for name, array in WHOLE.items() if name != "labels"})
    assert open_reference(tmp_path / "no.npz").labels is None


@pytest.mark.parametrize(
    "labels",
    [np.arange(4), np.arange(6), np.arange(5).astype(np.int32), np.arange(5.0), np.arange(5)[:, None], np.array(["a"] * 5)],
    ids=lambda labels: f"{labels.dtype} {labels.shape}",
)
def test_labels_that_do_not_fit_the_features_are_one_sentence(labels, tmp_path):
    np.savez(tmp_path / "r.npz", **WHOLE | {"labels": labels})
    with pytest.raises(UserError, match="damaged reference") as error:
        open_reference(tmp_path / "r.npz")
    assert "\n" not in str(error.value)
    assert "labels" in str(error.value)


def test_damaged_labels_are_one_sentence(tmp_path):
    """Bytes all over the array turned, one after the other; and an array of objects."""
    np.savez(tmp_path / "r.npz", **WHOLE)
    data = (tmp_path / "r.npz").read_bytes()
    start = data.index(b"\x93NUMPY", data.index(b"labels.npy"))
    for position in range(start, start + 128 + 5 * 8, 3):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        (tmp_path / "d.npz").write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            open_reference(tmp_path / "d.npz")
    np.savez(tmp_path / "o.npz", **WHOLE | {"labels": np.array([{}] * 5)})
    with pytest.raises(UserError, match="Python objects"):
        open_reference(tmp_path / "o.npz")


SPATIAL = """
import sys
from pathlib import Path
from types import SimpleNamespace
import fiducial
from test_evaluation_scores import cached
with fiducial.init("cpu") as group:
    cached(Path(sys.argv[1]), Path(sys.argv[2]), group)
"""


def cached(images: Path, cache: Path, group):
    """Features of a stand-in for Inception: averages of the pixels, and as spatial features the first pixels."""

    def apply(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return pixels.float().mean((2, 3)), pixels[:, :, :2, :3].float().flatten(1) + 0.5

    extractor = Extractor("stub", 3, "0", group.device, apply, None, spatial_dimension=18)
    return extract(open_images(images), extractor, group, 4, cache)


@pytest.mark.parametrize("ranks", [1, 2])
def test_spatial_features_are_kept_in_the_order_of_the_images(ranks, alone, tmp_path):
    pixels = pictures(23, 0)
    np.savez(tmp_path / "a.npz", arr_0=pixels)
    if ranks > 1:
        (tmp_path / "spatial.py").write_text(SPATIAL)
        python = f"{ROOT}:{ROOT / 'tests'}"
        done = run_command(tmp_path / "spatial.py", tmp_path / "a.npz", tmp_path / "cache", ranks=ranks, PYTHONPATH=python)
        assert done.returncode == 0, done.stderr
    found = cached(tmp_path / "a.npz", tmp_path / "cache", alone)
    assert (found.origin == "from the cache") == (ranks > 1)
    expected = pixels.transpose(0, 3, 1, 2)[:, :, :2, :3].reshape(23, -1) + np.float32(0.5)
    assert (found.spatial_rows[:] == expected).all()
    assert (found.spatial_rows[:][::-1] != expected).any()
    np.testing.assert_allclose(found.spatial.covariance, np.cov(expected, rowvar=False), rtol=1e-9, atol=1e-6)
    again = cached(tmp_path / "a.npz", tmp_path / "cache", alone)
    assert again.origin == "from the cache"
    assert (again.spatial_rows[:] == expected).all()
    (again.folder / "spatial.f32").write_bytes(b"cut")
    assert cached(tmp_path / "a.npz", tmp_path / "cache", alone).origin == "computed"


def test_the_interval_of_sfid_is_that_of_its_own_features(alone, tmp_path):
    """And not of FID's: of the same number of images, in which the first pixels vary more than the averages."""
    np.savez(tmp_path / "a.npz", arr_0=pictures(60, 0))
    own = cached(tmp_path / "a.npz", tmp_path / "cache", alone)
    extractor = Extractor("stub", 3, "0", alone.device, lambda x: (x, None), None, spatial_dimension=18)
    reference = Reference(tmp_path, None, "", np.zeros(3), np.eye(3), np.zeros(18), np.eye(18))
    found = Scorer(("fid", "sfid"), Inputs(own, reference, extractor, Settings(), alone), None).scores().values
    expected = frechet_error(own.spatial_rows[:], own.spatial, np.zeros(18), np.eye(18))
    assert found["sfid"].error == pytest.approx(expected, rel=1e-9)
    assert found["fid"].error != pytest.approx(expected, rel=0.1)


def result_of(images: np.ndarray, tmp_path: Path, **settings):
    """The digits' numbers of these images, from an npz."""
    np.savez(tmp_path / "samples.npz", arr_0=images)
    return Evaluation.prepare("digits", fiducial.init("cpu"), Settings(cache_dir=tmp_path / "cache", **settings)).evaluate(
        tmp_path / "samples.npz"
    )


def test_a_collapsed_model_has_numbers_and_no_intervals_of_what_did_not_vary(tmp_path):
    metrics = result_of(np.full((700, 64, 64, 3), 100, np.uint8), tmp_path).metrics
    assert metrics["fid-digits"].value > 1
    assert metrics["fid-infinity-digits"].value == pytest.approx(metrics["fid-digits"].value)
    for name in ("fid", "fid-infinity", "is", "recall"):
        assert metrics[f"{name}-digits"].low is None, name
    assert metrics["precision-digits"].low is not None  # which is counted


def test_few_samples_have_intervals_only_of_what_is_counted(tmp_path):
    few = result_of(pictures(49, 0), tmp_path).metrics
    assert {name for name, metric in few.items() if metric.low is not None} == {"precision-digits"}
    assert result_of(pictures(50, 0), tmp_path).metrics["is-digits"].low is not None


def test_no_value_lies_outside_its_interval_where_samples_are_the_reference(tmp_path):
    """There the first derivative is 0, and what the line in 1 / N gives is below 0."""
    np.savez(tmp_path / "a.npz", arr_0=pictures(650, 0))
    found = Evaluation.prepare(str(tmp_path / "a.npz"), fiducial.init("cpu"), Settings(cache_dir=tmp_path), "digits").evaluate(
        tmp_path / "a.npz"
    )
    for name, metric in found.metrics.items():
        assert metric.low is None or metric.low <= metric.value <= metric.high, name
    assert found.metrics["fid-digits"].low is None
    assert found.metrics["fid-infinity-digits"].value < 0


def test_a_vendi_score_that_is_not_defined_is_one_sentence(alone, monkeypatch):
    monkeypatch.setattr("fiducial.evaluation.metrics.vendi.vendi_score", lambda *_: None)
    rows, labels = in_classes(0, {0: 30})
    with pytest.raises(UserError, match="all features of an image are 0"):
        Scorer(("vendi",), Inputs(SimpleNamespace(rows=rows), None, None, Settings(metrics=("vendi",)), alone), labels).scores()


def test_loading_an_extractor_draws_no_random_numbers(alone, inception_weights):
    """A training loop must go on as it would have without an evaluation."""
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    load_extractor("digits", None, alone)
    load_extractor("inception", {"inception": inception_weights}, alone)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_training_images_are_cropped_and_count_once(tmp_path):
    """Samples a bit away from images that are there twice: by distances to equal fellows, all would be authentic."""
    scans = pictures(60, 0)
    near = scans.copy()
    near[:, 0, 0, 0] ^= 1
    np.savez(tmp_path / "near.npz", arr_0=near)
    np.savez(tmp_path / "twice.npz", arr_0=np.concatenate([scans, scans]))
    (tmp_path / "tree" / "a").mkdir(parents=True)
    for number, scan in enumerate(scans):
        wide = np.pad(scan, ((0, 0), (number % 3, number % 3), (0, 0)))
        Image.fromarray(wide).save(tmp_path / "tree" / "a" / f"{number:02d}.png")
    gray = Image.fromarray(scans[0]).convert("L")
    gray.save(tmp_path / "tree" / "gray.png")
    for training in ("twice.npz", "tree"):
        evaluation = Evaluation.prepare(
            "digits", fiducial.init("cpu"), Settings(cache_dir=tmp_path / "cache"), image_size=64, training=tmp_path / training
        )
        result = evaluation.evaluate(tmp_path / "near.npz")
        assert result.metrics["authpct-digits"].value < 10
        assert len(result.memorisation.pairs) == len(result.memorisation.pictures) == 10
        assert {pair.sample == pair.training for pair in result.memorisation.pairs} == {True}
        assert all(pair.ratio < 0.5 for pair in result.memorisation.pairs)


def test_a_result_with_training_images_is_never_taken_for_done(alone, tmp_path):
    """They may have changed where they lie; without any, the result of other samples is told from theirs."""
    for name, seed in (("a", 0), ("b", 1)):
        np.savez(tmp_path / f"{name}.npz", arr_0=pictures(60, seed, 64))
    settings, result = Settings(cache_dir=tmp_path / "cache"), tmp_path / "a.json"
    plain, trained = (
        Evaluation.prepare("digits", alone, settings, image_size=64, training=path) for path in (None, tmp_path / "b.npz")
    )
    write(plain.evaluate(tmp_path / "a.npz"), result, None)
    assert [is_done(one, tmp_path / "a.npz", result) for one in (plain, trained)] == [True, False]
    assert not is_done(plain, tmp_path / "b.npz", result)
    write(trained.evaluate(tmp_path / "a.npz"), result, None)
    assert [is_done(one, tmp_path / "a.npz", result) for one in (plain, trained)] == [False, False]


def test_the_result_of_a_runs_own_npz_is_known_by_its_pixels(tmp_path, alone, monkeypatch):
    npz, result = tmp_path / "run.npz", tmp_path / "run.json"
    np.savez(npz, arr_0=pictures(60, 0))
    evaluation = Evaluation.prepare("digits", alone, Settings(metrics="fid", cache_dir=tmp_path), image_size=64)
    write(evaluation.evaluate(npz), result, None)
    pixels = json.loads(result.read_text())["samples"]["pixels_sha256"]
    (tmp_path / "run").mkdir()
    for digest, done in ((pixels, True), ("ab" * 32, False)):
        about = {"file": "run.npz", "count": 60, "bytes": npz.stat().st_size, "pixels_sha256": digest}
        manifest = {"npz": about, "sessions": [{"finished": "now"}]}
        (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
        with monkeypatch.context() as patch:
            patch.setattr(Images, "content_sha256", lambda _: pytest.fail("read as a whole"))
            assert is_done(evaluation, npz, result) is done
