"""Intervals of balanced labels, differences of runs that belong together, and spreads of trainings: against closed forms."""

import json
from dataclasses import replace

import numpy as np
import pytest
from made_results import IDENTITY, VALUES, Page, made

from fiducial import UserError
from fiducial.evaluation.metrics import intervals
from fiducial.evaluation.metrics.covering import coverage_of, random_marks
from fiducial.evaluation.metrics.intervals import dealt, groups_of, length, moves_of, share_of, strata_of
from fiducial.evaluation.report import comparison_page, comparison_table, write
from fiducial.evaluation.results.compare import compare
from fiducial.evaluation.results.influences import error_of_pair
from fiducial.evaluation.results.reading import find_result, read_result

NOISE = {"labels": "balanced", "num_classes": 10, "noise": "philox-v1"}


def test_what_lies_between_balanced_classes_is_no_chance():
    """The closed form of stratified sampling: the sum over classes of (n / N)^2 s^2 / n. Of independent samples it is more."""
    random = np.random.default_rng(0)
    labels = np.repeat([3, 5, 9], [40, 40, 41])
    values = random.normal(size=121) * np.array([1.0, 2.0, 3.0])[np.searchsorted([3, 5, 9], labels)] + 10 * labels
    expected = sum((n / 121) ** 2 * values[labels == c].var(ddof=1) / n for c, n in ((3, 40), (5, 40), (9, 41))) ** 0.5
    assert length(moves_of(values, strata_of(labels))) == pytest.approx(expected, rel=1e-12)
    assert length(moves_of(values)) == pytest.approx(values.std(ddof=1) / 121**0.5, rel=1e-12)
    assert length(moves_of(values)) > 5 * expected
    assert length(moves_of(np.full(9, 0.1))) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("labels", "strata"),
    [
        (None, None),
        ([7, 7, 7, 7], None),
        ([0, 1, 1, 1, 0], [0, 1, 1, 1, 0]),
        ([0, 1, 1, 1], None),
        ([4, 1, 2, 3], None),
        ([4, 1, 4, 1, 2, 3], [1, 0, 1, 0, 2, 2]),
        ([4, 1, 4, 1, 2], [1, 0, 1, 0, 0]),
    ],
)
def test_labels_are_balanced_if_each_has_as_many_samples_or_one_more(labels, strata):
    """Classes of a single sample, of which nothing is known, are taken together, or with another."""
    found = strata_of(None if labels is None else np.array(labels))
    if strata is None:
        assert found is None
    else:
        pairs = {(a, b) for a, b in zip(found.tolist(), strata, strict=True)}
        assert len(pairs) == len(set(strata)) == found.max() + 1


def test_classes_are_dealt_evenly():
    labels = np.random.default_rng(0).permutation(np.arange(240) % 5)
    for parts in (
        dealt(np.random.default_rng(1).permutation(240), 3, labels),
        [np.flatnonzero(groups_of(240, labels) == group) for group in range(intervals.GROUPS)],
    ):
        counts = np.array([np.bincount(labels[part], minlength=5) for part in parts])
        assert (counts == 48 // len(parts)).all()
        assert sorted(np.concatenate(parts)) == list(range(240))


def test_a_share_of_balanced_labels_weighs_as_many_samples_as_vary_as_little():
    labels = np.arange(400) % 2
    held = np.where(labels == 0, np.arange(400) % 20 > 0, np.arange(400) % 20 == 1)
    apart, within = share_of(held), share_of(held, labels)
    assert apart.value == within.value == 0.5
    shares = [held[labels == label].mean() for label in (0, 1)]
    expected = sum(p * (1 - p) / 4 / 199 for p in shares) ** 0.5
    assert length(within.moves) == pytest.approx(expected, rel=1e-12)
    assert within.error == pytest.approx(expected, rel=0.02)
    assert apart.error == pytest.approx(0.025, rel=0.01)


def test_the_error_of_coverage_is_that_of_occupied_bins():
    """Whose variance is known: each sample is in one bin, and each bin is three balls. Of runs that have four of five samples in
    common, the error is that of their differences."""
    bins, count, odds = 200, 300, np.repeat([0.5, 1.5], 100) / 200
    empty = (1 - odds) ** count
    both = (1 - odds[:, None] - odds) ** count
    np.fill_diagonal(both, empty)
    truth = (both - np.outer(empty, empty)).sum() / bins**2
    variances, errors_of_pairs, gaps = [], [], []
    marks, indices = random_marks(count), np.arange(count, dtype=float)

    def covered(places: np.ndarray):
        near = np.repeat(places[None] == np.arange(bins)[:, None], 3, axis=0).astype(float)
        return coverage_of(near.sum(1), near @ indices, near @ indices**2, near @ marks, count)

    for seed in range(200):
        random = np.random.default_rng(seed)
        places = random.choice(bins, count, p=odds)
        found = covered(places)
        again = covered(np.where(random.random(count) < 0.2, random.choice(bins, count, p=odds), places))
        variances.append(found.error**2)
        errors_of_pairs.append(error_of_pair("coverage", found.moves, again.moves, count))
        gaps.append(again.value - found.value)
    assert np.mean(variances) == pytest.approx(truth, rel=0.06)
    assert np.mean(errors_of_pairs) == pytest.approx(np.std(gaps), rel=0.1)
    assert np.std(gaps) < 0.8 * (2 * truth) ** 0.5


def test_the_error_of_a_pair_is_that_of_the_differences():
    """Sample by sample, by numpy. In quadrature, as of independent runs, it would be far larger."""
    random = np.random.default_rng(0)
    one = random.normal(size=500)
    other = one + 0.1 * random.normal(size=500)
    found = error_of_pair("fid", moves_of(one), moves_of(other), 500)
    assert found == pytest.approx((one - other).std(ddof=1) / 500**0.5, rel=1e-12)
    assert np.hypot(*(length(moves_of(values)) for values in (one, other))) > 10 * found
    assert error_of_pair("fid", moves_of(one), moves_of(other)[:-1], 500) is None
    same = moves_of((one > 0).astype(float))
    assert error_of_pair("precision", same, same, 500) == pytest.approx(1 / 500)  # one more that would have changed


@pytest.fixture
def evaluate(tmp_path, capsys):
    """Writes a result of 1,000 samples with its influences, as `calc --json` does, and gives its file."""

    def evaluate(name, moves=None, values=None, **identity):
        values = values or {"fid": (3.0, None), "recall": (0.5, 0.03)}
        error = None if moves is None else length(moves)
        values = {key: (value, error if key == "fid" else known) for key, (value, known) in values.items()}
        result = made(values, IDENTITY | NOISE | identity, f"{len(list(tmp_path.glob('*.json'))):02x}")
        result = replace(result, moves={} if moves is None else {"fid": moves})
        write(result, tmp_path / f"{name}.json", None)
        capsys.readouterr()
        return tmp_path / f"{name}.json"

    return evaluate


def moves(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.01, 1000)


def compared(*paths, **how):
    return compare([read_result(path) for path in paths], **how)


def test_runs_that_share_noise_are_compared_sample_by_sample(evaluate):
    """Two seeds each, matched by their seed. Recall, of which nothing is known sample by sample, stays as of independent runs."""
    ours = [evaluate(f"a{seed}", moves(seed), global_seed=seed) for seed in (0, 1)]
    theirs = [evaluate(f"b{seed}", moves(seed) + 0.1 * moves(9), global_seed=seed, cfg_scale=2.0) for seed in (1, 0)]
    comparison = compared(*ours, *theirs)
    fid, recall = comparison.differences
    assert fid.paired
    assert fid.error == pytest.approx(2**0.5 / 2 * 0.1 * length(moves(9)), rel=1e-5)
    assert fid.apart > 5 * fid.error
    assert (recall.paired, recall.error) == (False, pytest.approx(0.03))
    assert fid.gain == f"{100 * (1 - fid.error / fid.apart):.0f} % narrower"
    assert "paired sample by sample, for both share seed, labels, noise and N" in comparison_table(comparison)
    for text in (comparison_table(comparison), comparison_page(comparison)):
        assert fid.gain in text
    written = json.loads(comparison.to_json())
    assert written["how"][0]["paired"] is True
    assert written["differences"][0]["apart"] == fid.apart


UNLIKE = [
    ({"global_seed": 1}, "they have not the same seeds"),
    ({"labels": "random"}, 'labels is "balanced" in the one and "random" in the other'),
    ({"num_classes": 9}, "num_classes is 10 in the one and 9 in the other"),
    ({"noise": "philox-v2"}, 'noise is "philox-v1" in the one and "philox-v2" in the other'),
    ({"noise": None}, "b.json does not say its noise"),
]


@pytest.mark.parametrize(("change", "why"), UNLIKE, ids=[next(iter(change)) for change, _ in UNLIKE])
def test_other_runs_are_compared_as_independent_ones_which_is_said(change, why, evaluate):
    (fid, _), (how,) = (lambda comparison: (comparison.differences, comparison.how))(
        compared(evaluate("a", moves(0), cfg_scale=2.0, **change), evaluate("b", moves(0)))
    )
    assert not fid.paired
    assert fid.error == pytest.approx(2**0.5 * length(moves(0)), rel=1e-5)
    assert how.sentence.replace("a.json", "b.json") == f"as of independent runs, for {why}"


def spoil(path):
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)


BROKEN = [
    (lambda path: path.unlink(), "cannot be read (No such file"),
    (spoil, "is not the file that a.json names"),
    (lambda path: path.write_bytes(path.read_bytes()[:-4]), "is not the file that a.json names"),
    (lambda path: path.write_bytes(b""), "is not the file that a.json names"),
]


@pytest.mark.parametrize(("change", "why"), BROKEN, ids=["gone", "changed", "cut", "empty"])
def test_without_the_file_of_influences_runs_are_independent(change, why, evaluate):
    a, b = evaluate("a", moves(0)), evaluate("b", moves(1), cfg_scale=2.0)
    assert compared(a, b).how[0].paired
    assert find_result(a.with_name("a.influences.f32")) == a  # a shell's RUN-* is the run, once
    change(a.with_name("a.influences.f32"))
    found = compared(a, b)
    assert (found.how[0].paired, found.differences[0].paired) == (False, False)
    assert f"a.influences.f32 {why}" in found.how[0].sentence
    old = evaluate("old", cfg_scale=3.0)
    assert "old.json names no file of influences" in compared(a, old).how[0].why


TRAININGS = {"x": (3.0, 3.2), "y": (4.0, 4.2), "z": (5.0, 5.4)}  # FID of two seeds of three checkpoints


def test_trainings_are_an_axis_beside_seeds(evaluate):
    """By hand: means 3.1, 4.1 and 5.2; Student's t of two degrees; draws add half of the squared error of a difference."""
    paths = [
        evaluate(f"{name}{seed}", moves(10 * place + seed), {"fid": (value, None)}, global_seed=seed, checkpoint_sha256=name)
        for place, (name, values) in enumerate(TRAININGS.items())
        for seed, value in enumerate(values)
    ]
    comparison = compared(*paths, group_by="checkpoint")
    (row,) = comparison.rows
    axes, means = row.axes["fid"], np.array([3.1, 4.1, 5.2])
    assert (row.checkpoints, row.seeds, axes.trainings) == (("x", "y", "z"), (0, 1), 3)
    assert (axes.mean, axes.seen) == pytest.approx((means.mean(), means.std(ddof=1)))
    assert (axes.low, axes.high) == pytest.approx(means.mean() + np.array([-1, 1]) * 4.302653 * means.std(ddof=1) / 3**0.5)
    drawn = [moves(seed).astype(np.float32).astype(float) for seed in (0, 1, 10, 11, 20, 21)]
    squares = [
        length(a - b) ** 2 + length(c - d) ** 2
        for a, b, c, d in ((0, 2, 1, 3), (0, 4, 1, 5), (2, 4, 3, 5))
        for a, b, c, d in [(drawn[a], drawn[b], drawn[c], drawn[d])]
    ]
    assert axes.spread == pytest.approx((means.var(ddof=1) - np.mean(squares) / 4 / 2) ** 0.5, rel=1e-6)
    assert axes.sampling_error == pytest.approx(sum(length(one) ** 2 for one in drawn) ** 0.5 / 6, rel=1e-6)
    assert axes.sampling_spread == pytest.approx(((0.02 + 0.02 + 0.08) / 3) ** 0.5)
    text = comparison_table(comparison)
    assert "all runs (3 checkpoints, 6 runs): 95 % intervals of the mean over draws" in text
    rows = Page(comparison_page(comparison)).tables["runs"]
    assert ["FID", *text.splitlines()[-1].split("  ")[-0:]][0] in {row[0] for row in rows}
    assert row.cells["fid"].low == axes.low


@pytest.mark.parametrize(("others", "quantile"), [("xyz", 4.302653), ("uvw", 2.776445)])
def test_recipes_are_told_apart_over_trainings(others, quantile, evaluate):
    """Checkpoint by checkpoint where they are the same ones, else by Welch's formula, here of as many and as far apart."""
    values = (3.0, 4.0, 6.0)
    ours = [
        evaluate(f"a{name}", None, {"fid": (value, None)}, checkpoint_sha256=name)
        for name, value in zip("xyz", values, strict=True)
    ]
    gaps = (0.4, 0.5, 0.6) if others == "xyz" else (0.5, 0.5, 0.5)
    theirs = [
        evaluate(f"b{name}", None, {"fid": (value + gap, None)}, checkpoint_sha256=name, cfg_scale=2.0)
        for name, value, gap in zip(others, values, gaps, strict=True)
    ]
    (found,) = compared(*ours, *theirs, group_by="checkpoint").differences
    expected = 0.1 / 3**0.5 if others == "xyz" else (2 * np.var(values, ddof=1) / 3) ** 0.5
    assert (found.difference, found.error) == pytest.approx((0.5, expected))
    assert (found.low, found.high) == pytest.approx((0.5 - quantile * expected, 0.5 + quantile * expected), rel=1e-5)
    assert found.verdict == ("decided" if others == "xyz" else "undecided")


def test_a_single_training_is_no_axis(evaluate):
    a, b = (evaluate(str(seed), moves(seed), VALUES, global_seed=seed, checkpoint_sha256="x") for seed in (0, 1))
    with pytest.raises(UserError, match="--group-by checkpoint: no two of these runs differ by their checkpoint"):
        compared(a, b, group_by="checkpoint")
