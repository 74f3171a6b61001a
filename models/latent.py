"""The shape of what a diffusion model draws before a codec makes pixels of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LatentShape:
    """A square latent, (channels, size, size)."""

    channels: int
    size: int
