"""References as their makers write them, and our own."""

import json

import numpy as np
import pytest
from conftest import run_command
from PIL import Image

import fiducial
from fiducial import UserError, default_cache
from fiducial.evaluation.data.image_files import centre_crop
from fiducial.evaluation.data.opening import open_images
from fiducial.evaluation.data.references import find_reference, open_reference, write_reference
from fiducial.evaluation.evaluate import Evaluation
from fiducial.evaluation.features.extraction import extract
from fiducial.evaluation.features.load import load_extractor
from fiducial.evaluation.making import make_reference
from fiducial.evaluation.settings import Settings
from scripts.stand_ins import pictures, write_pngs

WIDTHS = {"mu": 2048, "sigma": 2048, "mu_s": 2023, "sigma_s": 2023}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    path = tmp_path_factory.mktemp("samples") / "a.npz"
    np.savez(path, arr_0=pictures(20, 0))
    return path


@pytest.fixture(scope="module")
def statistics(samples, inception_weights):
    """mu, sigma, mu_s and sigma_s of other pictures."""
    path = samples.with_name("b.npz")
    np.savez(path, arr_0=pictures(20, 1))
    group = fiducial.init("cpu")
    made = make_reference(
        open_images(path), load_extractor("inception", {"inception": inception_weights}, group), group, Settings(), keep=8
    )
    assert {name: len(getattr(made, name)) for name in WIDTHS} == WIDTHS
    chosen = np.sort(np.random.default_rng(0).choice(20, 8, replace=False))
    every = extract(
        open_images(path), load_extractor("inception", {"inception": inception_weights}, group), group, 64, default_cache()
    ).rows
    assert (made.features == every[chosen]).all()
    return made


def result_of(samples, reference, weights, **settings):
    weights = weights and {"inception": weights}
    return Evaluation.prepare(str(reference), fiducial.init("cpu"), Settings(**settings), None, weights).evaluate(samples)


@pytest.mark.parametrize("dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.long)])
def test_adms_files_give_fid_by_their_statistics_and_precision_by_their_images(
    dtype, samples, statistics, inception_weights, tmp_path
):
    """As evaluations/evaluator.py of guided-diffusion has them: few images, and statistics of many more."""
    arrays = {name: getattr(statistics, name).astype(dtype) for name in WIDTHS}
    np.savez(tmp_path / "adm.npz", arr_0=pictures(6, 5), **arrays)
    result = result_of(samples, tmp_path / "adm.npz", inception_weights)
    expected = result_of(samples, samples.with_name("b.npz"), inception_weights)
    for name in ("fid", "sfid"):
        assert result.metrics[name].value == pytest.approx(
            expected.metrics[name].value, rel=1e-9 if dtype == np.float64 else 1e-3
        )
        assert result.metrics[name].reference_n is None  # the file does not say
    assert result.metrics["precision"].reference_n == 6
    assert result.reference["kind"] == "ADM's statistics and images"
    assert not any("reference statistics were computed" in text for text in result.warnings)
    assert any("20 images of b.npz; their covariance is singular" in text for text in expected.warnings)


def test_pytorch_fids_files_give_fid_with_a_warning(samples, statistics, inception_weights, tmp_path):
    np.savez(tmp_path / "pf.npz", mu=statistics.mu, sigma=statistics.sigma)
    result = result_of(samples, tmp_path / "pf.npz", inception_weights)
    assert set(result.metrics) == {"fid", "is", "is-shuffled"}
    assert set(result.left_out) == {"sFID", "precision", "recall", "density", "coverage", "FID-infinity"}
    assert any("pf.npz does not say how it was made; here images are resized as ADM does it" in text for text in result.warnings)
    assert any("does not say" in text for text in result.metrics["fid"].deviations)


def test_our_own_files_carry_everything(samples, statistics, inception_weights, tmp_path):
    write_reference(statistics, tmp_path / "own.npz")
    read = open_reference(tmp_path / "own.npz")
    for name in WIDTHS:
        assert (getattr(read, name) == getattr(statistics, name)).all()
    assert read.provenance == statistics.provenance
    assert read.provenance.weights_sha256 == fiducial.file_sha256(inception_weights)
    result = result_of(samples, tmp_path / "own.npz", inception_weights)
    assert set(result.metrics) == {"fid", "sfid", "is", "is-shuffled", "precision", "recall", "density", "coverage"}
    assert result.metrics["precision"].reference_n == 8
    assert result.metrics["fid"].reference_n == 20
    assert any("20 images of b.npz; their covariance is singular" in text for text in result.warnings)


def test_samples_of_another_resolution_are_refused(statistics, inception_weights, tmp_path):
    write_reference(statistics, tmp_path / "own.npz")
    np.savez(tmp_path / "large.npz", arr_0=pictures(5, 0, 96))
    with pytest.raises(UserError, match=r"96 x 96, but the reference .* is of 64 x 64"):
        result_of(tmp_path / "large.npz", tmp_path / "own.npz", inception_weights)


def adm_crop(image: Image.Image, size: int) -> np.ndarray:
    """The crop of guided-diffusion's image_datasets.py, from its description: halve by boxes, bicubic, middle."""
    width, height = image.size
    while min(width, height) >= 2 * size:
        width, height = width // 2, height // 2
        image = image.resize((width, height), Image.BOX)
    ratio = size / min(width, height)
    image = image.resize((round(width * ratio), round(height * ratio)), Image.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("shape", [(64, 64), (65, 90), (300, 131), (47, 200), (500, 257)])
def test_images_of_any_size_are_cropped_as_adm_does(shape):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    cropped = centre_crop(image, 64)
    assert cropped.shape == (64, 64, 3)
    assert (cropped == adm_crop(image, 64)).all()


def test_a_reference_of_photographs_of_any_size_and_colour(tmp_path):
    """Nested folders, JPEG beside PNG, grayscale, palette and CMYK: what a training set is made of."""
    folder = tmp_path / "train"
    large = pictures(4, 2, 200)
    for index, mode in enumerate(("RGB", "L", "CMYK", "P")):
        path = folder / f"class{index % 2}" / f"{index}.{'png' if mode in 'P' else 'JPEG'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(large[index][: 100 + 30 * index]).convert(mode).save(path)
    out = tmp_path / "ref.npz"
    done = run_command("-m", "evaluation", "ref", folder, "--image-size", 64, "--extractor", "digits", "--out", out, ranks=2)
    assert done.returncode == 0, done.stderr
    assert "4 images, cropped to 64 x 64" in done.stdout
    with np.load(out, allow_pickle=False) as arrays:
        about = json.loads(str(arrays["provenance"]))
    assert about["resize"] == "RGB, ADM's centre crop to 64"
    assert (about["count"], about["image_size"], about["features"]) == (4, 64, 4)
    group = fiducial.init("cpu")
    cropped = np.stack([next(open_images(folder, 64).batches(1, i, i + 1))[0] for i in range(4)])
    np.savez(tmp_path / "cropped.npz", arr_0=cropped)
    direct = make_reference(open_images(tmp_path / "cropped.npz"), load_extractor("digits", None, group), group, Settings(), 0)
    np.testing.assert_allclose(open_reference(out).mu, direct.mu, rtol=1e-5, atol=1e-5)
    assert direct.provenance.pixels_sha256 == about["pixels_sha256"]


def test_jpeg_samples_are_warned_about(tmp_path):
    folder = tmp_path / "jpeg"
    folder.mkdir()
    for index, pixels in enumerate(pictures(4, 0)):
        Image.fromarray(pixels).save(folder / f"{index}.jpg")
    result = result_of(folder, "digits", None)
    assert any("samples are JPEG" in text for text in result.warnings)
    result = result_of(write_pngs(tmp_path / "png", pictures(4, 0)), "digits", None)
    assert not any("JPEG" in text for text in result.warnings)


def test_every_rank_has_the_reference_that_it_asks_for(tmp_path):
    """Two evaluators of one group, as after two calls on rank 0, while rank 1 is at its first."""
    from torch.distributed import HashStore

    names = ("adm-imagenet-256", "adm-lsun-cat-256")
    (tmp_path / "references").mkdir()
    for number, name in enumerate(names):
        np.savez(tmp_path / "references" / f"{name}.npz", mu=np.full(8, float(number)), sigma=np.eye(8))
    store, fellows = HashStore(), [{**fiducial.own_process(), "launcher": None}] * 2
    for rank in (0, 1):
        group = fiducial.Group(rank, 2, rank, "0", None, store, fellows)
        found = [find_reference(name, group, tmp_path) for name in names]
        assert [(one.path.stem, one.mu[0]) for one in found] == [(names[0], 0.0), (names[1], 1.0)]


def test_what_is_asked_once_a_node_hangs_on_all_its_parts():
    from torch.distributed import HashStore

    store, fellows = HashStore(), [{**fiducial.own_process(), "launcher": None}] * 2
    for rank in (0, 1):
        group = fiducial.Group(rank, 2, rank, "0", None, store, fellows)
        for asked in (["a", "b/c"], ["a/b", "c"], ["a", None], ["a", "b", "c"], ["a", "\udcff"]):
            assert group.once_per_node(asked, lambda asked=asked: repr(asked)) == repr(asked)
