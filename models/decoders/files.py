"""Facts of a codec that are known before it is loaded."""

from dataclasses import dataclass
from pathlib import Path

LATENT_SCALE = 0.18215  # Stable Diffusion's, which a configuration of that time does not tell


@dataclass(frozen=True)
class CodecFiles:
    """A codec on disk, its configuration read and its weights hashed but not loaded."""

    folder: Path
    sha256: str  # of the weights
    config_sha256: str
    latent_channels: int
    factor: int  # image pixels a latent pixel
    kind: str  # its class, by the configuration
    scale: float  # a diffusion model's latents are (z - shift) * scale for latents z of the codec
    shift: float

    def unlike_stable_diffusion(self) -> dict[str, float]:
        """Scale and shift, as a run's identity has them, where they are not those of Stable Diffusion."""
        usual = {"latent_scale": LATENT_SCALE, "latent_shift": 0.0}
        return {name: value for name, value in zip(usual, (self.scale, self.shift), strict=True) if value != usual[name]}
