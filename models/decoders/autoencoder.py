"""Autoencoders in diffusers' form: finding them, and one as a `Decoder`."""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiducial import QUOTED, UserError, file_sha256, quoted
from fiducial.models.checkpoints import hub
from fiducial.models.checkpoints.checkpoint import CONFIG_FILE, WEIGHTS_FILES, read_json, read_safetensors
from fiducial.models.decoders.affine import Affine, from_parts

if TYPE_CHECKING:
    from diffusers.models.upsampling import Upsample2D

CLASSES = ("AutoencoderKL", "AutoencoderTiny")
LATENT_SCALE = 0.18215  # Stable Diffusion's, which a configuration of that time does not tell
USUAL_CHANNELS, USUAL_FACTOR = 4, 8  # of the named ones
NAMED_VAES = {"ema": "stabilityai/sd-vae-ft-ema", "mse": "stabilityai/sd-vae-ft-mse"}
WEIGHTS_FILE = WEIGHTS_FILES[0]
LARGEST = 100_000  # beyond this a number of a configuration is none of a network


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


def read_config(folder: Path) -> dict:
    """The configuration of the autoencoder in `folder`, in which its class, channels, reduction and normalisation are sound.

    Raises:
        UserError: if it is none, or one of an autoencoder that latents cannot be handed to.
    """
    path = folder / CONFIG_FILE
    config = read_json(path)
    try:
        if (kind := config["_class_name"]) not in CLASSES:
            raise UserError(f"{path} describes a {str(kind)[:QUOTED]}, expected an {' or '.join(CLASSES)}")
        if not isinstance(channels := config["latent_channels"], int) or not 1 <= channels < LARGEST:
            raise ValueError(f"latent_channels {quoted(channels)}")
        reduction(config), normalisation(config), of_channels(config)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the configuration of an autoencoder ({error!r})") from error
    return config


def require_channels(found: int, wanted: int, vae: str, path: Path) -> None:
    """Raise UserError if an autoencoder's latents have other channels than the checkpoint in `path` takes."""
    if found != wanted:
        raise UserError(
            f"--vae {vae}: has {found} latent channels, but {path} takes {wanted}; give the autoencoder that it was trained with"
        )


def reduction(config: Mapping) -> int:
    """Image pixels a latent pixel, by the configuration.

    Raises:
        ValueError, KeyError, TypeError: if that does not tell.
    """
    is_tiny = config["_class_name"] == "AutoencoderTiny"
    levels = config["num_decoder_blocks" if is_tiny else "block_out_channels"]
    step = config["upsampling_scaling_factor"] if is_tiny else 2
    if not all(isinstance(number, int) and 1 <= number < LARGEST for number in (step, *levels)) or not 1 <= len(levels) < 16:
        raise ValueError(f"levels {quoted(levels)} with steps of {quoted(step)}")
    return step ** (len(levels) - 1)


def normalisation(config: Mapping) -> tuple[float, float]:
    """Scale and shift of the latents by the configuration: a diffusion model's are (z - shift) * scale for z of the autoencoder.

    Raises:
        ValueError: if they are no numbers, or nothing can be divided by the scale.
    """
    usual = 1.0 if config.get("_class_name") == "AutoencoderTiny" else LATENT_SCALE
    scale, shift = config.get("scaling_factor", usual), config.get("shift_factor")
    numbers = (scale, shift := 0.0 if shift is None else shift)
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in numbers) or not scale:
        raise ValueError(f"scaling_factor {quoted(scale)}, shift_factor {quoted(shift)}")
    return float(scale), float(shift)


def of_channels(config: Mapping) -> Affine:
    """The map of the latents by the configuration: that of `normalisation`, or each channel's own where it has `latents_mean` and
    `latents_std`, (z - mean) / std * scale as diffusers' pipelines have it.

    Raises:
        ValueError: if only one of them is there, or they are not a positive number for each channel.
    """
    scale, shift = normalisation(config)
    given = {name: config.get(f"latents_{name}") for name in ("mean", "std")}
    if not any(value is not None for value in given.values()):
        return Affine(scale, shift)
    channels = config["latent_channels"]
    if not all(isinstance(value, list) and len(value) == channels for value in given.values()):
        raise ValueError(f"latents_mean and latents_std are not {channels} numbers each")
    return from_parts({name: torch.tensor(value, dtype=torch.float64) for name, value in given.items()}, scale)


def merge_doubling(upsampler: "Upsample2D") -> None:
    """Make one transposed convolution of an upsampler's two steps, each pixel repeated twice both ways and a 3 x 3 convolution.

    Of nine neighbours there but four differ, so weights that meet the same one are added up here, and 4/9 of the products remain.
    """
    convolution = upsampler.conv
    flipped = convolution.weight.flip(2, 3).transpose(0, 1)
    merged = nn.ConvTranspose2d(convolution.in_channels, convolution.out_channels, kernel_size=4, stride=2, padding=1)
    sums = F.avg_pool2d(flipped, kernel_size=2, stride=1, padding=1, divisor_override=1)
    merged.weight = nn.Parameter(sums, requires_grad=False)
    merged.bias = convolution.bias
    upsampler.conv, upsampler.use_conv_transpose = merged, True


class Autoencoder(nn.Module):
    """The autoencoder in `folder`, a `Decoder`. Its images lie in memory pixel by pixel in half precision, as fast kernels want
    them, and its last layer stays float32.

    Raises:
        UserError: if a file is missing, or its configuration is not that of an autoencoder of `CLASSES`.
    """

    def __init__(self, folder: Path):
        super().__init__()
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise UserError(f"--vae {folder}: not a diffusers {CLASSES[0]} folder, {hub.lacking(folder, name)}")
        self.folder, self._config = folder, read_config(folder)
        self.kind, self.latent_channels = self._config["_class_name"], self._config["latent_channels"]
        self.factor = reduction(self._config)
        self.scale, self.shift = normalisation(self._config)
        self.affine = of_channels(self._config)
        self.vae: nn.Module | None = None

    @cached_property
    def sha256(self) -> str:
        """Of its weights."""
        return file_sha256(self.folder / WEIGHTS_FILE)

    def identity(self) -> dict[str, str | float]:
        """The hashes of weights and configuration, and scale and shift where they are not those of Stable Diffusion.

        Raises:
            UserError: if the weights are not whole, or are no numbers with a fraction.
        """
        weights = self.folder / WEIGHTS_FILE
        if odd := next((key for key, value in read_safetensors(weights).items() if not value.is_floating_point()), None):
            raise UserError(f"{weights}: {odd} is of no floating point dtype")
        # Names and versions that the library adds say nothing of the network.
        network = json.dumps({name: value for name, value in self._config.items() if not name.startswith("_")}, sort_keys=True)
        latents = {"latent_scale": (self.scale, LATENT_SCALE), "latent_shift": (self.shift, 0.0)}
        return {
            "vae_sha256": self.sha256,
            "vae_config_sha256": hashlib.sha256(network.encode()).hexdigest(),
            **{name: own for name, (own, usual) in latents.items() if own != usual},
        }

    def load(
        self,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        merge: bool = False,
        slicing: bool = False,
        tiling: bool = False,
        encoder: bool = False,
    ) -> "Autoencoder":
        """Load the weights, in evaluation mode, and return this.

        Args:
            merge: in half precision, have doubling merged (`merge_doubling`).
            encoder: for `encode` too.

        Raises:
            UserError: if they do not fit the configuration.
        """
        vae = self.network(encoder).to(device)
        for module in vae.decoder.modules():
            if isinstance(module, nn.SiLU):  # of what the layer before has made, which nothing else reads
                module.inplace = True
        if dtype != torch.float32:
            self._halve(vae, dtype, merge)
        if slicing:
            vae.enable_slicing()
        if tiling:
            vae.enable_tiling()
        self.vae = vae
        return self

    def network(self, _encoder: bool = False) -> nn.Module:
        """Diffusers' network with the weights, its encoder among them; UserError if they are not its own."""
        return from_folder(self.folder, self.kind)

    @property
    def posterior(self) -> bool:
        """Whether latents of an image are a distribution, of which there is a mode and samples."""
        return self.kind == "AutoencoderKL"

    def cannot_encode(self) -> str | None:
        """Why it makes no latents of images, in a clause; None if it does."""
        names = read_safetensors(self.folder / WEIGHTS_FILE)
        return None if any(name.startswith("encoder.") for name in names) else f"{WEIGHTS_FILE} holds no encoder"

    def _halve(self, vae: nn.Module, dtype: torch.dtype, merge: bool) -> None:
        """Have all but the last layer in half precision."""
        from diffusers.models.upsampling import Upsample2D

        decoder = vae.decoder
        if merge:
            for upsampler in [module for module in decoder.modules() if isinstance(module, Upsample2D)]:
                merge_doubling(upsampler)
        vae.to(dtype, memory_format=torch.channels_last)
        last = [decoder.layers[-1]] if self.kind == "AutoencoderTiny" else [decoder.conv_norm_out, decoder.conv_out]
        for module in last:  # in bfloat16 a pixel's last bit is half a grey level
            module.float()
        last[0].register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))

    def forward(self, latents: Tensor) -> Tensor:
        """Images (N, 3, H, W) of latents (N, C, h, w), as `Decoder`."""
        return self.vae.decode(self.affine.undo(latents).to(self.vae.dtype)).sample.to(latents.dtype)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents (N, C, h, w) of images (N, 3, H, W), as `Decoder`; the deviation that noise is multiplied by is bounded as
        diffusers bounds it."""
        found = self.vae.encode(images.to(self.vae.dtype))
        if not self.posterior:
            return self.affine.apply(found.latents.to(images.dtype))
        mean, deviation = (part.to(images.dtype) for part in (found.latent_dist.mean, found.latent_dist.std))
        return self.affine.apply(mean if noise is None else mean + deviation * noise)


def from_folder(folder: Path, kind: str) -> nn.Module:
    """The network of that class of diffusers', in evaluation mode.

    Raises:
        UserError: if its weights do not fit its configuration.
    """
    import diffusers
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        vae, info = getattr(diffusers, kind).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (ValueError, RuntimeError, OSError, TypeError) as error:
        raise UserError(f"the VAE in {folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    if wrong := [*info["missing_keys"], *info["unexpected_keys"]]:
        raise UserError(f"the VAE weights in {folder} do not fit its config.json: {len(wrong)} keys differ, {wrong[0]} first")
    return vae.eval().requires_grad_(False)
