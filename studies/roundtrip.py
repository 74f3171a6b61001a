"""Images through an autoencoder and back, batch by batch."""

import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fiducial import Group, UserError, printable
from fiducial.models.checkpoints import catalogue
from fiducial.models.decoders import rounding
from fiducial.models.decoders.table import Decoder, decoder_of
from fiducial.precision import float32_products
from fiducial.sampling.noise import NOISE_VERSION, check_stream, standard_normal
from fiducial.sampling.source.numerics import DTYPES, is_ampere


@dataclass(frozen=True)
class How:
    """How an autoencoder is run: `precision` of DTYPES, `rounding` as the option has it, `seed` of samples of the posterior;
    None for its mode."""

    precision: str
    rounding: str
    seed: int | None

    def check(self, device: torch.device) -> None:
        """Raise UserError if this device does not have what is asked for, or numpy draws other noise than before."""
        if self.precision in ("tf32", "bf16") and device.type == "cuda" and not is_ampere(device):
            raise UserError(f"--precision {self.precision}: needs a GPU of compute capability 8.0 or later; use fp32")
        if self.precision == "tf32" and device.type != "cuda":
            raise UserError("--precision tf32: needs a GPU, and this runs on a CPU; use fp32")
        if self.seed is not None:
            check_stream()


def open_codec(vae: str, group: Group, cache_dir: Path | None) -> Decoder:
    """The codec that `--vae` says, fetched if it has to be, its configuration read and its weights not loaded.

    Raises:
        UserError: if there is none, it cannot encode, or a node has another file than the first one.
    """

    def find() -> str:
        source = str(catalogue.find_given(Path(vae), "--vae", cache_dir)) if catalogue.place_of(vae) else vae
        return str(decoder_of(source).find(source, cache_dir))

    path = group.once_per_node(["vae-files", vae, cache_dir], find, main_first=True)
    codec = decoder_of(path).open(Path(path))
    if why := codec.cannot_encode():
        raise UserError(f"--vae {vae}: cannot encode images, as {why}; give an autoencoder with its encoder")
    told = group.once(codec.identity)
    if group.local_rank == 0 and codec.identity() != told:
        raise UserError(f"--vae {vae} on {socket.gethostname()} is another file than on the first node")
    return codec


def check_size(codec: Decoder, vae: str, height: int, width: int) -> None:
    """Raise UserError if the codec makes no latents of images of this size, or of others too small for it."""
    if height % codec.factor or width % codec.factor:
        raise UserError(
            f"--vae {vae}: takes images whose sides are multiples of {codec.factor}, and these are {width} x {height}; give "
            "--image-size, which crops files of images"
        )


class Roundtrip:
    """Images after an autoencoder: (B, H, W, 3) uint8 and their indices (B,) -> reconstructions (B, H, W, 3), uint8, or
    float32 levels from 0 to 255 without rounding.

    Raises:
        UserError: if the codec's weights do not fit its configuration.
    """

    def __init__(self, codec: Decoder, how: How, device: torch.device):
        self._codec, self._how, self._device = codec, how, device
        codec.load(device, DTYPES[how.precision], encoder=True)

    @torch.inference_mode()
    def __call__(self, batch: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Reconstruct a batch.

        Raises:
            UserError: if a reconstruction is not finite, as in half precision it may be.
        """
        images = torch.from_numpy(batch).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with float32_products(tf32=self._how.precision == "tf32"):
            found = self._codec(self._codec.encode(images, self._noise(batch.shape[1:3], indices)))
        if found.shape != images.shape:
            raise UserError(f"the autoencoder made {tuple(found.shape)} of images {tuple(images.shape)}, which are to be alike")
        if not (is_finite := found.isfinite().flatten(1).all(1)).all():
            bad = int(indices[int((~is_finite).nonzero()[0])])
            raise UserError(
                f"the reconstruction of image {bad} is not finite in {self._how.precision}; give --precision fp32, or see that "
                "the weights are whole"
            )
        return rounding.to_pixels(found, rounding.recorded(self._how.rounding)).cpu().numpy()

    def _noise(self, size: tuple[int, int], indices: np.ndarray) -> torch.Tensor | None:
        """Standard normal (B, C, h, w), each image's a function of seed and index; None for the mode."""
        if self._how.seed is None:
            return None
        shape = (self._codec.latent_channels, *(side // self._codec.factor for side in size))
        rows = [standard_normal(self._how.seed, int(index), 0, shape) for index in indices]
        return torch.from_numpy(np.stack(rows)).to(self._device)

    def recorded(self, vae: str) -> dict[str, str | int | float | None]:
        """The codec and how it is run, as results record it."""
        codec, how = self._codec, self._how
        affine = codec.affine
        plain = not getattr(codec, "needs_statistics", False) and isinstance(affine.scale, float)
        return {
            "vae": printable(vae),
            "kind": getattr(codec, "kind", type(codec).__name__),
            **{name: value for name, value in codec.identity().items() if name.endswith("sha256")},
            "latent_channels": codec.latent_channels,
            "factor": codec.factor,
            "latent_scale": affine.scale if plain else None,
            "latent_shift": affine.shift if plain else None,
            "posterior": "none" if not codec.posterior else "mode" if how.seed is None else "sample",
            "seed": how.seed,
            "noise": None if how.seed is None else NOISE_VERSION,
            "precision": how.precision,
            "rounding": how.rounding,
        }
