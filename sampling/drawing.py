"""Turning indices into pixels on one device, and what to do when memory runs out or numbers overflow."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.samplers import SAMPLERS, noise_draws
from diffusion.schedule import Schedule
from distributed import UserError
from models import autoencoder, checkpoint
from models.dit import guided_model
from sampling import plan
from sampling.config import SamplingConfig
from sampling.noise import NoiseStream

# As torch, and the libraries beneath it, say it where it is no error of a kind of its own.
OUT_OF_MEMORY = (
    *("can't allocate memory", "not enough memory", "could not create a primitive", "CUDA error: out of memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)


class Drawer:
    """Draws whole blocks; loads its networks when they are first needed.

    Args:
        find_vae: gives the autoencoder's folder.
        latent: channels and size of a latent.
        note: called with what is out of the ordinary.
    """

    def __init__(
        self,
        config: SamplingConfig,
        device: torch.device,
        find_vae: Callable[[], Path],
        latent: tuple[int, int],
        note: Callable[..., object],
    ):
        self._config, self._device, self._find_vae, self._note = config, device, find_vae, note
        self._channels, self._input_size = latent
        self._batch = config.per_proc_batch_size
        self._networks: tuple | None = None

    def load(self) -> None:
        if self._networks is None:
            config, device = self._config, self._device
            vae = autoencoder.load(self._find_vae(), device)
            shape = (self._input_size, self._channels)
            dit = checkpoint.load_dit(config.ckpt, config.model, config.num_classes, *shape, device)
            self._networks = dit, vae, Schedule.create(config.num_sampling_steps, device)

    def blocks(self, starts: Iterable[int], count: int, check: Callable[[], object]) -> Iterator[tuple[int, np.ndarray]]:
        """The blocks that begin at `starts`: first index, and pixels (per_proc_batch_size, H, W, 3) uint8.

        Where a block does not fit into memory, this and the following are drawn in halves, and so on.

        Args:
            count: indices from here on only fill up the last block; it does not matter what becomes of them.
            check: called before each evaluation of the network.

        Raises:
            UserError: if memory is not enough for one image, or latents are not finite.
        """
        self.load()
        left = [int(start) for start in starts]
        while left:
            try:
                yield from self._blocks(left, count, check)
            except Exception as error:
                if not is_out_of_memory(error):
                    error.add_note(f"while drawing {self._name(left[0])}")
                    raise
                if self._batch == 1:
                    raise UserError(f"out of memory for a single image, of {self._name(left[0])} ({one_line(error)})") from error
                reason = one_line(error)
            else:
                return
            self._batch = -(-self._batch // 2)
            self._note(event="out of memory", batch=self._batch, images=self._name(left[0]), reason=reason)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _name(self, start: int) -> str:
        return f"images {start} to {start + self._config.per_proc_batch_size - 1}"

    @torch.inference_mode()
    def _blocks(self, left: list[int], count: int, check: Callable[[], object]) -> Iterator[tuple[int, np.ndarray]]:
        """As `blocks`; takes from `left` what is drawn."""
        size = self._config.per_proc_batch_size
        pieces = [
            range(first, min(first + self._batch, start + size))
            for start in left
            for first in range(start, start + size, self._batch)
        ]
        with self._noise(pieces) as noise:
            pixels = []
            for piece in pieces:
                latents = self._finite(piece, count, self._latents(piece, noise, check), check)
                pixels.append(autoencoder.decode(self._networks[1], latents, self._config.rounding).cpu().numpy())
                if piece.stop == left[0] + size:
                    block = pixels[0] if len(pixels) == 1 else np.concatenate(pixels)
                    pixels = []
                    yield left[0], block
                    left.pop(0)

    def _noise(self, pieces: list[range]) -> NoiseStream:
        config, (_, _, schedule) = self._config, self._networks
        draws = noise_draws(config.sampler, config.eta, len(schedule))
        shape = (self._channels, self._input_size, self._input_size)
        return NoiseStream(config.global_seed, pieces, shape, draws, self._device)

    def _latents(self, piece: range, noise: NoiseStream, check: Callable[[], object]) -> Tensor:
        config, (dit, _, schedule) = self._config, self._networks
        labels = plan.labels(config.labels, config.num_classes, config.global_seed, piece.start, piece.stop)
        guided = guided_model(dit, torch.from_numpy(labels).to(self._device), config.cfg_scale, config.cfg_channels)

        def model(x: Tensor, t: Tensor) -> Tensor:
            check()
            return guided(x, t)

        sampler = partial(SAMPLERS[config.sampler], **({"eta": config.eta} if config.sampler == "ddim" else {}))
        return sampler(model, next(noise), schedule, noise)

    def _finite(self, piece: range, count: int, latents: Tensor, check: Callable[[], object]) -> Tensor:
        """The same latents if all are finite, else with those that are not drawn once more, in fp32."""
        bad = ~latents.isfinite().flatten(1).all(1)
        bad[max(count - piece.start, 0) :] = False
        if not bad.any():
            return latents
        with in_fp32(), self._noise([piece]) as noise:
            again = self._latents(piece, noise, check)
        latents = torch.where(bad[:, None, None, None], again, latents)
        indices = [piece[row] for row in bad.nonzero().flatten().tolist()]
        self._note(event="not finite, drawn again in fp32", indices=indices)
        if lost := [index for index in indices if not latents[index - piece.start].isfinite().all()]:
            named = ", ".join(map(str, lost[:10])) + (f" and {len(lost) - 10} more" if len(lost) > 10 else "")
            raise UserError(
                f"the model gave NaN or infinity for image{'s' * (len(lost) > 1)} {named}, also in fp32; they were not written"
            )
        return latents


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may help."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


def one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextmanager
def in_fp32() -> Iterator[None]:
    """No TF32 in here."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
