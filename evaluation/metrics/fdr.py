"""FDr6: the Fréchet distances over six networks, each over that of ImageNet's validation images, and their mean."""

import numpy as np

from fiducial.evaluation.features import FDR6
from fiducial.evaluation.metrics.frechet import fid
from fiducial.evaluation.metrics.inputs import Inputs
from fiducial.evaluation.metrics.intervals import Measured, measured


def distances(inputs: Inputs) -> dict[str, Measured]:
    """The Fréchet distance over each network, by extractor."""
    found = {one.extractor.name: one.once(fid) for one in (inputs, *inputs.panel)}
    return {name: found[name] for name in FDR6}


def fdr6(inputs: Inputs) -> Measured:
    """FDr6 (arXiv 2604.28190): the arithmetic mean over `FDR6` of distance over divisor.

    The six are of the same samples, so each moves it by the mean of its moves of the six over their divisors. Without an
    interval where one of them has none.
    """
    found = inputs.once(distances)
    value = float(np.mean([found[name].value / divisor for name, divisor in FDR6.items()]))
    moves = [found[name].moves for name in FDR6]
    if any(one is None for one in moves):
        return Measured(value)
    return measured(value, np.mean([one / divisor for one, divisor in zip(moves, FDR6.values(), strict=True)], axis=0), 0)
