"""The shape of what a diffusion model draws before a codec makes pixels of it, and the statistics that it was trained with."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LatentShape:
    """A square latent, (channels, size, size)."""

    channels: int
    size: int


@dataclass(frozen=True)
class LatentStatistics:
    """A channel's scale and bias, (1, C, 1, 1) float32 each: a codec decodes z / scale + bias of a diffusion model's z."""

    scale: "Tensor"
    bias: "Tensor"
