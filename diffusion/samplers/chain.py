"""Samplers of DDPM's chain: its ancestral one and DDIM, and those that diffusers computes at its own timesteps."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Union

from fiducial.diffusion.paths import Point
from fiducial.diffusion.prediction import Denoiser
from fiducial.diffusion.samplers.row import Option, Sampler, counted
from fiducial.diffusion.schedule import NUM_TRAIN_TIMESTEPS, Schedule, linear_betas, spaced_timesteps

if TYPE_CHECKING:
    import torch
    from diffusers import SchedulerMixin
    from torch import Tensor

# What a solver of diffusers is to do, whatever its defaults come to be.
EPSILON = {"trained_betas": linear_betas(), "prediction_type": "epsilon", "timestep_spacing": "linspace"}
MULTISTEP = EPSILON | {"solver_order": 2, "lower_order_final": True, "final_sigmas_type": "zero", "thresholding": False}


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


def respaced(text: str) -> int:
    """The number of steps of a spacing of DDPM's chain, as `spaced_timesteps` takes it."""
    try:
        return len(spaced_timesteps(text))
    except ValueError as error:
        raise ValueError(f"has no such timesteps ({error})") from error


ETA = Option(0.0, 0.0, 1.0, "between 0 (deterministic) and 1", "noise of ddim, 0 to 1")
SOLVER = counted(most=NUM_TRAIN_TIMESTEPS - 1)
BY_DIFFUSERS = "for DiT, by diffusers at its timesteps"
DDPM = Sampler(sample_ddpm, respaced, Schedule.create, lambda steps: steps - 1)
DDIM = Sampler(sample_ddim, respaced, Schedule.create, lambda steps, eta: steps - 1 if eta > 0 else 0, options={"eta": ETA})
DPM_SOLVER = Sampler(sample_dpm_solver, SOLVER, Schedule.create, said=BY_DIFFUSERS)
UNIPC = Sampler(sample_unipc, SOLVER, Schedule.create, said=BY_DIFFUSERS)
HEUN = Sampler(
    sample_heun,
    counted(least=2, most=NUM_TRAIN_TIMESTEPS),
    Schedule.create,
    said=f"{BY_DIFFUSERS}, some ten steps or more",
)
