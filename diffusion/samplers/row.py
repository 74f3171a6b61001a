"""A row of SAMPLERS: a function, and what a run has to know of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fiducial.diffusion.grids import STEPS, Places, Spacing
from fiducial.diffusion.paths import CHAIN, LINEAR, PATHS, Grid, Path

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MOST_PLACES = 100_000  # beyond this a number is a slip of the hand
FLOWS = tuple(PATHS)


@dataclass(frozen=True)
class Option:
    """A number that a sampler takes beside its steps, given as the option of the same name."""

    default: float
    low: float
    high: float
    said: str  # what is allowed, after "must be"
    help: str  # what it is, in --help

    def allows(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Choice:
    """A name that a sampler takes beside its steps, given as the option of the same name."""

    default: str
    names: tuple[str, ...]
    help: str

    @property
    def said(self) -> str:
        return f"one of {', '.join(self.names)}"

    def allows(self, value: str) -> bool:
        return value in self.names


def no_noise(_steps: int, **_: object) -> int:
    """The number of noise tensors of a deterministic sampler, 0."""
    return 0


def _no_demand(_spacing: Spacing, _path: Path, **_: object) -> None:
    return None


@dataclass(frozen=True)
class Sampler:
    """A row of SAMPLERS."""

    draw: Callable[..., "Tensor"]  # (denoise, x, grid, noise, **options) -> latents
    steps: Callable[[str], int]  # of --num-sampling-steps; raises ValueError, a sentence whose subject is the sampler
    grid: Callable[[str, "torch.device"], Grid]  # for steps that were accepted; of a flow, also a path and a spacing
    noises: Callable[..., int] = no_noise  # (steps of the grid, **options) -> noise tensors drawn after the initial latents
    solves: tuple[str, ...] = (CHAIN,)  # paths
    options: Mapping[str, Option | Choice] = field(default_factory=dict)
    said: str = "for DiT"  # of it in --help
    spacing: Spacing | None = None  # of a flow's places, unless another is asked for
    takes: tuple[str, ...] | None = None  # of PREDICTIONS; None: all
    # (spacing, path, predicts=, **options) -> why it cannot draw so, a sentence whose subject is the spacing, or None
    demand: Callable[..., str | None] = _no_demand
    is_joint: bool = False  # images of a batch share its steps, so that each depends on which others there are
    checked_by: str | None = None  # a sampler that stands in for it where numerics are verified in a few steps


def why_not(sampler: Sampler, spacing: Spacing, path: Path, predicts: str, options: Mapping[str, object]) -> str | None:
    """Why a sampler of a flow cannot draw at such places, a sentence whose subject is the spacing; None if it can."""
    if predicts in ("noise", "score") and path(spacing.start).alpha == 0:
        return f"begins at pure noise, of which a {predicts} tells no image; give one that begins earlier, such as start=0.999"
    return sampler.demand(spacing, path, predicts=predicts, **options)


def counted(least: int = 1, most: int | None = None) -> Callable[[str], int]:
    """A reader of a number of steps between these."""

    def read(text: str) -> int:
        if not text.isdecimal():
            raise ValueError("takes a count such as 20")
        if most and int(text) > most:
            raise ValueError(f"takes at most {most}")
        if int(text) < least:
            raise ValueError(f"takes at least {least}")
        return int(text)

    return read


def of_flow(draw: Callable[..., "Tensor"], spacing: Spacing = STEPS, **more: object) -> Sampler:
    """The row of a sampler of a flow."""

    def grid(steps: str, _device: object = None, path: Path = PATHS[LINEAR], asked: Spacing | None = None) -> Places:
        return (asked or spacing).places(path, int(steps))

    least = 1 if spacing.of_steps else 2
    row = {"solves": FLOWS, "said": "for SiT and its kin"} | more
    return Sampler(draw, counted(least=least, most=MOST_PLACES), grid, spacing=spacing, **row)
