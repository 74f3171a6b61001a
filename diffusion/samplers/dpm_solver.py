"""DPM-Solver++(2M) on a path with a place at every t."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from fiducial.diffusion.grids import Places
from fiducial.diffusion.paths import Point
from fiducial.diffusion.prediction import Denoiser
from fiducial.diffusion.samplers.row import of_flow

if TYPE_CHECKING:
    from torch import Tensor


def sample_flow_dpm_solver(denoise: Denoiser, x: "Tensor", places: Places, _: Iterator["Tensor"]) -> "Tensor":
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): deterministic, of second order, one evaluation a step.

    Its variable is the logarithm of alpha / sigma, infinite at both ends: the step from pure noise and the one to the image are
    exact for a constant image, and of first order.
    """
    before, before_width = None, math.inf
    for here, there in pairwise(places.points):
        image, width = denoise(x, here).x0, log_ratio(there) - log_ratio(here)
        ahead = image
        if before is not None and math.isfinite(width):
            ahead = image + width / (2 * before_width) * (image - before)
        x = there.sigma / here.sigma * x - there.alpha * math.expm1(-width) * ahead
        before, before_width = image, width
    return x


def log_ratio(point: Point) -> float:
    """log(alpha / sigma), which grows from noise to image."""
    if not (point.alpha and point.sigma):
        return math.inf if point.alpha else -math.inf
    return math.log(point.alpha / point.sigma)


FLOW_DPM_SOLVER = of_flow(sample_flow_dpm_solver, said="DPM-Solver++(2M) for SiT and its kin")
