"""Memorised training images: how many samples are copies, and which look most like one."""

from dataclasses import replace

import numpy as np

from fiducial import Group
from fiducial.evaluation.metrics.inputs import Inputs
from fiducial.evaluation.metrics.intervals import Measured, share_of
from fiducial.evaluation.metrics.neighbours import Chosen, Pairs, closest, nearest
from fiducial.evaluation.results.parts import Memorisation, Pair

SHOWN = 10  # pairs


def authentic(inputs: Inputs) -> Measured:
    """AuthPct, in percent as its name says."""
    return in_percent(inputs.once(_found)[1])


def in_percent(found: Measured) -> Measured:
    """A share that is measured, times 100."""
    return Measured(*(100 * value for value in (found.value, found.error, found.low, found.high)), moves=100 * found.moves)


def of_samples(inputs: Inputs) -> Memorisation:
    """How close the samples come to the training images, without pictures."""
    return inputs.once(_found)[0]


def _found(inputs: Inputs) -> tuple[Memorisation, Measured]:
    """The same, with the share of authentic samples as it was measured."""
    theirs = inputs.training
    found, authentic = memorised(inputs.own.rows, theirs.rows, inputs.group, theirs.first_of_each(), inputs.strata)
    return replace(found, training_sha256=theirs.pixels_sha256), authentic


def memorisation(samples: np.ndarray, training: np.ndarray, group: Group, different: np.ndarray | None = None) -> Memorisation:
    """`memorised` samples, independent of each other."""
    return memorised(samples, training, group, different)[0]


def memorised(
    samples: np.ndarray,
    training: np.ndarray,
    group: Group,
    different: np.ndarray | None = None,
    strata: np.ndarray | None = None,
) -> tuple[Memorisation, Measured]:
    """AuthPct (arXiv 2102.08921) of features (N, D) against those of the training images (M, D), float32.

    A sample is authentic if it is farther from its nearest training image than that one is from its nearest fellow.

    Args:
        different: the training images that count, by index, where some are there several times: the distance to a fellow
            that is the same image would be 0, and every sample authentic that is no exact copy.
        strata: (N,), as `intervals.moves_of` takes them.

    Raises:
        ValueError: if there are not at least two different training images.
    """
    kept = Chosen(training, np.arange(len(training)) if different is None else different)
    if len(kept) < 2:
        raise ValueError("a training image needs another one to be compared with")
    distances, indices = closest(Pairs(samples, kept, group, False), group)
    fellows = nearest(Pairs(kept, kept, group, False), 2, group)[:, 1].numpy()  # the nearest is the image itself
    theirs = fellows[indices]
    ratios = np.sqrt(distances / np.maximum(theirs, np.finfo(np.float32).tiny))
    worst = np.argsort(ratios, kind="stable")[:SHOWN].tolist()
    pairs = tuple(Pair(i, int(kept.indices[indices[i]]), float(np.sqrt(distances[i])), float(ratios[i])) for i in worst)
    authentic = share_of(distances > theirs, strata)
    return Memorisation(authentic.plain, len(samples), len(training), pairs), authentic
