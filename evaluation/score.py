"""All numbers that features give, with their intervals, and FID by class."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.distance import cdist

from fiducial.evaluation.data.numbering import UNPAIRED, Pairing, mispaired, pair, within_one_folder
from fiducial.evaluation.metrics import METRICS, Metric, Need, function_of
from fiducial.evaluation.metrics.fdr import distances
from fiducial.evaluation.metrics.frechet import fid
from fiducial.evaluation.metrics.gaussians import frechet_distance, frechet_error
from fiducial.evaluation.metrics.inputs import Inputs
from fiducial.evaluation.metrics.intervals import ENOUGH, Estimate, Measured, estimate, without_interval
from fiducial.evaluation.metrics.memorisation import of_samples
from fiducial.evaluation.metrics.statistics import FeatureStatistics
from fiducial.evaluation.results.parts import ClassScore, Curve, Memorisation

MOST = 0.5  # of all classes; where more lie nearer to another, they are paired wrongly


@dataclass(frozen=True)
class Scores:
    """`values` by metric, in the order of `METRICS`; `curve` is FID against N, `classes` FID by class, where they can be had.

    `panel` are the distances that FDr6 is the mean of, by extractor. `pairing` says which classes are compared; `astray` counts
    those whose samples are, in the mean, nearer to another class. `caveats` are sentences that a reader has to know of single
    metrics. `moves` are those of the values that have an interval.
    """

    values: dict[str, Estimate]
    caveats: list[str] = field(default_factory=list)
    curve: Curve | None = None
    classes: list[ClassScore] = field(default_factory=list)
    pairing: Pairing = UNPAIRED
    astray: int = 0
    memorised: Memorisation | None = None
    panel: dict[str, Measured] = field(default_factory=dict)
    moves: dict[str, np.ndarray] = field(default_factory=dict)


class Scorer:
    """Computes `metrics` of samples, on all ranks together. Every rank has the same in the end.

    `labels` (N,) are the samples' classes and `names` what those are called, where this is known.
    """

    def __init__(self, metrics: tuple[str, ...], inputs: Inputs, labels: np.ndarray | None, names: Sequence[str] = ()):
        self.metrics, self.inputs, self.labels, self.names = metrics, inputs, labels, names
        self.own, self.reference, self.extractor, self.group = inputs.own, inputs.reference, inputs.extractor, inputs.group

    def scores(self) -> Scores:
        """All of them; AuthPct too, where there are training images."""
        inputs, pairing, (classes, astray) = self.inputs, self._pairing(), ([], 0)
        if self._has_distance:
            inputs.once(fid)  # before the classes, whatever is asked for
            classes, astray = self._classes(pairing)
            if astray > MOST * len(classes):
                pairing, classes, astray = mispaired(astray, len(classes), self.reference.path.name), [], 0
        values = {metric.name: metric.of(inputs) for metric in METRICS.values() if self._is_wanted(metric)}
        if len(self.own.rows) < ENOUGH:
            values = {name: found if METRICS[name].counted else without_interval(found) for name, found in values.items()}
        values = {name: found for name, found in values.items() if found is not None}
        moves = {name: one.moves for name, one in values.items() if isinstance(one, Measured) and one.moves is not None}
        values = {name: one.plain if isinstance(one, Measured) else one for name, one in values.items()}
        rows = [METRICS[name] for name in values]
        caveats = [function_of(row.caveat)(inputs, self.labels) for row in rows if row.caveat]
        return Scores(
            values,
            [said for said in caveats if said],
            next((inputs.once(function_of(row.curve)) for row in rows if row.curve), None),
            classes,
            pairing,
            astray,
            inputs.once(of_samples) if inputs.training else None,
            inputs.once(distances) if inputs.panel else {},
            moves,
        )

    def _is_wanted(self, metric: Metric) -> bool:
        """Whether it was asked for, or comes with what was, or with training images."""
        if metric.follows:
            return metric.follows in self.metrics and metric.name in self.inputs.settings.rules.own
        return metric.name in self.metrics or (metric.needs is Need.TRAINING and self.inputs.training is not None)

    @property
    def _has_distance(self) -> bool:
        return any(METRICS[name].needs is Need.MOMENTS for name in self.metrics)

    def _pairing(self) -> Pairing:
        """Which class of the reference is which of the samples'; of none where no class has images enough for a distance."""
        ours, reference = self.labels, self.reference
        if not self._has_distance or ours is None:
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
            group.check()
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
