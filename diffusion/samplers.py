"""Samplers: flat functions with one signature, from noise to latents, and a row of SAMPLERS for each.

Each takes `denoise`, which predicts image and noise at a place of its grid whatever the network puts out; x (N, C, H, W)
standard normal; its grid; and `noise`, an iterator of such tensors. Nothing in a step waits for the device.
Importing this needs no torch, so that options can be checked before it is loaded.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Union

from fiducial.diffusion.grids import Places, ends_included
from fiducial.diffusion.paths import CHAIN, LINEAR, Grid, Point, linear
from fiducial.diffusion.prediction import Denoiser
from fiducial.diffusion.schedule import NUM_TRAIN_TIMESTEPS, Schedule, linear_betas, spaced_timesteps

if TYPE_CHECKING:
    import torch
    from diffusers import SchedulerMixin
    from torch import Tensor

# What a solver of diffusers is to do, whatever its defaults come to be.
EPSILON = {"trained_betas": linear_betas(), "prediction_type": "epsilon", "timestep_spacing": "linspace"}
MULTISTEP = EPSILON | {"solver_order": 2, "lower_order_final": True, "final_sigmas_type": "zero", "thresholding": False}
MOST_PLACES = 100_000  # beyond this a number is a slip of the hand


def sample_ddpm(denoise: Denoiser, x: "Tensor", schedule: Schedule, noise: Iterator["Tensor"]) -> "Tensor":
    """Ancestral sampling with learned range variance, as DiT does it (DDPM, algorithm 2)."""
    for step in range(len(schedule)):
        found = denoise(x, schedule.at(step))
        x = schedule.posterior_mean(found.x0, x, step)
        if step < len(schedule) - 1:
            x = x + (0.5 * found.log_variance).exp() * next(noise)
    return x


def sample_ddim(denoise: Denoiser, x: "Tensor", schedule: Schedule, noise: Iterator["Tensor"], eta: float = 0.0) -> "Tensor":
    """DDIM (arXiv 2010.02502, equation 12): deterministic at `eta` 0, DDPM's smaller variance at `eta` 1."""
    abar, abar_prev = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    sigma = eta * ((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev)).sqrt()
    direction = (1 - abar_prev - sigma**2).clamp_min(0).sqrt().float()
    signal, sigma = abar_prev.sqrt().float(), sigma.float()
    for step in range(len(schedule)):
        found = denoise(x, schedule.at(step))
        x = signal[step] * found.x0 + direction[step] * found.noise
        if eta > 0 and step < len(schedule) - 1:
            x = x + sigma[step] * next(noise)
    return x


def sample_dpm_solver(denoise: Denoiser, x: "Tensor", schedule: Schedule, _: Iterator["Tensor"]) -> "Tensor":
    """DPM-Solver++(2M) (arXiv 2211.01095), deterministic, by diffusers, at its timesteps for so many steps."""
    from diffusers import DPMSolverMultistepScheduler

    solver = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_type="midpoint", **MULTISTEP)
    return _solve(solver, denoise, x, len(schedule))


def sample_unipc(denoise: Denoiser, x: "Tensor", schedule: Schedule, _: Iterator["Tensor"]) -> "Tensor":
    """UniPC of order 2 (arXiv 2302.04867), deterministic, by diffusers, at its timesteps for so many steps."""
    import torch
    from diffusers import UniPCMultistepScheduler
    from torch.overrides import TorchFunctionMode

    class Unchecked(TorchFunctionMode):
        """Solves equations without waiting to hear whether they have a solution."""

        def __torch_function__(
            self, function: Callable[..., "Tensor"], _: object, given: tuple, options: dict | None = None
        ) -> "Tensor":
            if function is torch.linalg.solve:
                return torch.linalg.solve_ex(*given).result
            return function(*given, **(options or {}))

    solver = UniPCMultistepScheduler(solver_type="bh2", **MULTISTEP)
    # Its coefficients are computed on the device of x, whatever its tables are on.
    return _solve(solver, denoise, x, len(schedule), x.device, Unchecked)


def sample_heun(denoise: Denoiser, x: "Tensor", schedule: Schedule, _: Iterator["Tensor"]) -> "Tensor":
    """Heun's method (arXiv 2206.00364, algorithm 1), deterministic, by diffusers; two evaluations a step, one in the last."""
    from diffusers import HeunDiscreteScheduler

    return _solve(HeunDiscreteScheduler(**EPSILON), denoise, x, len(schedule))


def sample_euler(denoise: Denoiser, x: "Tensor", places: Places, _: Iterator["Tensor"]) -> "Tensor":
    """Euler's method on the probability flow of a path, dx/dt = velocity: deterministic, one evaluation a step."""
    for here, there in pairwise(places.points):
        x = x + (there.t - here.t) * denoise(x, here).velocity(here)
    return x


def _solve(
    scheduler: "SchedulerMixin",
    denoise: Denoiser,
    x: "Tensor",
    num_steps: int,
    tables: Union["torch.device", str] = "cpu",
    stepping: Callable[[], AbstractContextManager] = nullcontext,
) -> "Tensor":
    """Run a scheduler of diffusers.

    Args:
        tables: where it computes its coefficients, so that a step copies nothing to a device: most do on the host.
        stepping: what holds in a step.
    """
    scheduler.set_timesteps(num_steps)
    scheduler.set_begin_index(0)
    x, ratios = x * scheduler.init_noise_sigma, scheduler.sigmas.tolist()
    scheduler.sigmas = scheduler.sigmas.to(tables)
    for t, ratio in zip(scheduler.timesteps, ratios, strict=False):  # one sigma more, of the image
        alpha = 1 / math.hypot(1, ratio)
        point = Point(t.item() / NUM_TRAIN_TIMESTEPS, alpha, ratio * alpha)
        noise = denoise(scheduler.scale_model_input(x, t), point).noise
        with stepping():
            x = scheduler.step(noise, t, x).prev_sample
    return x


@dataclass(frozen=True)
class Option:
    """A number that a sampler takes beside its steps, given as the option of the same name."""

    default: float
    low: float
    high: float
    said: str  # what is allowed, after "must be"
    help: str  # what it is, in --help


@dataclass(frozen=True)
class Sampler:
    """A row of SAMPLERS."""

    draw: Callable[..., "Tensor"]  # (denoise, x, grid, noise, **options) -> latents
    steps: Callable[[str], int]  # of --num-sampling-steps; raises ValueError, a sentence whose subject is the sampler
    grid: Callable[[str, "torch.device"], Grid]  # for steps that were accepted
    noises: Callable[..., int]  # (steps, **options) -> how many noise tensors are drawn after the initial latents
    solves: tuple[str, ...] = (CHAIN,)  # paths
    options: Mapping[str, Option] = field(default_factory=dict)
    said: str = "for DiT"  # of it in --help


def respaced(text: str) -> int:
    """The number of steps of a spacing of DDPM's chain, as `spaced_timesteps` takes it."""
    try:
        return len(spaced_timesteps(text))
    except ValueError as error:
        raise ValueError(f"has no such timesteps ({error})") from error


def counted(least: int = 1, most: int | None = None) -> Callable[[str], int]:
    """A reader of a number of steps between these."""

    def read(text: str) -> int:
        if not text.isdecimal():
            raise ValueError("takes a count such as 20")
        if most and int(text) > most:
            raise ValueError(f"takes at most {most}")
        if int(text) < least:
            raise ValueError(f"takes at least {least}")
        return int(text)

    return read


def no_noise(_steps: int) -> int:
    """The number of noise tensors of a deterministic sampler, 0."""
    return 0


ETA = Option(0.0, 0.0, 1.0, "between 0 (deterministic) and 1", "noise of ddim, 0 to 1")
CHAIN_SOLVER = counted(most=NUM_TRAIN_TIMESTEPS - 1)
BY_DIFFUSERS = "for DiT, by diffusers at its timesteps"
SAMPLERS = {
    "ddpm": Sampler(sample_ddpm, respaced, Schedule.create, lambda steps: steps - 1),
    "ddim": Sampler(sample_ddim, respaced, Schedule.create, lambda steps, eta: steps - 1 if eta > 0 else 0, options={"eta": ETA}),
    "dpm-solver++": Sampler(sample_dpm_solver, CHAIN_SOLVER, Schedule.create, no_noise, said=BY_DIFFUSERS),
    "unipc": Sampler(sample_unipc, CHAIN_SOLVER, Schedule.create, no_noise, said=BY_DIFFUSERS),
    "heun": Sampler(
        sample_heun,
        counted(least=2, most=NUM_TRAIN_TIMESTEPS),
        Schedule.create,
        no_noise,
        said=f"{BY_DIFFUSERS}, some ten steps or more",
    ),
    "euler": Sampler(
        sample_euler, counted(least=2, most=MOST_PLACES), ends_included(linear), no_noise, solves=(LINEAR,), said="for SiT"
    ),
}


def own_options() -> dict[str, Option]:
    """The options that single samplers take, by name."""
    return {name: option for row in SAMPLERS.values() for name, option in row.options.items()}
