"""The identity codec, `--vae pixels`: the diffusion model's latents are the image, of three channels in [-1, 1]."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fiducial.models.decoders.files import CodecFiles
from fiducial.models.decoders.rounding import to_uint8

NAME = "pixels"


class Pixels(nn.Module):
    """A decoder without weights, so that there is nothing to slice either."""

    def enable_slicing(self) -> None:
        """An image is not made at once or one by one."""

    def enable_tiling(self) -> None:
        """Nor in tiles."""


def takes(source: str) -> bool:
    return source == NAME


def resolve(_source: str, _cache_dir: Path | None = None) -> Path:
    return Path(NAME)


def inspect(_folder: Path) -> CodecFiles:
    return CodecFiles(Path(NAME), NAME, NAME, latent_channels=3, factor=1, kind=NAME, scale=1.0, shift=0.0)


def factor(_folder: Path) -> int:
    return 1


def sha256(_folder: Path) -> str:
    return NAME


def load(_folder: Path, device: torch.device, _dtype: torch.dtype = torch.float32, _merge: bool = False) -> Pixels:
    return Pixels().to(device)


def decode(_loaded: Pixels, latents: Tensor, rounding: str = "dit") -> Tensor:
    """Images (N, 3, H, W) as the diffusion model makes them -> (N, H, W, 3) uint8 on the same device."""
    return to_uint8(latents, rounding)
