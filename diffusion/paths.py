"""Places on the way from an image to noise: x_t = alpha x_0 + sigma noise, t = 0 the image and t = 1 noise."""

from dataclasses import dataclass
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


class Grid(Protocol):
    """The times of a sampler, from noise to image."""

    levels: tuple[float, ...]  # t of each step, 1 is noise

    def __len__(self) -> int: ...


def linear(t: float) -> Point:
    """The straight path, x_t = (1 - t) x_0 + t noise."""
    return Point(t, 1 - t, t, -1.0, 1.0)
