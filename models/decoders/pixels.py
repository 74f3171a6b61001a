"""The identity codec, `--vae pixels`: the diffusion model's latents are the image, of three channels in [-1, 1]."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fiducial.models.decoders.affine import Affine

NAME = "pixels"


class Pixels(nn.Module):
    """A `Decoder` of which nothing is on a disk, and nothing is loaded."""

    latent_channels, factor, sha256, posterior = 3, 1, NAME, False

    def __init__(self, folder: Path = Path(NAME)):
        super().__init__()
        self.folder, self.affine = folder, Affine()

    def identity(self) -> dict[str, str | float]:
        return {"vae_sha256": NAME, "vae_config_sha256": NAME, "latent_scale": 1.0}

    def load(self, _device: torch.device, _dtype: torch.dtype = torch.float32, **_: bool) -> "Pixels":
        return self

    def cannot_encode(self) -> None:
        """Why it makes no latents of images: it does."""

    def forward(self, latents: Tensor) -> Tensor:
        return self.affine.undo(latents)

    def encode(self, images: Tensor, _noise: Tensor | None = None) -> Tensor:
        return self.affine.apply(images)
