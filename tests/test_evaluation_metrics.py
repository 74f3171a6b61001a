import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import ranks
import scipy.linalg
import torch
from conftest import features, run_command
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from fiducial.evaluation.metrics import fid_infinity, gaussians, intervals, kid, vendi
from fiducial.evaluation.metrics.fid_infinity import SHUFFLES, frechet_curve
from fiducial.evaluation.metrics.gaussians import frechet_distance, frechet_error, transport
from fiducial.evaluation.metrics.inception_score import inception_score
from fiducial.evaluation.metrics.intervals import Estimate
from fiducial.evaluation.metrics.kid import kernel_distance
from fiducial.evaluation.metrics.statistics import FeatureStatistics
from fiducial.evaluation.metrics.vendi import vendi_score


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


def statistics_of(rows: np.ndarray) -> FeatureStatistics:
    statistics = FeatureStatistics.empty(rows.shape[1])
    statistics.update(rows)
    statistics.flush()
    return statistics


def infinitesimal_error(metric: Callable[[np.ndarray], float], count: int, step: float = 1e-5) -> float:
    """Standard error by the infinitesimal jackknife: the spread of how `metric` of weights (N,) moves with each one of them."""
    even, moves = np.full(count, 1 / count), []
    for number in range(count):
        towards = np.eye(count)[number] - even
        moves.append((metric(even + step * towards) - metric(even - step * towards)) / (2 * step))
    return float(np.std(moves, ddof=1) / count**0.5)


def weighted_moments(rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = weights @ rows
    return mean, (weights[:, None] * (rows - mean)).T @ (rows - mean)


@pytest.mark.parametrize("constant", [False, True])
def test_the_error_of_the_frechet_distance_is_by_its_derivative(constant, monkeypatch):
    """Finite differences of weighted moments. `constant` adds a feature that never fires, so that there is a singular covariance
    of many samples. Without the transport, only the means' part would be left, or too much: that shows."""
    monkeypatch.setattr(intervals, "ROWS", 9)
    random = np.random.default_rng(0)
    rows = random.normal(size=(80, 5)) @ random.normal(size=(5, 5)) + 0.3
    mu, sigma = gaussian(5, 50, 1)
    if constant:
        rows = np.concatenate([rows, np.full((80, 1), 0.7)], axis=1)
        mu, sigma = np.append(mu, 0.7), np.pad(sigma, (0, 1))
    own = statistics_of(rows)
    expected = infinitesimal_error(lambda weights: frechet_distance(*weighted_moments(rows, weights), mu, sigma), 80)
    biased = FeatureStatistics(81, own.mean, own.scatter)  # a covariance divided by n, as weights give it
    assert frechet_error(rows, biased, mu, sigma) == pytest.approx(expected, rel=1e-5)
    assert frechet_error(rows, own, mu, sigma) == pytest.approx(expected, rel=0.03)
    with monkeypatch.context() as patch:
        patch.setattr(gaussians, "transport", lambda s1, *_: np.zeros((1, len(s1))))
        assert abs(frechet_error(rows, biased, mu, sigma) / expected - 1) > 0.1


def test_too_few_samples_for_a_covariance_of_full_rank_have_no_error():
    mu, sigma = gaussian(5, 50, 1)
    rows = np.random.default_rng(0).normal(size=(6, 5))
    assert frechet_error(rows[:5], statistics_of(rows[:5]), mu, sigma) is None
    assert frechet_error(rows, statistics_of(rows), mu, sigma) > 0


def test_the_transport_takes_one_covariance_to_the_other():
    (_, s1), (_, s2) = gaussian(12, 60, 0), gaussian(12, 60, 1)
    w = transport(s1, s2)
    np.testing.assert_allclose(w.T @ w @ s1 @ w.T @ w, s2, rtol=1e-8, atol=1e-9 * s2.max())
    wrong = transport(s2, s1)
    assert np.abs(wrong.T @ wrong @ s1 @ wrong.T @ wrong - s2).max() > 0.1 * s2.max()
    np.testing.assert_allclose(transport(s1, s1).T @ transport(s1, s1), np.eye(12), atol=1e-8)


def test_fid_at_infinity_is_where_a_known_line_goes(alone, monkeypatch):
    """The last point is no part of the line. All points are of all samples, in the same order every time."""
    blocks = []

    def distance(_, block, *__):
        blocks.append(block)
        return 3.0 + 50 / len(block) + (len(block) == 30) * 7

    monkeypatch.setattr(fid_infinity, "_distance_of", distance)
    rows = np.zeros((120, 2))
    whole = Estimate(3 + 50 / 120, 0.5)
    found = frechet_curve(rows, rows[0], np.eye(2), whole, alone)
    assert found.counts == (120, 60, 40, 30)
    assert found.values == pytest.approx([3 + 50 / count for count in (120, 60, 40)] + [3 + 50 / 30 + 7])
    assert (found.at_infinity.value, found.slope, found.at(60)) == pytest.approx((3, 50, 3 + 50 / 60))
    bend = 3 - np.polyfit([1 / 120, 1 / 60, 1 / 40, 1 / 30], found.values, 2)[-1]
    assert found.at_infinity.error == pytest.approx(np.hypot(0.5, bend))
    assert abs(bend) > 1
    assert len(blocks) == SHUFFLES * (2 + 3 + 4)
    start = 0
    for parts in (2, 3, 4):
        for _ in range(SHUFFLES):
            assert sorted(np.concatenate(blocks[start : start + parts])) == list(range(120))
            start += parts
    assert (np.concatenate(blocks[:2]) != np.arange(120)).any()  # a file in the order of its classes is shuffled
    assert (np.concatenate(blocks[:2]) != np.concatenate(blocks[2:4])).any()  # in another way each time
    again = frechet_curve(rows, rows[0], np.eye(2), whole, alone)
    assert again == found
    assert all(map(np.array_equal, blocks[: len(blocks) // 2], blocks[len(blocks) // 2 :]))


def test_the_error_at_infinity_has_that_of_the_shuffles(alone, monkeypatch):
    """The halves of each shuffle say something else, which moves the line's end by -1.5 times as much at two thirds' weight."""
    calls = iter([5.0, 5.0, 5.4, 5.4, 4.8, 4.8, 5.2, 5.2] + [6.0] * 3 * SHUFFLES + [7.0] * 4 * SHUFFLES)
    monkeypatch.setattr(fid_infinity, "_distance_of", lambda *_: next(calls))
    rows = np.zeros((120, 2))
    found = frechet_curve(rows, rows[0], np.eye(2), Estimate(4.5, 0.5), alone)
    ends = [np.polyfit([1, 2, 3], [4.5, half, 6.0], 1)[1] for half in (5.0, 5.4, 4.8, 5.2)]
    assert found.at_infinity.value == pytest.approx(np.mean(ends))
    bend = np.mean(ends) - np.polyfit([1, 2, 3, 4], [4.5, 5.1, 6.0, 7.0], 2)[-1]
    assert found.at_infinity.error == pytest.approx(np.sqrt(0.25 + np.var(ends, ddof=1) / 4 + bend**2))


def test_the_points_of_the_curve_are_frechet_distances(alone, monkeypatch):
    monkeypatch.setattr(fid_infinity, "ROWS", 9)
    rows, (mu, sigma) = features(101, 0, 4), gaussian(4, 50, 1)
    found = frechet_curve(rows, mu, sigma, Estimate(7.0, 0.1), alone)
    assert found.values[0] == 7
    monkeypatch.setattr(fid_infinity, "SHUFFLES", 2)
    found = frechet_curve(rows, mu, sigma, Estimate(7.0, 0.1), alone)
    for parts, value in zip((2, 3, 4), found.values[1:], strict=True):
        distances = []
        for order in (np.random.default_rng([0, shuffle]).permutation(101) for shuffle in range(2)):
            distances += block_distances(rows, order, parts, mu, sigma)
        assert value == pytest.approx(np.mean(distances), rel=1e-5)


def block_distances(rows, order, parts, mu, sigma) -> list[float]:
    """By numpy, of blocks as equal as they go, the larger ones first."""
    cut = [order[: 101 % parts * (101 // parts + 1)], order[101 % parts * (101 // parts + 1) :]]
    sizes = (101 // parts + 1, 101 // parts)
    blocks = [rest[i : i + size] for rest, size in zip(cut, sizes, strict=True) for i in range(0, len(rest), size)]
    assert len(blocks) == parts
    return [frechet_distance(rows[b].mean(0, np.float64), np.cov(rows[b], rowvar=False), mu, sigma) for b in blocks]


def test_the_error_of_the_inception_score_is_by_its_derivative(alone):
    """Block by block. Without the score as a factor, for one, it would be another."""
    logits = np.random.default_rng(2).normal(0, 3, size=(43, 6))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    cuts, errors, scores = [20, 40], [], []
    for q in np.split(p, cuts):

        def score(weights, q=q):
            return np.exp(weights @ (q * np.log(q / (weights @ q))).sum(1))

        errors.append(infinitesimal_error(score, len(q)))
        scores.append(score(np.full(len(q), 1 / len(q))))
    expected = np.sqrt(np.square(errors).sum()) / 3
    found = inception_score([chunked(block, 4) for block in np.split(logits, cuts)], alone)
    assert found.error == pytest.approx(expected, rel=1e-6)
    assert found.low == pytest.approx(max(np.mean(scores) - 1.959964 * expected, 1), rel=1e-6)
    assert np.sqrt(np.square(np.array(errors) / scores).sum()) / 3 < 0.8 * expected


def test_a_last_block_of_one_image_has_a_score_of_one_and_no_error(alone):
    """Whatever the image: it is its own average. So is 5,001 images' last block."""
    logits = np.random.default_rng(2).normal(0, 3, size=(21, 6))
    whole, with_one = (inception_score([chunked(b, 9) for b in np.split(logits[:n], [20][: n - 20])], alone) for n in (20, 21))
    assert with_one.value == pytest.approx((whole.value + 1) / 2)
    assert with_one.error == pytest.approx(whole.error / 2)
    alone_in_file = inception_score([chunked(logits[:1], 9)], alone)
    assert (alone_in_file.value, alone_in_file.error, alone_in_file.low) == (1, None, None)


def vendi_oracle(rows: np.ndarray, weights: np.ndarray | None = None) -> float:
    """exp of the entropy of the eigenvalues of the N x N cosine similarities, over N or weighted."""
    weights = np.full(len(rows), 1 / len(rows)) if weights is None else weights
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    similarities = np.array([[a @ b for b in unit] for a in unit]) * np.sqrt(np.outer(weights, weights))
    values = np.linalg.eigvalsh(similarities)
    values = values[values > 1e-14]
    return float(np.exp(-(values * np.log(values)).sum()))


@pytest.mark.parametrize("count", [6, 40])  # fewer rows than features, and more
def test_vendi_score_is_that_of_the_similarities(count, alone, monkeypatch):
    """Rows that keep their lengths, for one, would give another."""
    monkeypatch.setattr(intervals, "ROWS", 9)
    monkeypatch.setattr(vendi, "ROWS", 9)
    rows = features(count, 0, 8)
    rows[::2] *= 3
    found = vendi_score(rows, alone)
    assert found.value == pytest.approx(vendi_oracle(rows), rel=1e-9)
    assert vendi_score(rows * 5, alone).value == pytest.approx(found.value, rel=1e-6)
    values = np.linalg.eigvalsh(rows.astype(np.float64) @ rows.T)
    values = values[values > 1e-9] / values.sum()
    assert abs(np.exp(-(values * np.log(values)).sum()) / found.value - 1) > 0.01
    if count > 8:
        error = infinitesimal_error(lambda weights: vendi_oracle(rows, weights), count)
        assert found.error == pytest.approx(error, rel=1e-5)


def test_vendi_score_counts_what_is_different(alone):
    same = vendi_score(np.tile(features(1, 0, 8), (20, 1)), alone)
    assert same.value == pytest.approx(1)
    assert (same.error or 0) == pytest.approx(0, abs=1e-6)  # None if it is exactly 0
    assert vendi_score(np.eye(8, dtype=np.float32) * 3, alone).value == pytest.approx(8)
    assert vendi_score(np.eye(8, dtype=np.float32)[np.arange(40) % 4], alone).value == pytest.approx(4)


@pytest.mark.filterwarnings("error")
def test_a_row_of_zeros_has_no_vendi_score(alone):
    rows = features(20, 0, 8)
    rows[3] = 0
    assert vendi_score(rows, alone) is None


def test_the_error_of_kid_is_by_its_derivative_and_of_the_subsets_drawn(alone, monkeypatch):
    x, y = features(60, 0, 6), features(45, 3, 6)
    kernels = [[(float(a.astype(np.float64) @ b) / 6 + 1) ** 3 for b in np.concatenate([x, y])] for a in x]
    influences = []
    for i, row in enumerate(kernels):
        within = sum(value for j, value in enumerate(row[:60]) if j != i) / 59
        influences.append(2 * (within - sum(row[60:]) / 45))
    variance = np.var(influences, ddof=1) / 60
    found = kernel_distance(x, y, alone, subsets=10, size=30)
    assert found.error == pytest.approx(np.sqrt(variance + found.spread**2 / 10 / 2), rel=1e-9)
    assert kernel_distance(x[:45], y, alone, subsets=1, size=45).spread == 0
    monkeypatch.setattr(kid, "KID_PROBE", 30)
    assert kernel_distance(x, y, alone, subsets=10, size=30).error == pytest.approx(found.error, rel=0.4)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.long)])
def test_every_rank_has_the_numbers_of_one(count, alone, monkeypatch, tmp_path):
    for (module, name), value in ranks.SMALL.items():
        monkeypatch.setattr(module, name, value)
    expected = ranks.everything(alone)
    done = run_command("tests/ranks.py", tmp_path, ranks=count)
    assert done.returncode == 0, done.stderr
    for rank in range(count):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert found[name] == [value if value is None else pytest.approx(value, rel=1e-9) for value in values], name
