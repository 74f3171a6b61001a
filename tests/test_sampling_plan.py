import numpy as np
import pytest

from fiducial.sampling import plan


@pytest.mark.parametrize("spec", ["random", "balanced", "null", "7,7,3-5"])
def test_a_label_depends_on_its_index_alone(spec):
    whole = plan.labels(spec, 10, seed=3, start=0, stop=200)
    for start, stop in [(0, 1), (1, 2), (5, 42), (17, 18), (99, 200)]:
        assert (plan.labels(spec, 10, 3, start, stop) == whole[start:stop]).all()
    assert whole.dtype == np.int64


def test_balanced_is_exact_and_not_sorted():
    labels = plan.labels("balanced", 10, seed=0, start=0, stop=1000)
    assert (np.bincount(labels) == 100).all()
    assert (np.bincount(labels[:995], minlength=10) >= 99).all()
    assert all(len(set(run)) == 10 for run in labels.reshape(-1, 10))
    assert len({tuple(run) for run in labels.reshape(-1, 10)}) > 95  # each run of classes in an order of its own


def test_random_is_uniform_and_follows_the_seed():
    labels = plan.labels("random", 1000, seed=0, start=0, stop=200_000)
    counts = np.bincount(labels, minlength=1000)
    chi_squared = ((counts - 200) ** 2 / 200).sum()
    assert 850 < chi_squared < 1150  # 999 degrees of freedom, standard deviation 45
    assert (labels != plan.labels("random", 1000, 1, 0, 200_000)).mean() > 0.99
    assert (plan.labels("random", 1000, 2**64 - 1, 0, 99) != plan.labels("random", 1000, 2**64 - 2, 0, 99)).any()


def test_null_is_the_class_count_and_a_list_is_cycled():
    assert (plan.labels("null", 17, 0, 0, 5) == 17).all()
    assert plan.labels("7,7,3-5", 10, 0, 0, 7).tolist() == [7, 7, 3, 4, 5, 7, 7]


@pytest.mark.parametrize("spec", ["", "10", "3-", "-3", "5-3", "a", "1,,2", "1.5", "Random", "3-10"])
def test_a_bad_list_is_refused_in_a_sentence(spec):
    with pytest.raises(ValueError, match=r"^'") as error:
        plan.parse_labels(spec, 10)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("count", "size", "world"), [(1, 4, 1), (10, 4, 3), (1000, 7, 2), (33, 32, 5), (64, 32, 2)])
def test_every_missing_index_has_one_owner_and_shares_are_even(count, size, world):
    done = np.random.default_rng(count).random(count) < 0.7
    pending = plan.pending_blocks(done, size)
    shares = [plan.share(pending, rank, world) for rank in range(world)]
    covered = {block * size + offset for block in pending for offset in range(size)}
    assert set(np.flatnonzero(~done)) <= covered
    assert all((~done[block * size : (block + 1) * size]).any() for block in pending)
    assert sorted(np.concatenate(shares)) == sorted(pending)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("count", "size", "ranks", "least", "part"),
    [
        (50_000, 256, 64, 196, 0.763),
        (50_000, 32, 8, 32, 0.9965),
        (1000, 50, 2, 50, 1.0),
        (100, 64, 8, 13, 0.195),
        (33, 32, 1, 17, 0.516),
    ],
)
def test_the_least_block_needs_no_more_rounds(count, size, ranks, least, part):
    assert plan.least_block(count, size, ranks) == least
    assert plan.used(count, size, ranks) == pytest.approx(part, abs=5e-4)
    assert plan.rounds(count, least, ranks) == plan.rounds(count, size, ranks)
    blocks = plan.pending_blocks(np.zeros(count, dtype=bool), size)
    assert max(len(plan.share(blocks, rank, ranks)) for rank in range(ranks)) == plan.rounds(count, size, ranks)
    assert plan.rounds(count, least - 1, ranks) > plan.rounds(count, size, ranks)
    assert plan.used(count, least, ranks) >= plan.used(count, size, ranks)
