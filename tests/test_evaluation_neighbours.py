"""Nearest neighbours and what they tell, against definitions written out pair by pair."""

import numpy as np
import pytest
import torch
from conftest import features
from torch_fidelity.metric_prc import calculate_precision_recall_full

from fiducial.evaluation.metrics import covering, neighbours
from fiducial.evaluation.metrics.intervals import groups_of, kept_groups
from fiducial.evaluation.metrics.neighbours import Pairs, closest, nearest, neighbourhoods


def precision_recall(reference: np.ndarray, samples: np.ndarray, group, half: bool = False) -> tuple[float, float]:
    found = neighbourhoods(reference, samples, group, half)
    return found.precision.value, found.recall.value


@pytest.fixture
def _small_tiles(monkeypatch):
    """So that a hundred rows make many tiles, ragged ones among them, in several of ADM's blocks."""
    monkeypatch.setattr(neighbours, "TILE", 7)
    monkeypatch.setattr(neighbours, "ADM_BLOCK", 40)


def precision_recall_oracle(reference: np.ndarray, samples: np.ndarray, smallest: int = 4) -> tuple[float, float]:
    """By its definition, a pair at a time in float64; the radius is the `smallest`-th smallest distance, itself included."""

    def squared(x, y):
        return ((x.astype(np.float64) - y.astype(np.float64)) ** 2).sum()

    def radii(points):
        return [sorted(squared(point, other) for other in points)[smallest - 1] for point in points]

    radii_r, radii_s = radii(reference), radii(samples)
    precision = np.mean([any(squared(s, r) <= radius for r, radius in zip(reference, radii_r, strict=True)) for s in samples])
    recall = np.mean([any(squared(s, r) <= radius for s, radius in zip(samples, radii_s, strict=True)) for r in reference])
    return float(precision), float(recall)


@pytest.mark.usefixtures("_small_tiles")
def test_precision_and_recall_are_those_of_the_definition(alone):
    reference, samples = features(90, 0, 6), features(101, 8, 6)
    expected = precision_recall_oracle(reference, samples)
    assert precision_recall(reference, samples, alone) == expected
    assert precision_recall_oracle(reference, samples, smallest=3) != expected  # the wrong radius would show
    assert min(expected) > 0.05
    assert max(expected) < 0.95
    assert precision_recall(samples, reference, alone) == expected[::-1]


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("seed", range(5))
def test_precision_and_recall_are_torch_fidelitys(seed, alone):
    reference, samples = features(120, seed), features(95, seed + 3)
    expected = calculate_precision_recall_full(torch.from_numpy(samples), torch.from_numpy(reference))
    assert precision_recall(reference, samples, alone) == pytest.approx(expected, abs=1e-6)


def test_too_few_rows_for_a_third_neighbour_are_an_error(alone):
    with pytest.raises(ValueError, match="no neighbour number 3"):
        precision_recall(features(3, 0), features(50, 1), alone)


def test_all_samples_equal_give_numbers(alone):
    constant = np.full((20, 24), 0.5, dtype=np.float32)
    assert precision_recall(constant, constant, alone) == (1.0, 1.0)
    precision, recall = precision_recall(features(30, 0), constant, alone)
    assert precision in (0.0, 1.0)
    assert recall == 0.0


def half_oracle(a: np.ndarray, b: np.ndarray, block: int) -> np.ndarray:
    """ADM's distances, an operation at a time in numpy's float16; a block that overflows in float32."""
    distances = np.empty((len(a), len(b)), dtype=np.float32)
    for i in range(0, len(a), block):
        for j in range(0, len(b), block):
            x, y = a[i : i + block], b[j : j + block]
            with np.errstate(over="ignore", invalid="ignore"):
                u, v = x.astype(np.float16), y.astype(np.float16)
                norm_u, norm_v = (np.square(w).astype(np.float32).sum(1).astype(np.float16) for w in (u, v))
                product = (u.astype(np.float32) @ v.astype(np.float32).T).astype(np.float16)
                part = np.maximum(norm_u[:, None] - np.float16(2) * product + norm_v[None], np.float16(0))
            if not np.isfinite(part).all():
                part = np.maximum((x**2).sum(1)[:, None] - 2 * x @ y.T + (y**2).sum(1)[None], 0)
            distances[i : i + block, j : j + block] = part
    return distances


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize(("long_rows", "overflowing"), [([], 0), ([50, 55], 3), (range(90), 9), ("opposite", 1)])
def test_half_distances_are_adms_with_its_fallback_by_the_block(long_rows, overflowing, alone):
    """Parts of 64, whose squares float16 has to round but whose sums are exact in float32 in any order, so that every
    rounding has to be the same. Opposite rows overflow though neither norm is near the limit."""
    a, b = (np.round(features(count, seed) * 64) / 64 for count, seed in ((90, 0), (101, 1)))
    if long_rows == "opposite":
        a[0], b[0] = 32, -32
    else:
        a[list(long_rows)] *= 256
    pairs = Pairs(a, b, alone, half=True)
    found = np.empty((90, 101), dtype=np.float32)
    for rows, columns in pairs.tiles(alone):
        found[rows, columns] = pairs.distances(rows, columns)
    assert (found == half_oracle(a, b, 40)).all()
    assert len(pairs._in_float32) == overflowing


def test_half_distances_change_precision_and_recall_slightly(alone):
    reference, samples = features(400, 0, 64), features(400, 2, 64)
    exact, half = (precision_recall(reference, samples, alone, half) for half in (False, True))
    assert exact != half
    assert half == pytest.approx(exact, abs=0.05)


@pytest.mark.usefixtures("_small_tiles")
def test_nearest_distances_are_the_smallest(alone):
    rows = features(101, 0)
    expected = np.sort(((rows[:, None].astype(np.float64) - rows[None]) ** 2).sum(-1), axis=1)[:, :4]
    found = nearest(Pairs(rows, rows, alone, False), 4, alone)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found >= 0).all()  # each row's distance to itself, by the norm expansion
    rows = np.round(rows * 64) / 64
    expected = np.sort(half_oracle(rows, rows, 40), axis=1)[:, :4]
    assert (nearest(Pairs(rows, rows, alone, True), 4, alone).numpy() == expected).all()


@pytest.mark.parametrize("member", [None, groups_of(500)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_later_tiles_are_looked_at_only_where_something_is_nearer(symmetric, member, alone, monkeypatch):
    """With many ties. The smallest are those of all distances, though most of these are never sorted."""
    monkeypatch.setattr(neighbours, "TILE", 100)
    rows = np.random.default_rng(0).integers(0, 6, size=(500, 4)).astype(np.float32)
    others = rows if symmetric else rows[::-1].copy()
    whole, sorted_through = neighbours._keep_smallest_of_all, []
    monkeypatch.setattr(
        neighbours, "_keep_smallest_of_all", lambda *given: (sorted_through.append(given[1].shape), whole(*given))
    )
    found = nearest(Pairs(rows, others, alone, False), 4, alone, None if member is None else torch.from_numpy(member)).numpy()
    distances = squares(rows, others)
    groups = [np.arange(500)] if member is None else [np.flatnonzero(member == group) for group in range(12)]
    expected = np.stack([np.sort(distances[:, group], axis=1)[:, :4] for group in groups], axis=1)
    assert (found.reshape(expected.shape) == expected).all()
    assert len(sorted_through) <= 10  # of 25: for each hundred of rows the first, or the second where a group had too few yet


def squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances of all pairs, float64, without an expansion."""
    return np.array([[((a - b) ** 2).sum() for b in y.astype(np.float64)] for a in x.astype(np.float64)])


def density_coverage_oracle(
    reference: np.ndarray, samples: np.ndarray, k: int = 5, within=np.less, own: bool = True
) -> tuple[float, float]:
    """By their definitions in arXiv 2002.09797, equations 5 and 6: the radius is to the k-th neighbour, not counting itself.

    `within` and `own` are for wrong variants: other borders, and the samples' radii in place of the reference's.
    """
    distances = squares(reference, samples)
    if own:
        radii = np.array([sorted(row)[k] for row in squares(reference, reference)])[:, None]
    else:
        radii = np.array([sorted(row)[k] for row in squares(samples, samples)])[None]
    radii, inside = np.broadcast_to(radii, distances.shape), np.zeros(distances.shape, dtype=bool)
    for i in range(len(reference)):
        for j in range(len(samples)):
            inside[i, j] = within(distances[i, j], radii[i, j])
    return float(inside.sum() / (k * len(samples))), float(np.mean([any(row) for row in inside]))


def density_coverage(reference: np.ndarray, samples: np.ndarray, group) -> tuple[float, float]:
    found = neighbourhoods(reference, samples, group)
    return found.density.value, found.coverage.value


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("seed", range(3))
def test_density_and_coverage_are_those_of_the_definition(seed, alone):
    """The wrong number of neighbours and the wrong side's radii would show."""
    reference, samples = features(90, seed, 6), features(101, seed + 8, 6)
    expected = density_coverage_oracle(reference, samples)
    assert density_coverage(reference, samples, alone) == pytest.approx(expected, rel=1e-12)
    assert 0.1 < expected[1] < 0.95
    for wrong in ({"k": 4}, {"own": False}):
        assert abs(density_coverage_oracle(reference, samples, **wrong)[0] - expected[0]) > 1e-3
        assert abs(density_coverage_oracle(reference, samples, **wrong)[1] - expected[1]) > 1e-3


def test_a_sample_on_the_border_is_not_nearer(alone):
    """Whole numbers, so that distances are exact; where precision and recall count the border, these two do not."""
    reference, samples = np.arange(12, dtype=np.float32)[:, None] * 2, np.arange(0, 80, 10, dtype=np.float32)[:, None]
    expected = density_coverage_oracle(reference, samples)
    assert density_coverage(reference, samples, alone) == pytest.approx(expected, rel=1e-12)
    assert density_coverage_oracle(reference, samples, within=np.less_equal) != expected


@pytest.mark.usefixtures("_small_tiles")
def test_the_reference_itself_is_covered_whether_it_is_one_array_or_two(alone):
    rows = np.round(features(50, 0, 6) * 64) / 64  # so that the border is exact
    found = neighbourhoods(rows, rows.copy(), alone)
    assert (found.precision.value, found.recall.value, found.coverage.value) == (1, 1, 1)
    assert found.density.value == pytest.approx(density_coverage_oracle(rows, rows)[0], rel=1e-12)
    assert neighbourhoods(rows, rows, alone) == found


def test_the_error_of_density_is_that_of_a_mean(alone):
    reference, samples = features(60, 0, 6), features(71, 3, 6)
    radii = np.sort(np.linalg.norm(reference[:, None] - reference[None], axis=2), axis=1)[:, 5]
    near = (np.linalg.norm(reference[:, None] - samples[None], axis=2) < radii[:, None]).sum(0) / 5
    found = neighbourhoods(reference, samples, alone).density
    assert found.value == pytest.approx(near.mean(), rel=1e-12)
    assert found.error == pytest.approx(near.std(ddof=1) / len(samples) ** 0.5, rel=1e-9)


def test_samples_far_off_have_neither_density_nor_coverage(alone):
    found = neighbourhoods(features(50, 0, 6), features(40, 0, 6) + 100, alone)
    assert (found.precision.value, found.density.value, found.coverage.value) == (0, 0, 0)
    assert (found.density.error, found.coverage.error, found.coverage.high) == (None, None, None)  # nothing varied
    assert 0 < found.precision.high < 0.15  # where hits are counted, none of 40 bounds them


def test_a_reference_without_a_fifth_neighbour_has_neither_density_nor_coverage(alone):
    samples = features(30, 1, 6)
    few, enough = (neighbourhoods(features(count, 0, 6), samples, alone) for count in (5, 6))
    assert few.density is few.coverage is None
    assert few.precision.value == precision_recall_oracle(features(5, 0, 6), samples)[0]
    assert (enough.density.value, enough.coverage.value) == density_coverage_oracle(features(6, 0, 6), samples)


@pytest.mark.usefixtures("_small_tiles")
def test_the_error_of_recall_leaves_thirds_out(alone):
    """By force: the metric of every two thirds. To keep the third and leave the rest, for one, would show."""
    reference, samples = features(50, 0, 6), features(61, 8, 6)
    member, found = groups_of(61), neighbourhoods(reference, samples, alone)
    left, third = (
        [precision_recall_oracle(reference, samples[groups[member]])[1] for groups in kept]
        for kept in (kept_groups(), ~kept_groups())
    )
    error = (2 * sum((value - np.mean(left)) ** 2 for value in left) / (len(left) - 1)) ** 0.5
    assert found.recall.error == pytest.approx(error, rel=1e-9)
    assert np.std(third) != pytest.approx(np.std(left), rel=0.05)
    assert found.recall.low == pytest.approx(max(found.recall.value - 1.959964 * error, 0), rel=1e-9)
    assert found.recall.high == pytest.approx(min(found.recall.value + 1.959964 * error, 1), rel=1e-9)


@pytest.mark.usefixtures("_small_tiles")
def test_the_error_of_coverage_counts_who_alone_covers_what(alone):
    """The sets of samples near each reference image, by a double loop."""
    reference, samples = features(50, 0, 6), features(61, 8, 6)
    radii = np.array([sorted(row)[5] for row in squares(reference, reference)])
    near = squares(reference, samples) < radii[:, None]
    sets = [tuple(np.flatnonzero(row)) for row in near]
    found, expected = neighbourhoods(reference, samples, alone).coverage, covering.coverage_of(*sums_of(sets, 61), 61)
    assert (found.value, found.error, found.low) == pytest.approx((expected.value, expected.error, expected.low), rel=1e-12)
    assert found.moves == pytest.approx(expected.moves)
    fewer = [one if len(one) != 1 else () for one in sets]
    assert covering.coverage_of(*sums_of(fewer, 61), 61).error != pytest.approx(found.error, rel=0.05)


def sums_of(sets: list[tuple[int, ...]], count: int) -> tuple[np.ndarray, ...]:
    """What `coverage_of` takes of the samples in each ball."""
    marks, indices = covering.random_marks(count), np.arange(count, dtype=float)
    values = (np.ones(count), indices, indices**2, marks)
    return tuple(np.array([one[list(some)].sum() for some in sets]) for one in values)


def test_too_few_samples_for_a_third_to_be_left_out_give_no_interval(alone):
    few, enough = (neighbourhoods(features(50, 0, 6), features(count, 1, 6), alone) for count in (23, 24))
    assert few.recall.error is few.recall.low is None
    assert enough.recall.error is not None
    assert few.precision.error is not None


@pytest.mark.usefixtures("_small_tiles")
def test_the_closest_row_is_the_first_of_those_as_near(alone):
    """Whole numbers, with many ties, over many tiles."""
    random = np.random.default_rng(0)
    a, b = (random.integers(0, 3, size=(count, 3)).astype(np.float32) for count in (40, 60))
    expected = squares(a, b)
    distances, indices = closest(Pairs(a, b, alone, False), alone)
    assert (distances == expected.min(1)).all()
    assert indices.tolist() == [row.tolist().index(min(row)) for row in expected]
    last = [59 - row.tolist()[::-1].index(min(row)) for row in expected]
    assert indices.tolist() != last
    distances, indices = closest(Pairs(b, b, alone, False), alone)
    assert not distances.any()
    assert indices.tolist() == squares(b, b).argmin(1).tolist()
