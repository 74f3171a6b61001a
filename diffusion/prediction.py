"""From what the network predicts (noise, and an interpolation between two variances) to what a solver needs.

`step` is an index in sampling order, a Python integer for one step of a whole batch or an int64 tensor shaped to broadcast.
"""

from torch import Tensor

from fiducial.diffusion.schedule import NUM_TRAIN_TIMESTEPS, Schedule


def is_guided(t: float, interval: tuple[float, float]) -> bool:
    """Whether guidance is applied at timestep `t` (arXiv 2404.07724): in `interval`, ends included; 0 is the image, 1 noise."""
    low, high = interval
    return low <= t / NUM_TRAIN_TIMESTEPS <= high


def predict_x0(x: Tensor, epsilon: Tensor, schedule: Schedule, step: int | Tensor) -> Tensor:
    """x_0 = (x_t - sqrt(1 - abar) epsilon) / sqrt(abar), not clipped: DiT does not clip latents."""
    return schedule.sqrt_recip_alphas_cumprod[step] * x - schedule.sqrt_recipm1_alphas_cumprod[step] * epsilon


def posterior_mean(x0: Tensor, x: Tensor, schedule: Schedule, step: int | Tensor) -> Tensor:
    """Mean of q(x_{t-1} | x_t, x_0), equation 7 of DDPM."""
    return schedule.posterior_mean_x0[step] * x0 + schedule.posterior_mean_xt[step] * x


def learned_log_variance(fraction: Tensor, schedule: Schedule, step: int | Tensor) -> Tensor:
    """Learned range variance, equation 15 of improved-DDPM: `fraction` in [-1, 1] moves log-linearly between bounds."""
    weight = (fraction + 1) / 2
    return weight * schedule.log_variance_max[step] + (1 - weight) * schedule.log_variance_min[step]
