"""Places on the way from an image to noise: x_t = alpha x_0 + sigma noise, t = 0 the image and t = 1 noise."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Union

if TYPE_CHECKING:
    from torch import Tensor

CHAIN, LINEAR = "ddpm", "linear"  # the names of the paths: DDPM's Markov chain over 1000 timesteps, and the straight one
Number = Union[float, "Tensor"]  # a tensor broadcasts with x


@dataclass(frozen=True)
class Point:
    """One place on a path, and what a prediction there is turned into another with."""

    t: float
    alpha: Number
    sigma: Number
    alpha_rate: float = 0.0  # derivatives by t, where a path has them
    sigma_rate: float = 0.0
    inverse: tuple[Number, Number] | None = None  # 1 / alpha and sigma / alpha, where they are tabulated
    log_variance: tuple[Number, Number] | None = None  # the least and the most of a step's noise, where it is learned
    r: float | None = None  # the time that a step leads to, for a network that predicts the mean velocity from there to t
    guided_at: float | None = None  # the time by which it is decided whether to guide, where that is not t

    @property
    def beside(self) -> dict[str, float]:
        """The keywords that a network's callable gets beside x and t: none at most places."""
        return {name: value for name in ("r", "guided_at") if (value := getattr(self, name)) is not None}


class Grid(Protocol):
    """The times of a sampler, from noise to image."""

    levels: tuple[float, ...]  # t of each step, 1 is noise

    def __len__(self) -> int: ...


def linear(t: float) -> Point:
    """The straight path, x_t = (1 - t) x_0 + t noise."""
    return Point(t, 1 - t, t, -1.0, 1.0)


def gvp(t: float) -> Point:
    """SiT's generalised variance-preserving path, alpha = cos(pi t / 2) and sigma = sin(pi t / 2); REPA's "cosine"."""
    quarter = math.pi / 2
    alpha, sigma = math.cos(quarter * t), math.sin(quarter * t)
    if t == 1:
        alpha = 0.0  # which the nearest double to a quarter of a circle misses by 6e-17
    return Point(t, alpha, sigma, -quarter * sigma, quarter * alpha)


BETA_MIN, BETA_MAX = 0.1, 20.0  # of the chain in continuous time (Song et al., arXiv 2011.13456)


def vp(t: float) -> Point:
    """SiT's variance-preserving path, log alpha = -(20 - 0.1) t^2 / 4 - 0.1 t / 2. At the image sigma has an infinite rate."""
    log_alpha = -(BETA_MAX - BETA_MIN) * t**2 / 4 - BETA_MIN * t / 2
    alpha, sigma = math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha))
    alpha_rate = -alpha * ((BETA_MAX - BETA_MIN) * t + BETA_MIN) / 2
    return Point(t, alpha, sigma, alpha_rate, -alpha * alpha_rate / sigma if sigma else math.inf)


Path = Callable[[float], Point]
PATHS: dict[str, Path] = {LINEAR: linear, "gvp": gvp, "vp": vp}  # those of a flow, which have a place at every t


def louder(path: Path, scale: float) -> Path:
    """The same path for noise of another standard deviation: `scale` times its sigma."""
    if scale == 1:
        return path

    def at(t: float) -> Point:
        point = path(t)
        return replace(point, sigma=scale * point.sigma, sigma_rate=scale * point.sigma_rate)

    return at
