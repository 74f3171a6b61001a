"""FDr6: the Fréchet distances over six networks, each over that of ImageNet's validation images, and their mean."""

import numpy as np

from fiducial.evaluation.features import FDR6
from fiducial.evaluation.metrics.frechet import fid
from fiducial.evaluation.metrics.gaussians import frechet_influences
from fiducial.evaluation.metrics.inputs import Inputs
from fiducial.evaluation.metrics.intervals import Estimate, error_over_rows, estimate


def distances(inputs: Inputs) -> dict[str, Estimate]:
    """The Fréchet distance over each network, by extractor."""
    found = {one.extractor.name: one.once(fid) for one in (inputs, *inputs.panel)}
    return {name: found[name] for name in FDR6}


def fdr6(inputs: Inputs) -> Estimate:
    """FDr6 (arXiv 2604.28190): the arithmetic mean over `FDR6` of distance over divisor.

    The six are of the same samples, so its error is that of the mean over the six of each sample's influence, by the delta
    method. None where one of them has none.
    """
    found = inputs.once(distances)
    value = float(np.mean([found[name].value / divisor for name, divisor in FDR6.items()]))
    if any(one.error is None for one in found.values()):
        return Estimate(value)
    members, group = {one.extractor.name: one for one in (inputs, *inputs.panel)}, inputs.group
    moved = {}
    for name, one in members.items():
        moved[name] = frechet_influences(one.own.statistics, one.reference.mu, one.reference.sigma, group)

    def influences(rows: np.ndarray) -> np.ndarray:
        some = slice(int(rows[0]), int(rows[-1]) + 1)
        return np.mean([moved[name](members[name].own.rows[some]) / divisor for name, divisor in FDR6.items()], axis=0)

    return estimate(value, error_over_rows(np.arange(len(inputs.own.rows)), influences, group), 0)
