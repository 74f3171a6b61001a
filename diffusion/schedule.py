"""The noise schedule: linear betas in float64, respacing, and every coefficient that a sampler step needs, on the device."""

from dataclasses import dataclass
from itertools import accumulate, repeat
from typing import TYPE_CHECKING, Union

import numpy as np

from fiducial.diffusion.paths import Point

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000


def linear_betas(num_timesteps: int = NUM_TRAIN_TIMESTEPS) -> np.ndarray:
    """DDPM's linear schedule (arXiv 2006.11239): (num_timesteps,) float64, 1e-4 to 0.02 at 1000 steps."""
    scale = 1000 / num_timesteps
    return np.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=np.float64)


def spaced_timesteps(spacing: str, num_timesteps: int = NUM_TRAIN_TIMESTEPS) -> list[int]:
    """Which of the original timesteps to sample at, ascending, as improved-DDPM (arXiv 2102.09672) chooses them.

    Args:
        spacing: `ddimN`, a constant stride from 0 that gives N steps (`ddim50` is 0, 20, ..., 980); or comma-separated
            counts, one for each equal section of the schedule, spread evenly with both ends (`250` is 0, 4, 8, ..., 999).

    Raises:
        ValueError: in one sentence, if the spacing does not parse or cannot be met.
    """
    form = f"{spacing!r} is not a step count such as 250, section counts such as 10,20, or ddimN such as ddim50"
    if spacing.startswith("ddim"):
        if not spacing[4:].isdecimal():
            raise ValueError(form)
        wanted = int(spacing[4:])
        for stride in range(1, num_timesteps + 1):
            if len(steps := range(0, num_timesteps, stride)) == wanted:
                return list(steps)
        raise ValueError(f"no constant stride over {num_timesteps} timesteps gives {wanted} steps")

    sections = spacing.split(",")
    if not all(part.isdecimal() for part in sections):
        raise ValueError(form)
    counts = [int(part) for part in sections]
    size, extra = divmod(num_timesteps, len(counts))
    timesteps, start = [], 0
    for number, count in enumerate(counts):
        length = size + (number < extra)
        if not 1 <= count <= length:
            raise ValueError(f"{count} steps do not fit in a section of {length} of the {num_timesteps} timesteps")
        stride = (length - 1) / (count - 1) if count > 1 else 1
        # Summed step by step, as improved-DDPM does: its rounding decides the middle timestep of every fourth count.
        timesteps += [start + round(position) for position in accumulate(repeat(stride, count - 1), initial=0.0)]
        start += length
    return timesteps


@dataclass(frozen=True)
class Schedule:
    """Coefficients in sampling order (index 0 is the noisiest step), each (num_steps,) on one device.

    All are computed in float64 and stored as float32; `timesteps` are the original timestep numbers, int64, because the
    network was trained on those. Indexing one with a Python integer gives a view: no copy, no synchronisation.
    """

    numbers: tuple[int, ...]  # the same as `timesteps`, on the host
    timesteps: "Tensor"
    alphas_cumprod: "Tensor"  # float64, for what derives further coefficients
    alphas_cumprod_prev: "Tensor"  # float64; 1 at the last step
    alphas: "Tensor"  # of x_t = alpha x_0 + sigma noise, as are sigmas
    sigmas: "Tensor"
    sqrt_recip_alphas_cumprod: "Tensor"
    sqrt_recipm1_alphas_cumprod: "Tensor"
    posterior_mean_x0: "Tensor"
    posterior_mean_xt: "Tensor"
    log_variance_min: "Tensor"  # of the posterior q(x_{t-1} | x_t, x_0); the last step, where it is log 0, repeats its neighbour
    log_variance_max: "Tensor"  # log beta

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def levels(self) -> tuple[float, ...]:
        """The time of each step, 0 for the image and 1 for noise."""
        return tuple(number / NUM_TRAIN_TIMESTEPS for number in self.numbers)

    def at(self, step: Union[int, "Tensor"]) -> Point:
        """The place of a step in sampling order: a Python integer for a whole batch, or an int64 tensor that broadcasts."""
        return Point(
            (self.numbers if isinstance(step, int) else self.timesteps)[step] / NUM_TRAIN_TIMESTEPS,
            self.alphas[step],
            self.sigmas[step],
            inverse=(self.sqrt_recip_alphas_cumprod[step], self.sqrt_recipm1_alphas_cumprod[step]),
            log_variance=(self.log_variance_min[step], self.log_variance_max[step]),
        )

    def posterior_mean(self, x0: "Tensor", x: "Tensor", step: Union[int, "Tensor"]) -> "Tensor":
        """Mean of q(x_{t-1} | x_t, x_0), equation 7 of DDPM."""
        return self.posterior_mean_x0[step] * x0 + self.posterior_mean_xt[step] * x

    @classmethod
    def create(cls, spacing: str, device: Union["torch.device", str] = "cpu") -> "Schedule":
        """The schedule at `spacing` (see `spaced_timesteps`); betas are those of the chain over the kept timesteps."""
        import torch

        kept = np.array(spaced_timesteps(spacing))
        abar = np.cumprod(1.0 - linear_betas())[kept]
        abar_prev = np.append(1.0, abar[:-1])
        betas = 1.0 - abar / abar_prev
        variance = betas * (1.0 - abar_prev) / (1.0 - abar)
        variance[0] = variance[1] if len(kept) > 1 else betas[0]

        def on_device(values: np.ndarray, dtype: torch.dtype = torch.float32) -> "Tensor":
            return torch.from_numpy(values[::-1].copy()).to(device, dtype)

        return cls(
            numbers=tuple(kept[::-1].tolist()),
            timesteps=on_device(kept, torch.int64),
            alphas_cumprod=on_device(abar, torch.float64),
            alphas_cumprod_prev=on_device(abar_prev, torch.float64),
            alphas=on_device(np.sqrt(abar)),
            sigmas=on_device(np.sqrt(1.0 - abar)),
            sqrt_recip_alphas_cumprod=on_device(np.sqrt(1.0 / abar)),
            sqrt_recipm1_alphas_cumprod=on_device(np.sqrt(1.0 / abar - 1.0)),
            posterior_mean_x0=on_device(betas * np.sqrt(abar_prev) / (1.0 - abar)),
            posterior_mean_xt=on_device((1.0 - abar_prev) * np.sqrt(1.0 - betas) / (1.0 - abar)),
            log_variance_min=on_device(np.log(variance)),
            log_variance_max=on_device(np.log(betas)),
        )
