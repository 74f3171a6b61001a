"""DECODERS: what makes pixels of a diffusion model's latents, and mostly latents of pixels too. A codec is a file and a row; the
first that takes what `--vae` says has it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fiducial.models.decoders import autoencoder, ldm, pixels, vit
from fiducial.models.decoders.affine import Affine


class Decoder(Protocol):
    """A codec, an `nn.Module`, whose configuration is read; its weights are when they are loaded."""

    folder: Path
    latent_channels: int
    factor: int  # image pixels a latent pixel, both ways
    sha256: str  # of its weights
    affine: Affine  # from the diffusion model's latents to its own: by its configuration, until another is put in the place
    posterior: bool  # whether latents of an image are a distribution, of which there is a mode and samples

    def identity(self) -> dict[str, str | float]:
        """Everything that images depend on, by its names in a run's identity; UserError if the weights are not whole."""

    def load(
        self,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        merge: bool = False,
        slicing: bool = False,
        tiling: bool = False,
        encoder: bool = False,
    ) -> "Decoder":
        """Load the weights, in evaluation mode, and return this.

        Args:
            dtype: what it multiplies in.
            merge: in half precision, layers may be merged for speed.
            slicing: decode one image at a time.
            tiling: decode large images in tiles.
            encoder: also what `encode` needs, where it can encode.

        Raises:
            UserError: if they do not fit the configuration.
        """

    def __call__(self, latents: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] and somewhat beyond, on the same device, of latents (N, C, h, w) as the diffusion model
        makes them; NaN or infinity where the dtype does not hold its values."""

    def cannot_encode(self) -> str | None:
        """Why it makes no latents of images, in a clause; None if it does."""

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents (N, C, h, w), as the diffusion model makes them, of images (N, 3, H, W) in [-1, 1] on the same device.

        Args:
            noise: standard normal, (N, C, h, w), for a sample of the posterior; None for its mode. Without a `posterior` it
                changes nothing.
        """


@dataclass(frozen=True)
class DecoderSpec:
    """A row of DECODERS."""

    name: str
    takes: Callable[[str], bool]  # whether `--vae` says this codec
    find: Callable[[str, Path | None], Path]  # the local folder of what `--vae` says, fetched into a cache if it has to be
    open: Callable[[Path], Decoder]


DECODERS: dict[str, DecoderSpec] = {
    spec.name: spec
    for spec in (
        DecoderSpec(pixels.NAME, lambda source: source == pixels.NAME, lambda *_: Path(pixels.NAME), pixels.Pixels),
        DecoderSpec("vit", vit.holds, lambda source, _: Path(source), vit.ViTDecoder),
        DecoderSpec("ldm", lambda source: Path(source).is_file(), lambda source, _: Path(source), ldm.LDMAutoencoder),
        DecoderSpec("autoencoder", lambda _: True, autoencoder.resolve, autoencoder.Autoencoder),
    )
}


def decoder_of(source: str) -> DecoderSpec:
    """The row of the codec that `--vae` says."""
    return next(spec for spec in DECODERS.values() if spec.takes(source))
