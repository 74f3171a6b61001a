"""From what a network puts out to what a solver needs: the image and the noise in x_t = alpha x_0 + sigma noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fiducial.diffusion.paths import Point

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """A network's prediction at some x_t, (N, C, H, W) each."""

    x0: "Tensor"
    noise: "Tensor"
    log_variance: "Tensor | None" = None  # of the noise of this step, where that is learned

    def velocity(self, point: Point) -> "Tensor":
        """dx/dt = alpha' x_0 + sigma' noise at the place where this was predicted, towards noise."""
        return point.alpha_rate * self.x0 + point.sigma_rate * self.noise


Denoiser = Callable[["Tensor", Point], Prediction]
Raw = Callable[["Tensor", float], "Tensor"]  # (x (N, C, H, W), t from 0, the image, to 1, noise) -> a network's output


def from_noise(raw: Raw) -> Denoiser:
    """For a network that predicts noise (N, C, H, W), or noise and then the variance's fraction (N, 2C, H, W)."""

    def denoise(x: "Tensor", point: Point) -> Prediction:
        out = raw(x, point.t)
        if out.shape[1] == x.shape[1]:
            return Prediction(predict_x0(x, out, point), out)
        noise, fraction = out.chunk(2, dim=1)
        log_variance = learned_log_variance(fraction, point) if point.log_variance else None
        return Prediction(predict_x0(x, noise, point), noise, log_variance)

    return denoise


def from_x0(raw: Raw) -> Denoiser:
    """For a network that predicts the image."""

    def denoise(x: "Tensor", point: Point) -> Prediction:
        x0 = raw(x, point.t)
        return Prediction(x0, (x - point.alpha * x0) / point.sigma)

    return denoise


def from_velocity(raw: Raw) -> Denoiser:
    """For a network that predicts dx/dt = alpha' x_0 + sigma' noise, by t as it is here: towards noise."""

    def denoise(x: "Tensor", point: Point) -> Prediction:
        velocity = raw(x, point.t)
        scale = point.alpha * point.sigma_rate - point.sigma * point.alpha_rate
        x0 = (point.sigma_rate * x - point.sigma * velocity) / scale
        return Prediction(x0, (point.alpha * velocity - point.alpha_rate * x) / scale)

    return denoise


def from_score(raw: Raw) -> Denoiser:
    """For a network that predicts the gradient of the log density of x_t, which is -noise / sigma."""

    def denoise(x: "Tensor", point: Point) -> Prediction:
        noise = -point.sigma * raw(x, point.t)
        return Prediction(predict_x0(x, noise, point), noise)

    return denoise


PREDICTIONS = {  # by what a network predicts
    "noise": from_noise,
    "velocity": from_velocity,
    "x0": from_x0,
    "score": from_score,
}


def predict_x0(x: "Tensor", noise: "Tensor", point: Point) -> "Tensor":
    """x_0 = (x_t - sigma noise) / alpha, not clipped: DiT does not clip latents."""
    from_x, from_noise = point.inverse or (1 / point.alpha, point.sigma / point.alpha)
    return from_x * x - from_noise * noise


def learned_log_variance(fraction: "Tensor", point: Point) -> "Tensor":
    """Learned range variance, equation 15 of improved-DDPM: `fraction` in [-1, 1] moves log-linearly between bounds."""
    weight, (least, most) = (fraction + 1) / 2, point.log_variance
    return weight * most + (1 - weight) * least
