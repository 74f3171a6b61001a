"""MIND and the F-score against their definitions written out, and how often their intervals hold what they should."""

import numpy as np
import pytest
import torch
from conftest import features

from fiducial.evaluation.metrics.mind import monge_distance
from fiducial.evaluation.metrics.neighbours import neighbourhoods


def written_out(x: np.ndarray, y: np.ndarray, directions: int) -> float:
    """The paper's double sum, with the draws of torch-fidelity's: of the larger side first, then the directions."""
    generator, n = torch.Generator().manual_seed(2020), min(len(x), len(y))
    x, y = (rows if len(rows) == n else rows[torch.randperm(len(rows), generator=generator)[:n].numpy()] for rows in (x, y))
    total = 0.0
    for u in torch.randn(directions, x.shape[1], generator=generator).double().numpy():
        u = u / np.linalg.norm(u)
        for one, other in zip(sorted(x.astype(np.float64) @ u), sorted(y.astype(np.float64) @ u), strict=True):
            total += (one - other) ** 2
    return 3 * x.shape[1] / (n * directions) * total


@pytest.mark.parametrize(("count", "others"), [(60, 60), (60, 45), (45, 60)])
def test_mind_is_the_double_sum(count, others, alone):
    x, y = features(count, 0, 7), features(others, 1, 7)
    assert monge_distance(x, y, alone, directions=90).value == pytest.approx(written_out(x, y, 90), rel=1e-5)
    assert monge_distance(x, x[::-1].copy(), alone, directions=90).value == pytest.approx(0, abs=1e-9)


def test_mind_of_shifted_samples_is_three_times_the_squared_shift(alone):
    """On a direction u the gap is u.s wherever one looks, and the mean of (u.s)^2 over directions is |s|^2 / D."""
    x, shift = features(50, 0, 5), np.array([3, 0, -4, 0, 0], np.float32)
    assert monge_distance(x, x + shift, alone, directions=20_000).value == pytest.approx(3 * 25, rel=0.03)


@pytest.mark.parametrize("shift", [0.05, 0.3])
def test_the_interval_of_mind_holds_its_mean_over_draws(shift, alone):
    random = np.random.default_rng(0)
    y = random.normal(size=(200, 8)).astype(np.float32)
    draws = [random.normal(shift, size=(200, 8)).astype(np.float32) for _ in range(120)]
    found = [monge_distance(x, y, alone, directions=40) for x in draws]
    mean, spread = np.mean([one.value for one in found]), np.std([one.value for one in found])
    assert 0.9 <= np.mean([one.low <= mean <= one.high for one in found]) <= 1
    assert 0.8 < np.mean([one.error for one in found]) / spread < 1.4


def test_the_f_score_is_the_harmonic_mean_with_an_interval(alone):
    random, errors, values = np.random.default_rng(0), [], []
    reference = random.normal(size=(150, 6)).astype(np.float32)
    for _ in range(60):
        found = neighbourhoods(reference, random.normal(0.6, 0.8, size=(150, 6)).astype(np.float32), alone)
        p, r = found.precision.value, found.recall.value
        assert found.f_score.value == pytest.approx(2 * p * r / (p + r))
        errors.append(found.f_score.error)
        values.append(found.f_score)
    mean = np.mean([one.value for one in values])
    assert 0.85 <= np.mean([one.low <= mean <= one.high for one in values]) <= 1
    assert 0.75 < np.mean(errors) / np.std([one.value for one in values]) < 1.5
    far = neighbourhoods(reference, reference + 1000, alone).f_score
    assert (far.value, far.error) == (0, None)
