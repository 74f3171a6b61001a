"""PSNR, SSIM and LPIPS beside scikit-image and the package lpips; the interval of rFID beside what draws of Gaussians give."""

import warnings
from types import SimpleNamespace

import lpips as theirs
import numpy as np
import pytest
import torch
import torchvision
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fiducial import UserError
from fiducial.evaluation.features import lpips
from fiducial.evaluation.features.perceptual import PERCEPTUAL
from fiducial.evaluation.metrics import pairs
from fiducial.evaluation.metrics.gaussians import frechet_distance, frechet_error
from fiducial.evaluation.metrics.intervals import NORMAL
from fiducial.evaluation.metrics.pairs import ERROR, PairInputs
from fiducial.evaluation.metrics.similarity import mean_squared_error, psnr, ssim
from fiducial.evaluation.metrics.statistics import FeatureStatistics

CPU = torch.device("cpu")


def some_pairs(count: int, height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth images, and the same with noise that differs in strength from image to image, (N, H, W, 3) uint8."""
    random = np.random.default_rng(seed)
    waves = np.sin(np.linspace(0, 9, height)[None, :, None, None] * random.uniform(0.5, 2, (count, 1, 1, 3)))
    waves = waves + np.cos(np.linspace(0, 7, width)[None, None, :, None] * random.uniform(0.5, 2, (count, 1, 1, 3)))
    images = np.clip(127 + 60 * waves, 0, 255)
    noise = random.normal(0, random.uniform(2, 40, (count, 1, 1, 1)), images.shape)
    return tuple(np.clip(part, 0, 255).astype(np.uint8) for part in (images, images + noise))


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 11, 40)])
def test_psnr_and_ssim_are_scikit_images(shape):
    originals, found = some_pairs(*shape)
    x, y = torch.from_numpy(found), torch.from_numpy(originals)
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255, "channel_axis": -1}
    expected = [structural_similarity(one, other, **how) for one, other in zip(originals, found, strict=True)]
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(ssim(x, y), expected, atol=1e-9)
    expected = [peak_signal_noise_ratio(one, other, data_range=255) for one, other in zip(originals, found, strict=True)]
    np.testing.assert_allclose(psnr(mean_squared_error(x, y)), expected, atol=1e-9)
    np.testing.assert_allclose(pairs.psnr_values(mean_squared_error(x, y).numpy()), expected, atol=1e-9)


def test_of_equal_images_ssim_is_one_and_psnr_infinite():
    x = torch.from_numpy(some_pairs(2, 16, 16)[0])
    assert ssim(x, x).tolist() == [1.0, 1.0]
    assert psnr(mean_squared_error(x, x)).tolist() == [np.inf, np.inf]
    with pytest.raises(ValueError, match="window takes 11 x 11"):
        ssim(x[:, :10], x[:, :10])


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """The package's networks with random weights, and those in files as torchvision publishes them."""
    made = {}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package calls torchvision as one did in 2021
        torch.manual_seed(0)
        for name, spec in PERCEPTUAL.items():
            net = spec.model.removesuffix("net").removesuffix("16")
            network = theirs.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
            layers = [module for part in range(1, 6) for module in getattr(network.net, f"slice{part}")]
            state = {
                f"features.{place}.{key}": value for place, one in enumerate(layers) for key, value in one.state_dict().items()
            }
            path = tmp_path_factory.mktemp("backbones") / f"{spec.model}.pth"
            torch.save(state, path)
            made[name] = network, path
    return made


@pytest.mark.parametrize("name", PERCEPTUAL)
def test_lpips_is_that_of_its_authors_package(name, backbones, alone):
    """Its linear layers are the published ones, taken from the package; the network's weights are random."""
    (network, path), spec = backbones[name], PERCEPTUAL[name]
    files = lpips.find(spec, {spec.backbone.name: path}, alone, None)
    assert files[spec.heads.name].parent.name == "v0.1"
    loaded = lpips.load(spec, files, CPU)
    assert not loaded.as_published
    assert loaded.sha256[spec.heads.name] == spec.heads.sha256
    for size in (spec.least, 64):
        originals, found = (torch.from_numpy(part).permute(0, 3, 1, 2) / 127.5 - 1 for part in some_pairs(3, size, size))
        with torch.no_grad():
            expected = network(found, originals).flatten()
        assert expected.std() > 1e-4
        torch.testing.assert_close(loaded.network(found, originals), expected, rtol=1e-4, atol=1e-7)
        assert loaded.network(found, found).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", PERCEPTUAL)
def test_smaller_images_than_the_least_have_no_layer_left(name):
    spec = PERCEPTUAL[name]
    with torch.device("meta"):
        features = getattr(torchvision.models, spec.model)(weights=None).features[: spec.layers[-1] + 1]
    assert min(features(torch.zeros(1, 3, spec.least, spec.least, device="meta")).shape[2:]) >= 1
    with pytest.raises(RuntimeError):
        features(torch.zeros(1, 3, spec.least - 1, spec.least - 1, device="meta"))


def test_weights_of_another_network_are_refused(backbones, alone):
    spec = PERCEPTUAL["lpips"]
    files = lpips.find(spec, {spec.backbone.name: backbones["lpips-vgg"][1]}, alone, None)
    with pytest.raises(UserError, match="its layers are not those of torchvision's AlexNet"):
        lpips.load(spec, files, CPU)
    other = lpips.packaged(PERCEPTUAL["lpips-vgg"].heads)
    with pytest.raises(UserError, match="its layers are not its AlexNet layers"):
        lpips.load(spec, {spec.backbone.name: backbones["lpips"][1], spec.heads.name: other}, CPU)


def test_a_missing_network_is_one_sentence(alone, tmp_path, monkeypatch):
    monkeypatch.setenv("FIDUCIAL_OFFLINE", "1")
    with pytest.raises(UserError, match=r"AlexNet weights are missing: .*; --metrics rfid,psnr,ssim needs none$"):
        lpips.find(PERCEPTUAL["lpips"], {}, alone, tmp_path)


def test_means_have_the_error_of_independent_images(alone):
    values = np.random.default_rng(0).gamma(2, 0.1, 300)
    found = pairs.lpips(PairInputs({"lpips": values}, alone))
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std(ddof=1) / 300**0.5)
    assert found.high - found.low == pytest.approx(2 * NORMAL * found.error)
    assert np.linalg.norm(found.moves) == pytest.approx(found.error)


def test_an_infinite_psnr_is_left_out_of_the_mean_and_counted(alone):
    errors = np.random.default_rng(1).uniform(1, 90, 200)
    errors[::10] = 0
    found, expected = pairs.psnr(PairInputs({ERROR: errors}, alone)), 10 * np.log10(255**2 / errors[errors > 0])
    assert (np.count_nonzero(found.moves), found.value) == (180, pytest.approx(expected.mean()))
    assert found.error == pytest.approx(expected.std(ddof=1) / 180**0.5)
    assert not found.moves[::10].any()
    assert pairs.psnr(PairInputs({ERROR: np.zeros(60)}, alone)) is None
    few = pairs.psnr(PairInputs({ERROR: errors[1:9]}, alone))
    assert few.low is None


def as_features(rows: np.ndarray) -> SimpleNamespace:
    statistics = FeatureStatistics.empty(rows.shape[1])
    statistics.update(rows)
    statistics.flush()
    return SimpleNamespace(rows=rows, statistics=statistics, pixels_sha256=str(rows.sum()))


def drawn_pairs(count: int, random: np.random.Generator, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian features of originals, and of reconstructions that follow them with some noise of their own."""
    spread = np.array([3.0, 2.0, 1.5, 1.0, 0.7, 0.5])
    x = random.normal(size=(count, 6)) * spread
    y = 0.85 * x + noise * random.normal(size=(count, 6)) + 0.2
    return x.astype(np.float32), y.astype(np.float32)


@pytest.mark.parametrize("noise", [0.1, 0.8])
def test_intervals_of_rfid_hold_its_expectation_as_often_as_they_say(noise, alone):
    """Over 250 draws: errors are the values' own deviation, where those that take one side alone are not."""
    random, draws = np.random.default_rng(7), 250
    values, errors, alone_errors, held = [], [], [], []
    for _ in range(draws):
        x, y = (as_features(part) for part in drawn_pairs(500, random, noise))
        found = pairs.rfid(PairInputs({}, alone, y, x))
        values.append(found.value)
        errors.append(found.error)
        held.append((found.low, found.high))
        alone_errors.append(frechet_error(y.rows, y.statistics, x.statistics.mean, x.statistics.covariance))
    own, expectation = np.std(values, ddof=1), np.mean(values)
    assert np.mean(errors) == pytest.approx(own, rel=0.1)
    assert abs(np.mean(alone_errors) / own - 1) > 0.25
    share = np.mean([low <= expectation <= high for low, high in held])
    assert 0.91 <= share <= 0.985
    one, other = (as_features(part) for part in drawn_pairs(500, random, noise))
    value = pairs.rfid(PairInputs({}, alone, other, one)).value
    moments = [part for side in (other, one) for part in (side.statistics.mean, side.statistics.covariance)]
    assert value == pytest.approx(frechet_distance(*moments))


def test_to_a_fixed_reference_the_error_is_that_of_samples(alone):
    x, y = (as_features(part) for part in drawn_pairs(300, np.random.default_rng(3), 0.5))
    reference = SimpleNamespace(mu=x.statistics.mean, sigma=x.statistics.covariance)
    found = pairs.rfid(PairInputs({}, alone, y, None, reference))
    assert found.error == pytest.approx(frechet_error(y.rows, y.statistics, reference.mu, reference.sigma))


def test_too_few_images_for_a_covariance_have_no_interval(alone):
    x, y = (as_features(part) for part in drawn_pairs(6, np.random.default_rng(3), 0.5))
    found = pairs.rfid(PairInputs({}, alone, y, x))
    assert found.value > 0
    assert (found.error, found.moves) == (None, None)
    assert pairs.rfid(PairInputs({}, alone, x, x)).value == 0
