"""Samplers: flat functions with one signature, from noise to latents.

Each takes the model as a callable (x (N, C, H, W), t 0-dimensional int64) -> (N, 2C, H, W), noise then variance
fraction, and `noise`, an iterator of (N, C, H, W) standard normal tensors of which it draws `noise_draws` many.
Nothing in a step waits for the device.
"""

from collections.abc import Callable, Iterator

from torch import Tensor

from diffusion.prediction import learned_log_variance, posterior_mean, predict_x0
from diffusion.schedule import Schedule

Model = Callable[[Tensor, Tensor], Tensor]


def sample_ddpm(model: Model, x: Tensor, schedule: Schedule, noise: Iterator[Tensor]) -> Tensor:
    """Ancestral sampling with learned range variance, as DiT does it (DDPM, algorithm 2). x: (N, C, H, W) standard normal."""
    for step in range(len(schedule)):
        epsilon, fraction = model(x, schedule.timesteps[step]).chunk(2, dim=1)
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
        epsilon, _ = model(x, schedule.timesteps[step]).chunk(2, dim=1)
        x = signal[step] * predict_x0(x, epsilon, schedule, step) + direction[step] * epsilon
        if eta > 0 and step < len(schedule) - 1:
            x = x + sigma[step] * next(noise)
    return x


SAMPLERS = {"ddpm": sample_ddpm, "ddim": sample_ddim}


def noise_draws(sampler: str, eta: float, num_steps: int) -> int:
    """How many noise tensors a sampler draws after the initial latents: none where it is deterministic, none in the last step."""
    return 0 if sampler == "ddim" and eta == 0 else num_steps - 1
