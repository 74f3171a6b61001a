"""Whatever a network predicts, a solver sees the same image and the same noise."""

import math

import pytest
import torch

from fiducial.diffusion.paths import PATHS, Point, louder
from fiducial.diffusion.prediction import PREDICTIONS, from_noise, from_x0
from fiducial.diffusion.schedule import Schedule

T = 0.3
POINTS = {name: path(T) for name, path in PATHS.items()}


def outputs(x0, noise, point):
    """What each kind of network puts out of them."""
    velocity = point.alpha_rate * x0 + point.sigma_rate * noise
    return {"noise": noise, "velocity": velocity, "x0": x0, "score": -noise / point.sigma, "average velocity": velocity}


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_image_and_noise_come_back(kind, point):
    x0, noise = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, out = point.alpha * x0 + point.sigma * noise, outputs(x0, noise, point)[kind]
    found = PREDICTIONS[kind](lambda given, t, **_: out if given is x and t == T else None)(x, point)
    assert torch.allclose(found.x0, x0, atol=1e-12)
    assert torch.allclose(found.noise, noise, atol=1e-12)
    assert found.log_variance is None


def test_at_the_ends_of_a_path_velocity_is_enough():
    """Where alpha or sigma is 0 nothing is divided by it."""
    x0, noise = torch.randn(2, 1, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for point, x in ((Point(0.0, 1.0, 0.0, -1.0, 1.0), x0), (Point(1.0, 0.0, 1.0, -1.0, 1.0), noise)):
        found = PREDICTIONS["velocity"](lambda *_: noise - x0)(x, point)
        assert torch.allclose(found.x0, x0)
        assert torch.allclose(found.noise, noise)


def test_noise_is_known_on_the_chain_with_and_without_a_variance():
    schedule = Schedule.create("10")
    x0, noise, fraction = torch.randn(3, 2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for step in (0, 4, 9):
        point = schedule.at(step)
        x = point.alpha * x0 + point.sigma * noise
        plain = from_noise(lambda *_: noise)(x, point)
        learned = from_noise(lambda *_: torch.cat([noise, fraction], dim=1))(x, point)
        assert plain.log_variance is None
        assert torch.equal(plain.x0, learned.x0)
        assert torch.allclose(plain.x0, x0, atol=1e-4)
        assert learned.log_variance.shape == x.shape
        assert point.t == schedule.levels[step] == schedule.numbers[step] / 1000


SIT_PATHS = {  # as SiT writes them, its t from 0, noise, to 1, the image
    "linear": (lambda t: t, lambda t: 1 - t),
    "gvp": (lambda t: math.sin(math.pi / 2 * t), lambda t: math.cos(math.pi / 2 * t)),
    "vp": (
        lambda t: math.exp(-0.25 * (1 - t) ** 2 * (20 - 0.1) - 0.5 * (1 - t) * 0.1),
        lambda t: math.sqrt(1 - math.exp(-0.25 * (1 - t) ** 2 * (20 - 0.1) - 0.5 * (1 - t) * 0.1) ** 2),
    ),
}


@pytest.mark.parametrize("name", PATHS)
def test_paths_are_sits_turned_round_with_their_derivatives(name):
    alpha, sigma = SIT_PATHS[name]
    for t in (0.04, 0.3, 0.5, 0.96):
        point, step = PATHS[name](t), 1e-6
        assert point.alpha == pytest.approx(alpha(1 - t), rel=1e-12)
        assert point.sigma == pytest.approx(sigma(1 - t), rel=1e-9)
        assert point.alpha_rate == pytest.approx((alpha(1 - t - step) - alpha(1 - t + step)) / (2 * step), rel=1e-6)
        assert point.sigma_rate == pytest.approx((sigma(1 - t - step) - sigma(1 - t + step)) / (2 * step), rel=1e-6)
    assert (PATHS[name](0.0).alpha, PATHS[name](0.0).sigma, PATHS[name](1.0).sigma) == (1, 0, pytest.approx(1, abs=1e-4))


def test_noise_of_another_size_is_noise_of_size_one_in_a_prediction():
    """JiT at 512 pixels: z = t x + (1 - t) 2 e on its own clock."""
    x0, noise = torch.randn(2, 2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, path in PATHS.items():
        point = louder(path, 2.0)(T)
        plain = PATHS[name](T)
        x = plain.alpha * x0 + plain.sigma * 2 * noise
        for kind, out in outputs(x0, noise, point).items():
            found = PREDICTIONS[kind](lambda *_, out=out, **__: out)(x, point)
            assert torch.allclose(found.noise, noise)
            assert torch.allclose(found.x0, x0)
            assert torch.allclose(found.velocity(point), plain.alpha_rate * x0 + plain.sigma_rate * 2 * noise)


@pytest.mark.parametrize("t", [0.5, 0.05, 0.02])
def test_an_image_gives_jits_velocity(t):
    """(x - z) / max(1 - t, 0.05) on its clock."""
    x, z = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    point = PATHS["linear"](t)
    found = from_x0(lambda *_: x, clamp=0.05)(z, point)
    native = 1 - t
    assert torch.allclose(-found.velocity(point), (x - z) / max(1 - native, 0.05))
    assert torch.allclose(point.alpha * found.x0 + point.sigma * found.noise, z)
    unclamped = from_x0(lambda *_: x)(z, point)
    assert torch.allclose(unclamped.velocity(point), found.velocity(point)) == (t >= 0.05)
