import numpy as np
import pytest
import scipy.linalg
from torch_fidelity.metric_fid import fid_statistics_to_metric

from evaluation.metrics import frechet_distance, inception_score
from evaluation.statistics import BlockEntropy, FeatureStatistics


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
    assert statistics.count == 100
    np.testing.assert_allclose(statistics.mean, features.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(features.astype(np.float64), rowvar=False), atol=1e-12)


def test_statistics_of_shards_merge_to_those_of_the_whole():
    features = np.random.default_rng(1).normal(size=(90, 5))
    whole, merged = FeatureStatistics.empty(5), FeatureStatistics.empty(5)
    whole.update(features)
    for shard in np.split(features, [1, 40]):
        part = FeatureStatistics.empty(5)
        part.update(shard)
        merged.merge(part)
    merged.merge(FeatureStatistics.empty(5))
    np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=1e-12, atol=1e-14)


def entropy_oracle(logits: np.ndarray, block: int) -> list[float]:
    """exp(mean KL) of each block by a double loop."""
    scores = []
    for start in range(0, len(logits), block):
        rows = logits[start : start + block].astype(np.float64)
        p = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
        marginal = p.mean(0)
        scores.append(np.exp(np.mean([sum(pi * np.log(pi / mi) for pi, mi in zip(row, marginal, strict=True)) for row in p])))
    return scores


@pytest.mark.parametrize("batch", [1, 4, 10, 23])
def test_inception_score_is_the_mean_over_blocks_in_file_order(batch):
    logits = np.random.default_rng(2).normal(0, 3, size=(23, 6)).astype(np.float32)
    entropy = BlockEntropy(6, block=10)
    for start in range(0, len(logits), batch):
        entropy.update(logits[start : start + batch])
    scores = entropy_oracle(logits, 10)
    assert len(scores) == 3  # the short last block counts like the others
    value, std = inception_score(entropy.divergences())
    assert value == pytest.approx(np.mean(scores), rel=1e-9)
    assert std == pytest.approx(np.std(scores), rel=1e-9)


def test_inception_score_of_certain_and_of_constant_predictions_is_known():
    certain, constant = BlockEntropy(5), BlockEntropy(5)
    certain.update(np.eye(5)[np.arange(50) % 5] * 1000)
    constant.update(np.zeros((50, 5)))
    assert inception_score(certain.divergences())[0] == pytest.approx(5)
    assert inception_score(constant.divergences())[0] == pytest.approx(1)
