"""The Inception score, over blocks of images in the order that a protocol has them in."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch

from fiducial import Group
from fiducial.evaluation.metrics import ADM_IS_BLOCK, FIDELITY_SEED, SHUFFLE_SEED
from fiducial.evaluation.metrics.inputs import Inputs
from fiducial.evaluation.metrics.intervals import Measured, measured, moves_of

LOGITS_CHUNK = 1000  # images whose logits exist at once


def inception(inputs: Inputs) -> Measured:
    """IS as the protocol has it: splits of a seeded permutation, or blocks in the order of the file."""
    count, splits = len(inputs.own.rows), inputs.settings.rules.is_splits
    if splits is None:
        return _score(inputs, _blocks_of(np.arange(count)))
    order = np.random.RandomState(FIDELITY_SEED).permutation(count)
    cuts = [split * count // splits for split in range(1, splits)]
    return _score(inputs, np.split(order, cuts))


def shuffled(inputs: Inputs) -> Measured:
    """IS over blocks after a seeded shuffle, which a file sorted by class does not lower."""
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(inputs.own.rows))
    return _score(inputs, _blocks_of(order))


def caveat(inputs: Inputs, labels: np.ndarray | None) -> str | None:
    """A sentence on a file that is sorted by class, as its labels (N,), or what its images are taken for, tell."""
    if not (sorted_by_class(inputs) or labels_are_sorted(labels)):
        return None
    if len(inputs.own.rows) <= ADM_IS_BLOCK:
        return f"The file looks sorted by class; up to {ADM_IS_BLOCK:,} images are one block, so the IS does not suffer here."
    return (
        "The file looks sorted by class, so that blocks of consecutive images hold few classes and the IS is too low; "
        "the shuffled IS is not."
    )


def labels_are_sorted(labels: np.ndarray | None) -> bool:
    """Whether labels only rise, from one class at least to another."""
    return labels is not None and len(labels) > 1 and bool((np.diff(labels) >= 0).all()) and labels[0] != labels[-1]


def sorted_by_class(inputs: Inputs) -> bool:
    """Whether the file looks sorted by class, where IS is over blocks in its order."""
    if inputs.settings.rules.is_splits is not None:
        return False
    return looks_sorted(np.concatenate([logits.argmax(1) for logits in _logits(inputs, np.arange(len(inputs.own.rows)))]))


def looks_sorted(predicted: np.ndarray) -> bool:
    """Whether neighbours in the file are predicted to be of one class far more often than chance has it."""
    pairs = len(predicted) - 1
    if pairs < 1:
        return False
    shares = np.unique(predicted, return_counts=True)[1] / len(predicted)
    chance, seen = float((shares**2).sum()), float((np.diff(predicted) == 0).mean())
    beyond_noise = (seen - chance) * pairs**0.5 > 6 * (chance * (1 - chance)) ** 0.5
    return chance < 1 and beyond_noise and (seen - chance) / (1 - chance) > 0.2


def _blocks_of(order: np.ndarray) -> list[np.ndarray]:
    """ADM's blocks of images in this order."""
    return np.split(order, range(ADM_IS_BLOCK, len(order), ADM_IS_BLOCK))


def _score(inputs: Inputs, blocks: list[np.ndarray]) -> Measured:
    """The score over blocks of images, by their indices."""
    places = [np.sort(block) for block in blocks]
    return inception_score([partial(_logits, inputs, block) for block in places], inputs.group, places, inputs.strata)


def _logits(inputs: Inputs, block: np.ndarray) -> Iterator[np.ndarray]:
    """Of these images, in this order."""
    extractor = inputs.extractor
    for chunk in np.split(block, range(LOGITS_CHUNK, len(block), LOGITS_CHUNK)):
        inputs.group.check()
        rows = torch.from_numpy(inputs.own.rows[chunk]).to(extractor.device)
        yield extractor.logits(rows).cpu().numpy()


def inception_score(
    blocks: list[Callable[[], Iterator[np.ndarray]]],
    group: Group,
    places: list[np.ndarray] | None = None,
    strata: np.ndarray | None = None,
) -> Measured:
    """Mean over blocks of exp(mean KL) (arXiv 1606.03498), with its standard deviation over several blocks.

    The error is by the delta method: a sample moves the score of its block by that score times its own KL from the block's
    average. The ranks share the blocks out.

    Args:
        blocks: each gives the logits (B, classes) of its images, in any cut, whenever it is called.
        places: the images of each block among all, (B,); one block after the other where it is left out.
        strata: (N,), as `intervals.moves_of` takes them.
    """
    scores, counts, moves = np.zeros(len(blocks)), np.zeros(len(blocks)), {}
    for number in range(group.rank, len(blocks), group.world_size):
        divergence, average = mean_divergence(blocks[number]())
        scores[number] = np.exp(divergence)
        moves[number] = moves_of(scores[number] * np.concatenate(list(divergences_from(average, blocks[number]()))))
        counts[number] = len(moves[number])
    scores, counts = group.sum(scores), group.sum(counts).astype(np.int64)
    places = places or np.split(np.arange(counts.sum()), counts.cumsum()[:-1])
    of_all = np.zeros(counts.sum())
    for number, found in moves.items():
        of_all[places[number]] = found / len(blocks)
    of_all = group.sum(of_all)
    if strata is not None:  # about each class's mean, where they are about their block's
        of_all = moves_of(len(of_all) * of_all, strata)
    return measured(float(scores.mean()), of_all, 1, spread=float(scores.std()) if len(scores) > 1 else None)


def mean_divergence(chunks: Iterable[np.ndarray]) -> tuple[float, np.ndarray]:
    """Mean KL divergence, in nats, of softmax predictions from their own average, and that average (classes,).

    Args:
        chunks: logits (B, classes) of the images, in any cut.
    """
    count, negentropy, total = 0, 0.0, 0.0
    for logits in chunks:
        p, log_p = _softmax(logits)
        count += len(p)
        negentropy += float((p * log_p).sum())
        total = total + p.sum(axis=0)
    average = total / count
    present = average[average > 0]
    return negentropy / count - float((present * np.log(present)).sum()), average


def divergences_from(average: np.ndarray, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The KL divergence of each image's softmax prediction from `average` (classes,), (B,) for each of `chunks`."""
    log_average = np.log(np.where(average > 0, average, 1))
    for logits in chunks:
        p, log_p = _softmax(logits)
        yield (p * (log_p - log_average)).sum(axis=1)


def _softmax(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and their logarithms, float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    p = np.exp(shifted)
    norm = p.sum(axis=1, keepdims=True)
    return p / norm, shifted - np.log(norm)
