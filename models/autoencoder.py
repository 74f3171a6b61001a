"""The Stable Diffusion autoencoder: finding, loading, decoding; the one place with the latent scale and the uint8 rounding."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distributed import UserError, file_sha256
from models import hub
from models.checkpoint import read_safetensors

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

LATENT_SCALE = 0.18215
NAMED_VAES = {"ema": "stabilityai/sd-vae-ft-ema", "mse": "stabilityai/sd-vae-ft-mse"}
WEIGHTS_FILE = f"{hub.WEIGHTS}.safetensors"

# Pixels in [-1, 1] to levels before truncation. `dit` is DiT's and ADM's; `repa` is half a level darker.
ROUNDING = {"dit": (127.5, 128.0), "repa": (127.5, 127.5)}


@dataclass(frozen=True)
class VaeFiles:
    """An autoencoder on disk, its configuration read and its weights hashed but not loaded."""

    folder: Path
    sha256: str  # of the weights
    config_sha256: str
    latent_channels: int
    factor: int  # image pixels a latent pixel


def resolve(source: str, cache_dir: Path | None = None) -> Path:
    """The local folder of an autoencoder: `ema`, `mse`, a folder, or a hub id, which is downloaded if it is not cached.

    Raises:
        UserError: if there is no such folder, or the hub does not give it.
    """
    if source and Path(source).is_dir():
        return Path(source)
    repository = NAMED_VAES.get(source, source)
    if not hub.is_hub_id(repository):
        raise UserError(f"--vae {source}: no such folder; give ema, mse, a local diffusers folder or a hub id such as owner/name")
    return hub.snapshot(repository, f"--vae {source}", cache_dir)


def inspect(folder: Path) -> VaeFiles:
    """Reads the configuration and hashes the weights of the autoencoder in `folder`.

    Raises:
        UserError: if a file is missing, damaged, or not of an AutoencoderKL.
    """
    config_file, weights = folder / "config.json", folder / WEIGHTS_FILE
    for file in (config_file, weights):
        if not file.is_file():
            raise UserError(f"--vae {folder}: not a diffusers AutoencoderKL folder, it has no {file.name}")
    try:
        config = json.loads(config_file.read_text())
        if (kind := config["_class_name"]) != "AutoencoderKL":
            raise UserError(f"{config_file} describes a {kind}, expected an AutoencoderKL")
        channels, blocks = config["latent_channels"], config["block_out_channels"]
        if not all(isinstance(number, int) and number > 0 for number in (channels, *blocks)) or not blocks:
            raise ValueError(f"latent_channels {channels!r}, block_out_channels {blocks!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{config_file} is not the configuration of an AutoencoderKL ({error!r})") from error
    read_safetensors(weights)
    # Names and versions that the library adds say nothing of the network.
    network = json.dumps({name: value for name, value in config.items() if not name.startswith("_")}, sort_keys=True)
    config_sha256 = hashlib.sha256(network.encode()).hexdigest()
    return VaeFiles(folder, file_sha256(weights), config_sha256, channels, 2 ** (len(blocks) - 1))


def load(folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> "AutoencoderKL":
    """The autoencoder, in evaluation mode; in half precision its images lie in memory pixel by pixel, as fast kernels want them.

    Raises:
        UserError: if its weights do not fit its configuration.
    """
    from diffusers import AutoencoderKL
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        vae, info = AutoencoderKL.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (ValueError, RuntimeError, OSError, TypeError) as error:
        raise UserError(f"the VAE in {folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    if wrong := [*info["missing_keys"], *info["unexpected_keys"]]:
        raise UserError(f"the VAE weights in {folder} do not fit its config.json: {len(wrong)} keys differ, {wrong[0]} first")
    vae = vae.eval().requires_grad_(False).to(device)
    return vae if dtype == torch.float32 else vae.to(dtype, memory_format=torch.channels_last)


def decode(vae: "AutoencoderKL", latents: Tensor, rounding: str = "dit") -> Tensor:
    """Latents (N, C, h, w) as the diffusion model makes them -> images (N, H, W, 3) uint8 on the same device.

    Raises:
        OverflowError: if a decoder in float16 went beyond what that holds.
    """
    images = vae.decode((latents / LATENT_SCALE).to(vae.dtype)).sample.to(latents.dtype)
    if vae.dtype == torch.float16 and not images.isfinite().all():
        raise OverflowError("the autoencoder's values do not fit into float16")
    return to_uint8(images, rounding)


def to_uint8(images: Tensor, rounding: str = "dit") -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] -> (N, H, W, 3) uint8: truncate(clamp(scale x + offset, 0, 255))."""
    scale, offset = ROUNDING[rounding]
    return (scale * images + offset).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)
