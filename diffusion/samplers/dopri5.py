"""Dormand and Prince's method of order 5 with steps of its own choice, SiT's usual one, through torchdiffeq."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fiducial.diffusion.grids import PLACES, Places, Spacing
from fiducial.diffusion.paths import Path
from fiducial.diffusion.prediction import MEAN_VELOCITY, Denoiser
from fiducial.diffusion.samplers.row import Option, of_flow

if TYPE_CHECKING:
    from torch import Tensor


def sample_dopri5(
    denoise: Denoiser, x: "Tensor", places: Places, _: Iterator["Tensor"], atol: float = 1e-6, rtol: float = 1e-3
) -> "Tensor":
    """From the first of `places` to the last, all of a batch in the same steps, whose error is that of the whole batch.

    The last step ends where the grid does: torchdiffeq by itself goes beyond, where no network was trained, and interpolates.
    Each step waits for the device to know whether it is accepted.

    Returns:
        latents, NaN where no step is small enough, as after an output that is not finite.
    """
    import torch
    from torchdiffeq import odeint

    first, last = places.points[0].t, places.points[-1].t

    def towards_image(gone: "Tensor", x: "Tensor") -> "Tensor":
        here = places.path(min(max(first - gone.item(), last), first))
        return -denoise(x, here).velocity(here)

    way = torch.tensor([0.0, first - last], dtype=torch.float64, device=x.device)
    options = {"step_t": way[1:], "dtype": torch.float64}
    try:
        return odeint(towards_image, x, way, rtol=rtol, atol=atol, method="dopri5", options=options)[-1]
    except AssertionError:  # of torchdiffeq, that a step has become too small
        return torch.full_like(x, float("nan"))


def _demand(spacing: Spacing, path: Path, predicts: str, **_: object) -> str | None:
    at_end = path(spacing.times(2)[-1])
    if at_end.sigma == 0 and (predicts not in ("velocity", MEAN_VELOCITY) or at_end.sigma_rate == float("inf")):
        return "ends at the image itself, where dopri5 asks the network as well; give --grid places,end=0.001"
    return None


TOLERANCE = "between 1e-12 and 1"
DOPRI5 = of_flow(
    sample_dopri5,
    PLACES,
    options={
        "atol": Option(1e-6, 1e-12, 1.0, TOLERANCE, "absolute error of a step of dopri5"),
        "rtol": Option(1e-3, 1e-12, 1.0, TOLERANCE, "relative error of a step of dopri5"),
    },
    demand=_demand,
    is_joint=True,
    checked_by="euler",
    said="SiT's usual ODE, which chooses its steps, however many are asked for",
)
