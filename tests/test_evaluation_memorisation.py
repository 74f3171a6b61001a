"""Copies of training images, against the definition of AuthPct written out pair by pair."""

import numpy as np
import pytest
from conftest import features

from fiducial.evaluation.metrics import neighbours
from fiducial.evaluation.metrics.memorisation import SHOWN, memorisation


@pytest.fixture
def _small_tiles(monkeypatch):
    monkeypatch.setattr(neighbours, "TILE", 7)
    monkeypatch.setattr(neighbours, "ADM_BLOCK", 40)


def ratios_oracle(samples: np.ndarray, training: np.ndarray) -> list[tuple[float, float]]:
    """For each sample, its distance to the nearest training image, and that one's to its nearest fellow (arXiv 2102.08921)."""
    samples, training, found = samples.astype(np.float64), training.astype(np.float64), []
    for sample in samples:
        distances = [float(np.linalg.norm(sample - image)) for image in training]
        nearest = distances.index(min(distances))
        fellows = [float(np.linalg.norm(training[nearest] - image)) for i, image in enumerate(training) if i != nearest]
        found.append((distances[nearest], min(fellows)))
    return found


@pytest.mark.usefixtures("_small_tiles")
def test_authentic_samples_are_those_of_the_definition(alone):
    """To compare with the fellows of any other training image, for one, would show."""
    samples, training = features(71, 3, 6), features(60, 0, 6)
    expected = ratios_oracle(samples, training)
    found = memorisation(samples, training, alone)
    assert found.authentic.value == np.mean([own > fellow for own, fellow in expected])
    assert 0.2 < found.authentic.value < 0.9
    assert found.authentic.value != np.mean([own > other for (own, _), (_, other) in zip(expected, expected[::-1], strict=True)])
    ratios = [own / fellow for own, fellow in expected]
    order = sorted(range(71), key=ratios.__getitem__)[:SHOWN]
    assert [pair.sample for pair in found.pairs] == order
    assert [pair.ratio for pair in found.pairs] == pytest.approx([ratios[i] for i in order], rel=1e-4)
    for pair in found.pairs:
        distance = np.linalg.norm(samples[pair.sample] - training[pair.training])
        assert pair.distance == pytest.approx(distance, rel=1e-4)
        assert distance == pytest.approx(expected[pair.sample][0], rel=1e-6)
    assert (found.n, found.training_n) == (71, 60)


@pytest.mark.usefixtures("_small_tiles")
def test_copies_of_training_images_are_not_authentic(alone):
    training = features(60, 0, 6)
    for samples in (training.copy(), training, training[::-1] + np.float32(1e-3)):
        assert memorisation(samples, training, alone).authentic.value == 0
    found = memorisation(training[40:45].copy(), training, alone)
    assert sorted((pair.sample, pair.training) for pair in found.pairs) == [(i, 40 + i) for i in range(5)]
    assert memorisation(training + 100, training, alone).authentic.value == 1


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("dimension", [6, 300])
def test_a_copy_of_an_image_that_is_there_twice_is_not_authentic(dimension, alone):
    """Both distances are 0; as rounding has them, either may be the greater. Whatever is first of equals is shown."""
    once = features(30, 0, dimension) * np.float32(1.1)
    found = memorisation(once.copy(), np.concatenate([once, once]), alone)
    assert found.authentic.value == 0
    assert all(pair.training in (pair.sample, pair.sample + 30) for pair in found.pairs)


def test_ties_are_not_authentic(alone):
    """Whole numbers on a line: as far from the nearest image as that is from its fellow."""
    training = np.array([[0], [2], [10], [13]], dtype=np.float32)
    samples = np.array([[-2], [-3], [4], [5], [7], [6.5]], dtype=np.float32)
    found = memorisation(samples, training, alone)
    authentic = [own > fellow for own, fellow in ratios_oracle(samples, training)]
    assert authentic == [False, True, False, True, False, True]
    assert found.authentic.value == 0.5
    assert found.pairs[0].ratio == 1


def test_one_training_image_is_too_few(alone):
    with pytest.raises(ValueError, match="another one"):
        memorisation(features(3, 0), features(1, 1), alone)
