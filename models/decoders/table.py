"""DECODERS: what makes pixels of a diffusion model's latents. A codec is a file and a row; the first that takes what `--vae` says
has it.
"""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from fiducial.models.decoders import autoencoder, pixels
from fiducial.models.decoders.files import CodecFiles


class Decoder(Protocol):
    """Protocol of a codec's file."""

    def takes(self, source: str) -> bool:
        """Whether `--vae` says this codec."""

    def resolve(self, source: str, cache_dir: Path | None = None) -> Path:
        """The local folder of what `--vae` says, fetched if it has to be."""

    def inspect(self, folder: Path) -> CodecFiles:
        """Facts of the codec, its weights hashed but not loaded."""

    def factor(self, folder: Path) -> int:
        """Image pixels a latent pixel, both ways; the weights are not read."""

    def sha256(self, folder: Path) -> str | None:
        """The hash of its weights; None where they are missing."""

    def load(self, folder: Path, device: torch.device, dtype: torch.dtype = torch.float32, merge: bool = False) -> nn.Module:
        """The codec on a device, in evaluation mode."""

    def decode(self, loaded: nn.Module, latents: Tensor, rounding: str = "dit") -> Tensor:
        """Latents (N, C, h, w) as the diffusion model makes them -> images (N, H, W, 3) uint8 on the same device."""


DECODERS: dict[str, Decoder] = {pixels.NAME: pixels, "autoencoder": autoencoder}


def decoder_of(source: str) -> Decoder:
    """The codec that `--vae` says."""
    return next(decoder for decoder in DECODERS.values() if decoder.takes(source))
