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
# (x (N, C, H, W), t from 0, the image, to 1, noise) -> a network's output. Where a place has them, `r` and `guided_at` of `Point`
# come as keywords.
Raw = Callable[..., "Tensor"]


def from_noise(raw: Raw) -> Denoiser:
    """For a network that predicts noise (N, C, H, W), or noise and then the variance's fraction (N, 2C, H, W)."""

    def denoise(x: "Tensor", point: Point) -> Prediction:
        out = raw(x, point.t, **point.beside)
        if out.shape[1] == x.shape[1]:
            return Prediction(predict_x0(x, out, point), out)
        noise, fraction = out.chunk(2, dim=1)
        log_variance = learned_log_variance(fraction, point) if point.log_variance else None
        return Prediction(predict_x0(x, noise, point), noise, log_variance)

    return denoise


def from_x0(raw: Raw, clamp: float = 0.0) -> Denoiser:
    """For a network that predicts the image.

    Args:
        clamp: on the linear path, the least t by which x - x_0 is divided for the velocity (JiT and RAEv2: 0.05). Nearer to the
            image than that, `x0` and `noise` are those that belong to this smaller velocity.
    """

    def denoise(x: "Tensor", point: Point) -> Prediction:
        x0 = raw(x, point.t, **point.beside)
        if point.t < clamp:
            return of_velocity((x - x0) / clamp, x, point)
        return Prediction(x0, (x - point.alpha * x0) / point.sigma)

    return denoise


def from_velocity(raw: Raw) -> Denoiser:
    """For a network that predicts dx/dt = alpha' x_0 + sigma' noise, by t as it is here: towards noise."""

    def denoise(x: "Tensor", point: Point) -> Prediction:
        return of_velocity(raw(x, point.t, **point.beside), x, point)

    return denoise


def of_velocity(velocity: "Tensor", x: "Tensor", point: Point) -> Prediction:
    """Image and noise that have such a velocity at `point`."""
    scale = point.alpha * point.sigma_rate - point.sigma * point.alpha_rate
    x0 = (point.sigma_rate * x - point.sigma * velocity) / scale
    return Prediction(x0, (point.alpha * velocity - point.alpha_rate * x) / scale)


def from_mean_velocity(raw: Raw) -> Denoiser:
    """For a network that predicts the mean velocity from t to `r` (MeanFlow), which is the velocity itself where r = t: so where
    a sampler names no `r`. On the linear path."""

    def denoise(x: "Tensor", point: Point) -> Prediction:
        return of_velocity(raw(x, point.t, **{"r": point.t} | point.beside), x, point)

    return denoise


def from_score(raw: Raw) -> Denoiser:
    """For a network that predicts the gradient of the log density of x_t, which is -noise / sigma."""

    def denoise(x: "Tensor", point: Point) -> Prediction:
        noise = -point.sigma * raw(x, point.t, **point.beside)
        return Prediction(predict_x0(x, noise, point), noise)

    return denoise


MEAN_VELOCITY = "average velocity"
PREDICTIONS: dict[str, Callable[[Raw], Denoiser]] = {  # by what a network predicts
    "noise": from_noise,
    "velocity": from_velocity,
    "x0": from_x0,
    "score": from_score,
    MEAN_VELOCITY: from_mean_velocity,
}


def predict_x0(x: "Tensor", noise: "Tensor", point: Point) -> "Tensor":
    """x_0 = (x_t - sigma noise) / alpha, not clipped: DiT does not clip latents."""
    from_x, from_noise = point.inverse or (1 / point.alpha, point.sigma / point.alpha)
    return from_x * x - from_noise * noise


def learned_log_variance(fraction: "Tensor", point: Point) -> "Tensor":
    """Learned range variance, equation 15 of improved-DDPM: `fraction` in [-1, 1] moves log-linearly between bounds."""
    weight, (least, most) = (fraction + 1) / 2, point.log_variance
    return weight * most + (1 - weight) * least
