from collections.abc import Callable, Iterator

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import features
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from evaluation.metrics import frechet_distance, inception_score, kernel_distance
from evaluation.statistics import FeatureStatistics


def gaussian(dimension: int, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(samples, dimension)) @ random.normal(size=(dimension, dimension)) + random.normal(size=dimension)
    return mixed.mean(0), np.cov(mixed, rowvar=False)


def test_frechet_distance_agrees_with_scipy_and_torch_fidelity():
    for seed in range(5):
        (m1, s1), (m2, s2) = gaussian(30, 200, seed), gaussian(30, 150, seed + 50)
        oracle = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)
        assert frechet_distance(m1, s1, m2, s2) == pytest.approx(oracle, rel=1e-9)
        statistics = {"mu": m1, "sigma": s1}, {"mu": m2, "sigma": s2}
        fidelity = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        assert frechet_distance(m1, s1, m2, s2) == pytest.approx(fidelity, rel=1e-6)


def test_frechet_distance_of_commuting_gaussians_is_known():
    a, b, mean = np.array([1.0, 4.0, 9.0, 0.0]), np.array([4.0, 1.0, 0.0, 0.0]), np.array([1.0, -2.0, 0.0, 0.5])
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    distance = frechet_distance(mean, rotation @ np.diag(a) @ rotation.T, 0 * mean, rotation @ np.diag(b) @ rotation.T)
    assert distance == pytest.approx((mean**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-9)


@pytest.mark.parametrize("samples", [2, 10, 64, 65])
def test_rank_deficient_covariances_give_a_real_number_and_zero_to_themselves(samples):
    mu, sigma = gaussian(64, samples, 1)
    assert frechet_distance(mu, sigma, mu, sigma) == pytest.approx(0, abs=1e-6 * np.trace(sigma))
    other = gaussian(64, 500, 2)
    assert frechet_distance(mu, sigma, *other) == pytest.approx(frechet_distance(*other, mu, sigma), rel=1e-9)
    assert np.isfinite(frechet_distance(mu, sigma, mu * 0, sigma * 0))


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [17, 17, 17, 17, 17, 15], [99, 1]])
def test_streamed_statistics_are_numpys_for_any_batches(sizes):
    features = np.random.default_rng(0).normal(1000, 1, size=(100, 12)).astype(np.float32)
    statistics = FeatureStatistics.empty(12)
    for batch in np.split(features, np.cumsum(sizes)[:-1]):
        statistics.update(batch)
        if len(sizes) < 10:
            statistics.flush()
    statistics.flush()
    assert statistics.count == 100
    np.testing.assert_allclose(statistics.mean, features.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(features.astype(np.float64), rowvar=False), atol=1e-12)


def test_statistics_of_shards_merge_to_those_of_the_whole():
    features = np.random.default_rng(1).normal(size=(90, 5))
    whole, merged = FeatureStatistics.empty(5), FeatureStatistics.empty(5)
    whole.update(features)
    whole.flush()
    for shard in np.split(features, [1, 40]):
        part = FeatureStatistics.empty(5)
        part.update(shard)
        part.flush()
        merged.merge(part)
    merged.merge(FeatureStatistics.empty(5))
    np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rows", [1, 2])
def test_statistics_of_constant_and_of_few_features_are_finite(rows):
    statistics = FeatureStatistics.empty(8)
    statistics.update(np.full((rows + 1, 8), 3.25, dtype=np.float32))
    statistics.flush()
    assert (statistics.covariance == 0).all()
    other = gaussian(8, 50, 0)
    distance = frechet_distance(statistics.mean, statistics.covariance, *other)
    assert distance == pytest.approx(((statistics.mean - other[0]) ** 2).sum() + np.trace(other[1]))


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1, 1e6])
def test_nearly_singular_covariances_keep_their_accuracy(scale):
    """Eigenvalues over 16 orders of magnitude; commuting, so that the answer is known."""
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(40, 40)))[0]
    a, b = scale * np.logspace(0, -16, 40), scale * np.logspace(-16, 0, 40)
    s1, s2 = ((rotation * values) @ rotation.T for values in (a, b))
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(np.zeros(40), s1, np.zeros(40), s2) == pytest.approx(expected, rel=1e-7)


def test_a_covariance_that_float32_made_indefinite_counts_as_the_one_it_was():
    mu, sigma = gaussian(64, 30, 1)
    other = gaussian(64, 500, 2)
    rounded = sigma.astype(np.float32)
    assert np.linalg.eigvalsh(rounded.astype(np.float64))[0] < 0
    assert frechet_distance(mu, rounded, *other) == pytest.approx(frechet_distance(mu, sigma, *other), rel=1e-4)
    crooked = sigma + np.triu(np.full((64, 64), 1e-7 * sigma.max()), 1)
    assert frechet_distance(mu, crooked, *other) == pytest.approx(frechet_distance(mu, sigma, *other), rel=1e-3)
    with pytest.raises(ValueError, match="negative eigenvalues"):
        frechet_distance(mu, 2 * np.eye(64) - np.ones((64, 64)), *other)


def entropy_oracle(logits: np.ndarray, block: int) -> list[float]:
    """exp(mean KL) of each block by a double loop."""
    scores = []
    for start in range(0, len(logits), block):
        rows = logits[start : start + block].astype(np.float64)
        p = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
        marginal = p.mean(0)
        scores.append(np.exp(np.mean([sum(pi * np.log(pi / mi) for pi, mi in zip(row, marginal, strict=True)) for row in p])))
    return scores


def chunked(logits: np.ndarray, size: int) -> Callable[[], Iterator[np.ndarray]]:
    """A block as `inception_score` takes it: gives its logits, `size` rows at a time, however often it is asked."""
    return lambda: iter(np.split(logits, range(size, len(logits), size)))


@pytest.mark.parametrize("chunk", [1, 4, 10, 23])
def test_inception_score_is_the_mean_over_blocks(chunk, alone):
    logits = np.random.default_rng(2).normal(0, 3, size=(23, 6)).astype(np.float32)
    blocks = [logits[:10], logits[10:20], logits[20:]]
    found = inception_score([chunked(block, chunk) for block in blocks], alone)
    scores = entropy_oracle(logits, 10)
    assert len(scores) == 3  # the short last block counts like the others
    assert found.value == pytest.approx(np.mean(scores), rel=1e-9)
    assert found.spread == pytest.approx(np.std(scores), rel=1e-9)


def test_inception_score_of_certain_and_of_constant_predictions_is_known(alone):
    certain = inception_score([chunked(np.eye(5)[np.arange(50) % 5] * 1000, 50)], alone)
    constant = inception_score([chunked(np.zeros((50, 5)), 50)], alone)
    assert certain.value == pytest.approx(5)
    assert certain.spread is None  # of one block
    assert constant.value == pytest.approx(1)


def test_inception_score_is_torch_fidelitys_for_its_blocks(alone):
    logits = np.random.default_rng(4).normal(0, 2, size=(57, 9)).astype(np.float32)
    order = np.random.RandomState(2020).permutation(57)
    blocks = np.split(order, [i * 57 // 10 for i in range(1, 10)])
    found = inception_score([chunked(logits[block], 57) for block in blocks], alone)
    expected = isc_features_to_metric(torch.from_numpy(logits))
    assert found.value == pytest.approx(expected["inception_score_mean"], rel=1e-9)
    assert found.spread == pytest.approx(expected["inception_score_std"], rel=1e-9)


@pytest.mark.parametrize("sizes", [(60, 45, 30), (30, 30, 30)])
def test_kernel_distance_is_torch_fidelitys(sizes, alone):
    x, y = features(sizes[0], 0), features(sizes[1], 3)
    expected = kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=20, kid_subset_size=sizes[2], verbose=False
    )
    found = kernel_distance(x, y, alone, subsets=20, size=sizes[2])
    assert found.value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)
    if sizes[0] > sizes[2]:
        assert found.spread == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-3)


def test_kernel_distance_is_the_unbiased_estimate_by_a_double_loop(alone):
    x, y = features(9, 0), features(9, 5)

    def kernel(a, b):
        return (float(a.astype(np.float64) @ b.astype(np.float64)) / 24 + 1) ** 3

    within = sum(kernel(rows[i], rows[j]) for rows in (x, y) for i in range(9) for j in range(9) if i != j) / (9 * 8)
    between = sum(kernel(a, b) for a in x for b in y) / 81
    assert kernel_distance(x, y, alone, subsets=3, size=9).value == pytest.approx(within - 2 * between, rel=1e-9)
    biased = sum(kernel(rows[i], rows[j]) for rows in (x, y) for i in range(9) for j in range(9)) / 81 - 2 * between
    assert abs(biased - (within - 2 * between)) > 1e-3


def test_kernel_distance_of_one_distribution_is_about_zero(alone):
    both = features(400, 0)
    found = kernel_distance(both[:200], both[200:], alone, subsets=50, size=100)
    assert abs(found.value) < 0.02
    with pytest.raises(ValueError, match="cannot be drawn"):
        kernel_distance(both[:50], both, alone, size=100)
