"""Explicit tuples of places on a path, made by named builders: what "250 steps" are in one paper and not in another."""

from collections.abc import Callable
from dataclasses import dataclass

from fiducial.diffusion.paths import Point


@dataclass(frozen=True)
class Places:
    """Where a sampler of a flow stops, from noise to image: one place more than it takes steps."""

    points: tuple[Point, ...]

    def __len__(self) -> int:
        return len(self.points) - 1

    @property
    def levels(self) -> tuple[float, ...]:
        """The time at which each step begins."""
        return tuple(point.t for point in self.points[:-1])


def ends_included(path: Callable[[float], Point]) -> Callable[..., Places]:
    """A builder of N equally spaced places from 1 to 0, N - 1 steps apart: SiT's "N steps" (torchdiffeq on linspace(0, 1, N))."""

    def build(text: str, _device: object = None) -> Places:
        count = int(text)
        return Places(tuple(path((count - 1 - place) / (count - 1)) for place in range(count)))  # the doubles nearest to them

    return build
