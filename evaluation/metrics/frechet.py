"""FID and, over spatial features, sFID."""

from typing import TYPE_CHECKING

import numpy as np

from fiducial.evaluation.metrics.gaussians import frechet_distance, frechet_moves
from fiducial.evaluation.metrics.inputs import Inputs
from fiducial.evaluation.metrics.intervals import Measured, measured
from fiducial.evaluation.metrics.statistics import FeatureStatistics

if TYPE_CHECKING:
    from fiducial.evaluation.features.extraction import Rows


def fid(inputs: Inputs) -> Measured:
    """The Fréchet distance of all features, to the reference's `mu` and `sigma`."""
    return _measured(inputs, inputs.own.statistics, inputs.own.rows, inputs.reference.mu, inputs.reference.sigma)


def sfid(inputs: Inputs) -> Measured:
    """The same of the spatial features."""
    return _measured(inputs, inputs.own.spatial, inputs.own.spatial_rows, inputs.reference.mu_s, inputs.reference.sigma_s)


def _measured(inputs: Inputs, own: FeatureStatistics, rows: "np.ndarray | Rows", mu: np.ndarray, sigma: np.ndarray) -> Measured:
    """One that costs too much for every rank to compute it."""
    group = inputs.group
    found = group.once(lambda: float(frechet_distance(own.mean, own.covariance, mu, sigma, group.device)))
    return measured(found, frechet_moves(rows, own, mu, sigma, group, inputs.strata), 0)
