"""Training losses, for `scripts/train_demo.py`: DiT's noise regression with a bound for its variance, and SiT's velocity."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fiducial.diffusion.prediction import learned_log_variance, predict_x0
from fiducial.diffusion.schedule import Schedule

VLB_WEIGHT = 1e-3  # times the number of timesteps, because one timestep stands for all: the hybrid loss of improved-DDPM


def hybrid_loss(model: Callable[[Tensor, Tensor], Tensor], x0: Tensor, step: Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """L_simple + 0.001 L_vlb (improved-DDPM, equation 16), each image's loss (N,).

    The bound is KL(q(x_{t-1} | x_t, x_0) || p) in bits, its gradient stopped at the mean, so that it trains the variance
    only. The last sampling step draws no noise; its reconstruction term is left out.

    Args:
        model: (x_t, original timesteps (N,)) -> (N, 2C, H, W).
        x0, noise: (N, C, H, W). step: (N,) int64, indices in sampling order over the full schedule.
    """
    at = step.view(-1, 1, 1, 1)
    abar = schedule.alphas_cumprod.float()[at]
    x = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
    epsilon, fraction = model(x, schedule.timesteps[step]).chunk(2, dim=1)

    point = schedule.at(at)
    log_variance = learned_log_variance(fraction, point)
    true_mean = schedule.posterior_mean(x0, x, at)
    mean = schedule.posterior_mean(predict_x0(x, epsilon.detach(), point), x, at)
    nats = gaussian_kl(true_mean, schedule.log_variance_min[at], mean, log_variance).mean((1, 2, 3))
    bits = torch.where(step == len(schedule) - 1, 0.0, nats / math.log(2))
    return F.mse_loss(epsilon, noise, reduction="none").mean((1, 2, 3)) + VLB_WEIGHT * len(schedule) * bits


def velocity_loss(model: Callable[[Tensor, Tensor], Tensor], x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The velocity of the straight path from noise at t = 0 to the image at t = 1, regressed (SiT, arXiv 2401.08740), (N,).

    On SiT's own clock: x_t = t x_0 + (1 - t) noise, whose dx/dt is x_0 - noise everywhere on it.

    Args:
        model: (x_t, t (N,)) -> (N, C, H, W).
        x0, noise: (N, C, H, W). t: (N,), from 0 to 1.
    """
    share = t.view(-1, 1, 1, 1)
    velocity = model(share * x0 + (1 - share) * noise, t)
    return F.mse_loss(velocity, x0 - noise, reduction="none").mean((1, 2, 3))


def gaussian_kl(mean_p: Tensor, log_variance_p: Tensor, mean_q: Tensor, log_variance_q: Tensor) -> Tensor:
    """KL(p || q) of diagonal Gaussians, elementwise, in nats."""
    distance = (mean_p - mean_q) ** 2 * torch.exp(-log_variance_q)
    return 0.5 * (log_variance_q - log_variance_p + torch.exp(log_variance_p - log_variance_q) - 1 + distance)
