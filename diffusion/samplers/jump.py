"""The jumps of MeanFlow."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from fiducial.diffusion.grids import Places
from fiducial.diffusion.paths import LINEAR
from fiducial.diffusion.prediction import MEAN_VELOCITY, Denoiser
from fiducial.diffusion.samplers.row import of_flow

if TYPE_CHECKING:
    from torch import Tensor


def sample_jump(denoise: Denoiser, x: "Tensor", places: Places, _: Iterator["Tensor"]) -> "Tensor":
    """x_r = x_t - (t - r) u(x_t, t, r) (arXiv 2505.13447, equation 12), one or a few times: the network is told where to."""
    for here, there in pairwise(places.points):
        x = x + (there.t - here.t) * denoise(x, replace(here, r=there.t)).velocity(here)
    return x


JUMP = of_flow(
    sample_jump,
    solves=(LINEAR,),
    takes=(MEAN_VELOCITY,),
    checked_by="euler",
    said="for MeanFlow, one or a few steps",
)
