"""Euler's method."""

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from fiducial.diffusion.grids import PLACES, Places
from fiducial.diffusion.prediction import Denoiser
from fiducial.diffusion.samplers.row import of_flow

if TYPE_CHECKING:
    from torch import Tensor


def sample_euler(denoise: Denoiser, x: "Tensor", places: Places, _: Iterator["Tensor"]) -> "Tensor":
    """Euler's method on the probability flow of a path, dx/dt = velocity: deterministic, one evaluation a step."""
    for here, there in pairwise(places.points):
        x = x + (there.t - here.t) * denoise(x, here).velocity(here)
    return x


EULER = of_flow(sample_euler, PLACES, said="for SiT")
