"""Whatever a network predicts, a solver sees the same image and the same noise."""

import math

import pytest
import torch

from fiducial.diffusion.paths import Point
from fiducial.diffusion.prediction import PREDICTIONS, from_noise
from fiducial.diffusion.schedule import Schedule

T = 0.3
POINTS = {
    "linear": Point(T, 1 - T, T, -1.0, 1.0),
    "cosine": Point(
        T,
        math.cos(math.pi * T / 2),
        math.sin(math.pi * T / 2),
        -math.pi / 2 * math.sin(math.pi * T / 2),
        math.pi / 2 * math.cos(math.pi * T / 2),
    ),
}


def outputs(x0, noise, point):
    """What each kind of network puts out of them."""
    velocity = point.alpha_rate * x0 + point.sigma_rate * noise
    return {"noise": noise, "velocity": velocity, "x0": x0, "score": -noise / point.sigma}


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_image_and_noise_come_back(kind, point):
    x0, noise = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, out = point.alpha * x0 + point.sigma * noise, outputs(x0, noise, point)[kind]
    found = PREDICTIONS[kind](lambda given, t: out if given is x and t == T else None)(x, point)
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
