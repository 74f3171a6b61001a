"""FID and, over spatial features, sFID."""

from typing import TYPE_CHECKING

import numpy as np

from fiducial import Group
from fiducial.evaluation.metrics.gaussians import frechet_distance, frechet_error
from fiducial.evaluation.metrics.inputs import Inputs
from fiducial.evaluation.metrics.intervals import Estimate, estimate
from fiducial.evaluation.metrics.statistics import FeatureStatistics

if TYPE_CHECKING:
    from fiducial.evaluation.features.extraction import Rows


def fid(inputs: Inputs) -> Estimate:
    """The Fréchet distance of all features, to the reference's `mu` and `sigma`."""
    own, reference = inputs.own, inputs.reference
    return _estimated(own.statistics, own.rows, reference.mu, reference.sigma, inputs.group)


def sfid(inputs: Inputs) -> Estimate:
    """The same of the spatial features."""
    own, reference = inputs.own, inputs.reference
    return _estimated(own.spatial, own.spatial_rows, reference.mu_s, reference.sigma_s, inputs.group)


def _estimated(own: FeatureStatistics, rows: "np.ndarray | Rows", mu: np.ndarray, sigma: np.ndarray, group: Group) -> Estimate:
    """One that costs too much for every rank to compute it."""
    found = group.once(lambda: float(frechet_distance(own.mean, own.covariance, mu, sigma, group.device)))
    return estimate(found, frechet_error(rows, own, mu, sigma, group), 0)
