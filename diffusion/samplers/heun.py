"""Heun's method on the probability flow of a path."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from fiducial.diffusion.grids import Places
from fiducial.diffusion.prediction import Denoiser
from fiducial.diffusion.samplers.row import of_flow

if TYPE_CHECKING:
    from torch import Tensor


def sample_flow_heun(
    denoise: Denoiser, x: "Tensor", places: Places, _: Iterator["Tensor"], guided_at_the_start: bool = False
) -> "Tensor":
    """Trapezoids, the last step by Euler's method: 2 N - 1 evaluations for N steps (JiT, REPA).

    Args:
        guided_at_the_start: whether the second evaluation of a step is guided is decided by the time of the first (REPA).
    """
    for step, (here, there) in enumerate(pairwise(places.points), start=1):
        width = there.t - here.t
        velocity = denoise(x, here).velocity(here)
        ahead = x + width * velocity
        if step < len(places):
            then = replace(there, guided_at=here.t) if guided_at_the_start else there
            ahead = x + width / 2 * (velocity + denoise(ahead, then).velocity(then))
        x = ahead
    return x


def sample_repa_heun(denoise: Denoiser, x: "Tensor", places: Places, noise: Iterator["Tensor"]) -> "Tensor":
    """`sample_flow_heun` as REPA decides where it guides."""
    return sample_flow_heun(denoise, x, places, noise, guided_at_the_start=True)


FLOW_HEUN = of_flow(sample_flow_heun, said="for SiT and its kin, trapezoids, the last step euler's")
REPA_HEUN = of_flow(
    sample_repa_heun,
    said="the same, where the time at which a step begins decides whether all of it is guided",
    checked_by="flow-heun",
)
