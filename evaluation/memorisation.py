"""Memorised training images: how many samples are copies, and which look most like one."""

from dataclasses import dataclass, field

import numpy as np

from fiducial import Group
from fiducial.evaluation.intervals import Estimate, share
from fiducial.evaluation.neighbours import Chosen, Pairs, closest, nearest

SHOWN = 10  # pairs


@dataclass(frozen=True)
class Pair:
    """A sample and the training image nearest to it; `ratio` is their distance over that image's to its nearest fellow."""

    sample: int
    training: int
    distance: float
    ratio: float


@dataclass(frozen=True)
class Memorisation:
    """`authentic` is the share of samples that are no nearer to a training image than another training image is.

    `pairs` are those with the smallest ratios, `pictures` their images (H, W, 3) uint8, the sample's and the training image's;
    `training_sha256` is the hash of all training images' pixels.
    """

    authentic: Estimate
    n: int
    training_n: int
    pairs: tuple[Pair, ...]
    pictures: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    training_sha256: str | None = None


def memorisation(samples: np.ndarray, training: np.ndarray, group: Group, different: np.ndarray | None = None) -> Memorisation:
    """AuthPct (arXiv 2102.08921) of features (N, D) against those of the training images (M, D), float32.

    A sample is authentic if it is farther from its nearest training image than that one is from its nearest fellow.

    Args:
        different: the training images that count, by index, where some are there several times: the distance to a fellow
            that is the same image would be 0, and every sample authentic that is no exact copy.

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
    return Memorisation(share(int((distances > theirs).sum()), len(samples)), len(samples), len(training), pairs)
