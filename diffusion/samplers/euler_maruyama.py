"""Euler-Maruyama on the reverse SDE of a path: SiT's, with its diffusion forms and last steps; the linear form is REPA's.

And SiT's Heun variant of it.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from fiducial.diffusion.grids import WITH_TAIL, Places, Spacing
from fiducial.diffusion.paths import Path, Point
from fiducial.diffusion.prediction import Denoiser
from fiducial.diffusion.samplers.row import Choice, Option, of_flow

if TYPE_CHECKING:
    from torch import Tensor

# SiT's w of dx = (-velocity + w score) h + sqrt(2 w h) noise, for a step of h towards the image, by place and norm: half the
# square of the SDE's diffusion coefficient. SiT's own clock is 1 - t.
FORMS: dict[str, Callable[[Point, float], float]] = {
    "sigma": lambda point, norm: norm * point.sigma,
    "constant": lambda _, norm: norm,
    "linear": lambda point, norm: norm * point.t,
    "decreasing": lambda point, norm: 0.25 * (1 - norm * math.cos(math.pi * point.t)) ** 2,
    "increasing-decreasing": lambda point, norm: norm * math.sin(math.pi * point.t) ** 2,
    "sbdm": lambda point, norm: norm * point.sigma * (point.sigma_rate - point.alpha_rate / point.alpha * point.sigma),
}
MEAN, TWEEDIE, BY_EULER, NONE = LAST_STEPS = ("mean", "tweedie", "euler", "none")


def sample_euler_maruyama(
    denoise: Denoiser,
    x: "Tensor",
    places: Places,
    noise: Iterator["Tensor"],
    diffusion_form: str = "sigma",
    diffusion_norm: float = 1.0,
    last_step: str = MEAN,
) -> "Tensor":
    """Steps along velocity and score, with noise in all but the last step.

    Args:
        last_step: `mean`, its expectation; `tweedie`, the image that is predicted; `euler`, along the velocity alone; `none`, one
            like all others, with noise.
    """
    for step, (here, there) in enumerate(pairwise(places.points), start=1):
        found, width, is_last = denoise(x, here), here.t - there.t, step == len(places)
        if is_last and last_step == TWEEDIE:
            return found.x0
        w = 0.0 if is_last and last_step == BY_EULER else FORMS[diffusion_form](here, diffusion_norm)
        x = x - width * found.velocity(here) - width * w / here.sigma * found.noise  # the score is -noise / sigma
        if not is_last or last_step == NONE:
            x = x + math.sqrt(2 * w * width) * next(noise)
    return x


def sample_sde_heun(
    denoise: Denoiser,
    x: "Tensor",
    places: Places,
    noise: Iterator["Tensor"],
    diffusion_form: str = "sigma",
    diffusion_norm: float = 1.0,
    last_step: str = MEAN,
) -> "Tensor":
    """SiT's Heun variant: each step adds its noise first, and goes on from there by a trapezoid of velocity and score.

    Two evaluations a step, one in the last, which is that of `sample_euler_maruyama`.
    """

    def slope(x: "Tensor", point: Point) -> "Tensor":
        found = denoise(x, point)
        return found.velocity(point) + FORMS[diffusion_form](point, diffusion_norm) / point.sigma * found.noise

    for step, (here, there) in enumerate(pairwise(places.points), start=1):
        if step == len(places) and last_step != NONE:
            last = Places((here, there), places.path)
            return sample_euler_maruyama(denoise, x, last, noise, diffusion_form, diffusion_norm, last_step)
        width = here.t - there.t
        x = x + math.sqrt(2 * FORMS[diffusion_form](here, diffusion_norm) * width) * next(noise)
        first = slope(x, here)
        x = x - width / 2 * (first + slope(x - width * first, there))
    return x


def _noises(steps: int, last_step: str, **_: object) -> int:
    return steps if last_step == NONE else steps - 1


def _demand(spacing: Spacing, path: Path, last_step: str, diffusion_form: str, **_: object) -> str | None:
    if last_step == NONE and spacing.has_tail:
        return "has a tail, in which --last-step none would draw noise; give one without, such as --grid places"
    if diffusion_form == "sbdm" and path(spacing.start).alpha == 0:
        return "begins at pure noise, where --diffusion-form sbdm is infinite; give --grid places,start=0.999,tail=0.04"
    return None


def _demand_of_heun(spacing: Spacing, path: Path, last_step: str, **more: object) -> str | None:
    if last_step == NONE and not spacing.has_tail and path(spacing.times(2)[-1]).sigma == 0:
        return (
            "ends at the image itself, where sde-heun with --last-step none asks for a score; give one such as places,end=0.001"
        )
    return _demand(spacing, path, last_step=last_step, **more)


OPTIONS = {
    "diffusion_form": Choice("sigma", tuple(FORMS), "diffusion coefficient of an SDE (REPA's: linear)"),
    "diffusion_norm": Option(1.0, 0.0, 100.0, "between 0 and 100", "factor of it"),
    "last_step": Choice(MEAN, LAST_STEPS, "last step of an SDE; none: as all others"),
}
EULER_MARUYAMA = of_flow(
    sample_euler_maruyama, WITH_TAIL, noises=_noises, options=OPTIONS, demand=_demand, said="SiT's and REPA's SDE"
)
SDE_HEUN = of_flow(
    sample_sde_heun, WITH_TAIL, noises=_noises, options=OPTIONS, demand=_demand_of_heun, said="SiT's SDE by its Heun variant"
)
