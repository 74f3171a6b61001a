"""All numbers that features give, with their intervals: which metric is computed from what, and in which order."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from scipy.spatial.distance import cdist

from fiducial import Group, UserError
from fiducial.evaluation.checks import Settings, looks_sorted
from fiducial.evaluation.extraction import Features
from fiducial.evaluation.features import Extractor
from fiducial.evaluation.intervals import ENOUGH, Estimate, estimate, without_interval
from fiducial.evaluation.metrics import (
    Curve,
    frechet_curve,
    frechet_distance,
    frechet_error,
    inception_score,
    kernel_distance,
    vendi_score,
)
from fiducial.evaluation.neighbours import neighbourhoods
from fiducial.evaluation.numbering import UNPAIRED, Pairing, mispaired, pair, within_one_folder
from fiducial.evaluation.protocols import (
    ADM_IS_BLOCK,
    FIDELITY_IS_SPLITS,
    FIDELITY_SEED,
    KID_SUBSETS,
    LABELS,
    SHARES,
    SHUFFLE_SEED,
)
from fiducial.evaluation.references import Reference
from fiducial.evaluation.statistics import FeatureStatistics

MOST = 0.5  # of all classes; where more lie nearer to another, they are paired wrongly
LOGITS_CHUNK = 1000  # images whose logits exist at once


@dataclass(frozen=True)
class ClassScore:
    """The Fréchet distance within one class."""

    label: int
    distance: Estimate
    n: int
    reference_n: int


@dataclass(frozen=True)
class Scores:
    """`values` by metric, in the order of `LABELS`; `curve` is FID against N, `classes` FID by class, where they can be had.

    `pairing` says which classes are compared; `astray` counts those whose samples are, in the mean, nearer to another class.
    """

    values: dict[str, Estimate]
    sorted_by_class: bool = False
    curve: Curve | None = None
    classes: list[ClassScore] = field(default_factory=list)
    pairing: Pairing = UNPAIRED
    astray: int = 0


class Scorer:
    """Computes `metrics` of samples, on all ranks together. Every rank has the same in the end.

    `own` are their features, `labels` (N,) their classes and `names` what those are called, where this is known; `reference` has
    what the metrics need.
    """

    def __init__(
        self,
        metrics: tuple[str, ...],
        own: Features,
        labels: np.ndarray | None,
        reference: Reference | None,
        extractor: Extractor,
        settings: Settings,
        group: Group,
        names: Sequence[str] = (),
    ):
        self.metrics, self.own, self.labels, self.reference, self.names = metrics, own, labels, reference, names
        self.extractor, self.settings, self.group = extractor, settings, group

    def scores(self) -> Scores:
        """All of them."""
        values: dict[str, Estimate] = {}
        own, reference, group = self.own, self.reference, self.group
        sorted_by_class, curve, pairing, (classes, astray) = False, None, self._pairing(), ([], 0)
        if {"fid", "fid-infinity"} & set(self.metrics):
            values["fid"] = self._distance(own.statistics, own.rows, reference.mu, reference.sigma)
            classes, astray = self._classes(pairing)
            if astray > MOST * len(classes):
                pairing, classes, astray = mispaired(astray, len(classes), self.reference.path.name), [], 0
        if "fid-infinity" in self.metrics:
            curve = frechet_curve(own.rows, reference.mu, reference.sigma, values["fid"], group)
            values["fid-infinity"] = curve.at_infinity
        if "sfid" in self.metrics:
            values["sfid"] = self._distance(own.spatial, own.spatial_rows, reference.mu_s, reference.sigma_s)
        if "is" in self.metrics:
            values["is"], sorted_by_class = self._inception_score()
            if self.settings.protocol == "adm":
                order = np.random.default_rng(SHUFFLE_SEED).permutation(len(own.rows))
                values["is-shuffled"] = inception_score(self._blocks(order), group)
        if set(SHARES) & set(self.metrics):
            values |= vars(neighbourhoods(reference.features, own.rows, group, self.settings.fp16_compat))
        if "kid" in self.metrics:
            size = self.settings.kid_subset_size
            values["kid"] = kernel_distance(own.rows, reference.features, group, KID_SUBSETS, size, FIDELITY_SEED)
        if "vendi" in self.metrics:
            values["vendi"] = self._vendi_score()
        if len(own.rows) < ENOUGH:
            values = {name: found if name == "precision" else without_interval(found) for name, found in values.items()}
        wanted = {*self.metrics, *(["is-shuffled"] if "is" in self.metrics else [])}
        values = {name: values[name] for name in LABELS if name in wanted and values.get(name) is not None}
        return Scores(values, sorted_by_class, curve, classes, pairing, astray)

    def _vendi_score(self) -> Estimate:
        """Raises UserError if it is not defined."""
        score = vendi_score(self.own.rows, self.group)
        if score is None:
            raise UserError("--metrics vendi: all features of an image are 0, so that it has no direction to be compared by")
        return score

    def _distance(self, statistics: FeatureStatistics, rows: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> Estimate:
        """One that costs too much for every rank to compute it."""
        found = self.group.once(lambda: float(frechet_distance(statistics.mean, statistics.covariance, mu, sigma)))
        return estimate(found, frechet_error(rows, statistics, mu, sigma, self.group), 0)

    def _pairing(self) -> Pairing:
        """Which class of the reference is which of the samples'; of none where no class has images enough for a distance."""
        ours, reference = self.labels, self.reference
        if not {"fid", "fid-infinity"} & set(self.metrics) or ours is None:
            return UNPAIRED
        if reference.labels is None:
            if reference.images is None and reference.provenance.no_classes:
                return Pairing({}, f"{reference.path.name} has no classes: {reference.provenance.no_classes}")
            return within_one_folder(reference.images.names if reference.images else (), reference.path.name)
        enough = (np.unique(side, return_counts=True)[1].max() > self.extractor.dimension for side in (ours, reference.labels))
        if reference.features is None or not all(enough):
            return UNPAIRED
        return pair(ours, self.names, reference.numbering, reference.path.name)

    def _classes(self, pairing: Pairing) -> tuple[list[ClassScore], int]:
        """The distance within each class of which both sides have more images than features have dimensions, and `astray`."""
        ours, theirs = self.labels, self.reference.labels
        dimension, group = self.extractor.dimension, self.group
        counts = {one: (int((ours == one).sum()), int((theirs == other).sum())) for one, other in pairing.labels.items()}
        labels = [label for label, sides in counts.items() if min(sides) > dimension]
        found, means = np.zeros((len(labels), 2)), np.zeros((2, len(labels), dimension))
        for number in range(group.rank, len(labels), group.world_size):
            label = labels[number]
            sides = self.own.rows[ours == label], self.reference.features[theirs == pairing.labels[label]]
            found[number] = _distance_of_class(*sides)
            means[:, number] = [rows.mean(0, dtype=np.float64) for rows in sides]
        found, means = group.sum(found), group.sum(means)
        nearest = cdist(*means).argmin(1) if labels else np.zeros(0)
        return [
            ClassScore(label, estimate(value, error if np.isfinite(error) else None, 0), *counts[label])
            for label, (value, error) in zip(labels, found.tolist(), strict=True)
        ], int((nearest != np.arange(len(labels))).sum())

    def _inception_score(self) -> tuple[Estimate, bool]:
        """IS in the protocol's order of images, and whether the file looks sorted by class."""
        count = len(self.own.rows)
        if self.settings.protocol == "torch-fidelity":
            order = np.random.RandomState(FIDELITY_SEED).permutation(count)
            cuts = [split * count // FIDELITY_IS_SPLITS for split in range(1, FIDELITY_IS_SPLITS)]
            return inception_score([partial(self._logits, block) for block in np.split(order, cuts)], self.group), False
        score = inception_score(self._blocks(np.arange(count)), self.group)
        predicted = np.concatenate([logits.argmax(1) for logits in self._logits(np.arange(count))])
        return score, looks_sorted(predicted)

    def _blocks(self, order: np.ndarray) -> list[Callable[[], Iterator[np.ndarray]]]:
        """ADM's blocks of images in this order, each as what gives its logits."""
        return [partial(self._logits, block) for block in np.split(order, range(ADM_IS_BLOCK, len(order), ADM_IS_BLOCK))]

    def _logits(self, block: np.ndarray) -> Iterator[np.ndarray]:
        """Of these images, by ascending index."""
        for chunk in np.split(np.sort(block), range(LOGITS_CHUNK, len(block), LOGITS_CHUNK)):
            self.group.check()
            rows = torch.from_numpy(self.own.rows[chunk]).to(self.extractor.device)
            yield self.extractor.logits(rows).cpu().numpy()


def _distance_of_class(rows: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """The Fréchet distance between features (N, D) and (M, D), and its standard error, NaN where there is none."""
    moments = []
    for features in (rows, others):
        statistics = FeatureStatistics.empty(features.shape[1])
        statistics.update(features)
        statistics.flush()
        moments.append(statistics)
    own, theirs = moments
    error = frechet_error(rows, own, theirs.mean, theirs.covariance)
    return frechet_distance(own.mean, own.covariance, theirs.mean, theirs.covariance), np.nan if error is None else error
