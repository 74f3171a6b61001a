"""Samplers: flat functions with one signature, from noise to latents.

Each takes the model as a callable (x (N, C, H, W), timestep number t on the host) -> (N, 2C, H, W), noise then variance
fraction, and `noise`, an iterator of (N, C, H, W) standard normal tensors of which it draws `noise_draws` many.
Nothing in a step waits for the device.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from fiducial.diffusion.prediction import learned_log_variance, posterior_mean, predict_x0
from fiducial.diffusion.schedule import Schedule, linear_betas

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

# What a solver of diffusers is to do, whatever its defaults come to be.
EPSILON = {"trained_betas": linear_betas(), "prediction_type": "epsilon", "timestep_spacing": "linspace"}
MULTISTEP = EPSILON | {"solver_order": 2, "lower_order_final": True, "final_sigmas_type": "zero", "thresholding": False}
Model = Callable[[Tensor, float], Tensor]


def sample_ddpm(model: Model, x: Tensor, schedule: Schedule, noise: Iterator[Tensor]) -> Tensor:
    """Ancestral sampling with learned range variance, as DiT does it (DDPM, algorithm 2). x: (N, C, H, W) standard normal."""
    for step in range(len(schedule)):
        epsilon, fraction = model(x, schedule.numbers[step]).chunk(2, dim=1)
        x0 = predict_x0(x, epsilon, schedule, step)
        x = posterior_mean(x0, x, schedule, step)
        if step < len(schedule) - 1:
            x = x + (0.5 * learned_log_variance(fraction, schedule, step)).exp() * next(noise)
    return x


def sample_ddim(model: Model, x: Tensor, schedule: Schedule, noise: Iterator[Tensor], eta: float = 0.0) -> Tensor:
    """DDIM (arXiv 2010.02502, equation 12): deterministic at `eta` 0, DDPM's smaller variance at `eta` 1."""
    abar, abar_prev = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    sigma = eta * ((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev)).sqrt()
    direction = (1 - abar_prev - sigma**2).clamp_min(0).sqrt().float()
    signal, sigma = abar_prev.sqrt().float(), sigma.float()
    for step in range(len(schedule)):
        epsilon, _ = model(x, schedule.numbers[step]).chunk(2, dim=1)
        x = signal[step] * predict_x0(x, epsilon, schedule, step) + direction[step] * epsilon
        if eta > 0 and step < len(schedule) - 1:
            x = x + sigma[step] * next(noise)
    return x


def sample_dpm_solver(model: Model, x: Tensor, schedule: Schedule, _: Iterator[Tensor]) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095), deterministic, by diffusers, at its timesteps for so many steps."""
    from diffusers import DPMSolverMultistepScheduler

    return _solve(
        DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_type="midpoint", **MULTISTEP), model, x, len(schedule)
    )


def sample_unipc(model: Model, x: Tensor, schedule: Schedule, _: Iterator[Tensor]) -> Tensor:
    """UniPC of order 2 (arXiv 2302.04867), deterministic, by diffusers, at its timesteps for so many steps."""
    from diffusers import UniPCMultistepScheduler

    return _solve(UniPCMultistepScheduler(solver_type="bh2", **MULTISTEP), model, x, len(schedule))


def sample_heun(model: Model, x: Tensor, schedule: Schedule, _: Iterator[Tensor]) -> Tensor:
    """Heun's method (arXiv 2206.00364, algorithm 1), deterministic, by diffusers; two evaluations a step, one in the last."""
    from diffusers import HeunDiscreteScheduler

    return _solve(HeunDiscreteScheduler(**EPSILON), model, x, len(schedule))


def _solve(scheduler: "SchedulerMixin", model: Model, x: Tensor, num_steps: int) -> Tensor:
    """Runs a scheduler of diffusers. Its tables stay on the host, so that it looks nothing up on the device."""
    scheduler.set_timesteps(num_steps)
    scheduler.set_begin_index(0)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        epsilon, _ = model(scheduler.scale_model_input(x, t), t.item()).chunk(2, dim=1)
        x = scheduler.step(epsilon, t, x).prev_sample
    return x


SAMPLERS = {
    "ddpm": sample_ddpm,
    "ddim": sample_ddim,
    "dpm-solver++": sample_dpm_solver,
    "unipc": sample_unipc,
    "heun": sample_heun,
}


def noise_draws(sampler: str, eta: float, num_steps: int) -> int:
    """How many noise tensors a sampler draws after the initial latents: none where it is deterministic, none in the last step."""
    return num_steps - 1 if sampler == "ddpm" or eta > 0 else 0
