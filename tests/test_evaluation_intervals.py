"""Intervals: Wilson's against scipy's, and all of them by what they promise, on draws from distributions with known answers."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binomtest

import fiducial
from fiducial.evaluation.metrics.fid_infinity import frechet_curve
from fiducial.evaluation.metrics.gaussians import frechet_distance, frechet_error
from fiducial.evaluation.metrics.inception_score import inception_score
from fiducial.evaluation.metrics.intervals import (
    GROUPS,
    SPLITS,
    Estimate,
    estimate,
    groups_of,
    jackknife_moves,
    kept_groups,
    length,
    share,
)
from fiducial.evaluation.metrics.kid import kernel_distance
from fiducial.evaluation.metrics.memorisation import memorisation
from fiducial.evaluation.metrics.neighbours import Neighbourhoods, neighbourhoods
from fiducial.evaluation.metrics.statistics import FeatureStatistics
from fiducial.evaluation.metrics.vendi import vendi_score

DRAWS = 200
BAND = (0.90, 0.98)


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_shares_have_wilsons_interval(count):
    """As scipy has it; the normal interval, which is a point at 0 and at 1, would show."""
    for hits in {0, 1, count // 3, count - 1, count}:
        theirs = binomtest(hits, count).proportion_ci(method="wilson")
        found = share(hits, count)
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)
        assert found.value == hits / count
        assert found.low < found.high
    assert share(0, count).low == pytest.approx(0, abs=1e-12)
    assert share(count, count).high == pytest.approx(1, abs=1e-12)


def test_groups_are_even_and_thirds_are_left_out_once_a_split():
    counts = np.bincount(groups_of(100))
    assert len(counts) == GROUPS
    assert counts.max() - counts.min() <= 1
    kept = kept_groups()
    assert kept.shape == (3 * SPLITS, GROUPS)
    assert (kept.sum(1) == 2 * GROUPS // 3).all()
    assert ((~kept).reshape(SPLITS, 3, GROUPS).sum(1) == 1).all()
    assert len({row.tobytes() for row in kept}) == len(kept)


def test_an_error_of_zero_gives_no_interval():
    """That nothing varied in the samples does not say that nothing would: a point would claim too much."""
    assert estimate(0.5, 0.0, 0, 1) == estimate(0.5, None, 0, 1) == Estimate(0.5)
    assert estimate(0.5, 1e-11) == Estimate(0.5)  # which rounding makes of 0
    assert estimate(0.5, 1e-7).low < 0.5
    assert estimate(0.9, 0.1, 0, 1) == Estimate(0.9, 0.1, pytest.approx(0.9 - 0.1959964), 1)


def test_the_jackknife_gives_the_known_error_of_a_mean():
    """A mean without a third of its values; with the factor of single values left out, for one, it would be far off."""
    errors = []
    for seed in range(200):
        values, member = np.random.default_rng(seed).normal(size=120), groups_of(120)
        errors.append(length(jackknife_moves(np.array([values[groups[member]].mean() for groups in kept_groups()]))))
    assert np.mean(np.square(errors)) ** 0.5 == pytest.approx(120**-0.5, rel=0.05)


def draws(metric: Callable[[np.random.Generator], Estimate]) -> list[Estimate]:
    return [metric(np.random.default_rng([0, draw])) for draw in range(DRAWS)]


def covered(found: list[Estimate], truth: float | None = None) -> tuple[float, float]:
    """The share of intervals that hold the truth, or the mean over all draws; and for half as long ones."""
    truth = np.mean([one.value for one in found]) if truth is None else truth
    halves = [abs(one.value - truth) <= 1.959964 / 2 * one.error for one in found]
    return float(np.mean([one.low <= truth <= one.high for one in found])), float(np.mean(halves))


def assert_covered(found: list[Estimate], truth: float | None = None) -> None:
    """Asserts that the intervals hold the truth as often as 95 % ones do, and that half as long ones do not."""
    whole, half = covered(found, truth)
    print(f"covered {whole:.3f}, half {half:.3f}")
    assert BAND[0] <= whole <= BAND[1]
    assert half < BAND[0]


DIMENSION = 12
SCALES = np.linspace(0.5, 2, DIMENSION)
MU, SIGMA = np.full(DIMENSION, 0.2), np.eye(DIMENSION)


def statistics_of(rows: np.ndarray) -> FeatureStatistics:
    statistics = FeatureStatistics.empty(rows.shape[1])
    statistics.update(rows)
    statistics.flush()
    return statistics


def fid(rows: np.ndarray) -> Estimate:
    own = statistics_of(rows)
    distance = frechet_distance(own.mean, own.covariance, MU, SIGMA)
    return estimate(distance, frechet_error(rows, own, MU, SIGMA), 0)


def drawn(random: np.random.Generator, count: int = 400) -> np.ndarray:
    return (random.normal(size=(count, DIMENSION)) * SCALES).astype(np.float32)


def test_fids_interval_holds_its_expectation():
    assert_covered(draws(lambda random: fid(drawn(random))))


def test_the_interval_of_fid_at_infinity_holds_the_distance_of_the_distributions(alone):
    truth = frechet_distance(np.zeros(DIMENSION), np.diag(SCALES**2), MU, SIGMA)

    def infinite(random: np.random.Generator) -> Estimate:
        rows = drawn(random)
        whole = fid(rows)
        return frechet_curve(rows, MU, SIGMA, whole, alone).at_infinity

    assert_covered(draws(infinite), truth)


def test_the_interval_of_fid_does_not_hold_the_distance_of_the_distributions():
    """Being biased, so that the line in 1 / N is needed. Of 100 samples in 12 dimensions."""
    truth = frechet_distance(np.zeros(DIMENSION), np.diag(SCALES**2), MU, SIGMA)
    assert covered(draws(lambda random: fid(drawn(random, 100))), truth)[0] < BAND[0]


@pytest.mark.parametrize("blocks", [1, 5])
def test_inception_scores_interval_holds_its_expectation(blocks, alone):
    def score(random: np.random.Generator) -> Estimate:
        parts = np.split(random.normal(0, 2, size=(500, 10)), blocks)
        return inception_score([lambda part=part: iter([part]) for part in parts], alone)

    assert_covered(draws(score))


def test_vendi_scores_interval_holds_its_expectation(alone):
    assert_covered(draws(lambda random: vendi_score(drawn(random), alone)))


REFERENCE = np.random.default_rng(1).normal(size=(300, DIMENSION)).astype(np.float32)


def test_kids_interval_holds_its_expectation(alone):
    assert_covered(draws(lambda random: kernel_distance(drawn(random), REFERENCE, alone, subsets=20, size=100)))


@pytest.fixture(scope="module")
def neighbourhoods_of_draws() -> list[Neighbourhoods]:
    alone = fiducial.init("cpu")
    return draws(lambda random: neighbourhoods(REFERENCE, drawn(random), alone))


@pytest.mark.parametrize("name", ["precision", "recall", "density", "coverage"])
def test_intervals_of_neighbourhoods_hold_their_expectation(name, neighbourhoods_of_draws):
    assert_covered([getattr(found, name) for found in neighbourhoods_of_draws])


def test_the_interval_of_authentic_samples_holds_its_expectation(alone):
    assert_covered(draws(lambda random: memorisation(drawn(random), REFERENCE, alone).authentic))
