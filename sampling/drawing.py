"""Turning indices into pixels on one device, and what to do when memory runs out or numbers overflow."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fiducial import UserError, warn
from fiducial.diffusion.guidance import Guidance, guided
from fiducial.diffusion.prediction import PREDICTIONS, Raw
from fiducial.diffusion.samplers import SAMPLERS
from fiducial.models import probe
from fiducial.models.checkpoints import checkpoint
from fiducial.models.decoders.table import decoder_of
from fiducial.models.networks.dit import DiT
from fiducial.models.networks.table import NetworkSpec, asked, spec_of
from fiducial.sampling import memory, numerics, plan
from fiducial.sampling.noise import NoiseStream
from fiducial.sampling.numerics import REFERENCE, Numerics
from fiducial.sampling.options.config import SamplingConfig

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

# As torch, and the libraries beneath it, say it where it is no error of a kind of its own.
OUT_OF_MEMORY = (
    *("can't allocate memory", "not enough memory", "could not create a primitive", "CUDA error: out of memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)


class Drawer:
    """Draws whole blocks; loads its networks when they are first needed.

    Args:
        how: precision, compilation and kernels.
        find_vae: gives the autoencoder's folder.
        latent: channels and size of a latent.
        note: called with what is out of the ordinary.
    """

    def __init__(
        self,
        config: SamplingConfig,
        device: torch.device,
        how: Numerics,
        find_vae: Callable[[], Path],
        latent: tuple[int, int],
        note: Callable[..., object],
    ):
        self.config, self._device, self.how, self._find_vae, self._note = config, device, how, find_vae, note
        self._channels, self._input_size = latent
        self._batch = config.per_proc_batch_size
        self._networks: tuple[DiT, AutoencoderKL] | None = None
        self.response: probe.Response | None = None  # of the network, unless `--no-probe`
        self._dit_in_fp32: DiT | None = None  # loaded if numbers overflow
        self._vae_in_fp32: AutoencoderKL | None = None
        low, high = config.guidance_interval
        self.guidance = Guidance(config.cfg_scale, config.cfg_channels, low, high)
        self._spec, self._codec = spec_of(config.model), decoder_of(config.vae)
        self._sampler = SAMPLERS[config.sampler]
        self._grid = self._sampler.grid(config.num_sampling_steps, device)
        self._beside = torch.cuda.Stream(device) if config.cuda_tuning else None

    def load(self) -> None:
        """Loads the networks, and compiles what is to be compiled.

        Raises:
            UserError: if the network is not of the kind that the samplers take, as pure noise tells.
        """
        if self._networks is None:
            dit = self._load_dit(self.how)
            if self.config.probe:
                self.response = self._probe(dit)
            self._networks = dit, self._load_vae(self.how)
            if self.how.compile:
                self._compile()

    def _load_dit(self, how: Numerics) -> DiT:
        config, shape = self.config, (self._input_size, self._channels)
        where = self._place("model")
        named = config.network, config.weights_key
        dit = checkpoint.load_dit(config.ckpt, config.model, config.num_classes, *shape, where, *named)
        if how.attention == "products":
            dit.attend_by_products()
        return dit if how.dtype == torch.float32 else dit.to_half(how.dtype)

    def _probe(self, dit: DiT) -> probe.Response:
        """What the network makes of pure noise; asked in fp32 if it overflows in less, as it then draws (see `_finite`).

        Raises:
            UserError: if it is not what a network of its family makes of it.
        """

        config = self.config
        with_null = dit.null_label is not None and (config.cfg_scale != 1.0 or config.labels == "null")

        def respond(network: DiT, spec: NetworkSpec) -> probe.Response:
            with self._at_work(network, "model"):
                return probe.respond(network, config.num_classes, self._input_size, self._device, with_null, spec)

        found = respond(dit, self._spec)
        if not found.is_finite and self.how.dtype != torch.float32:
            found = respond(dit := self._load_dit(REFERENCE), self._spec)
        probe.require(found, config.ckpt, self._spec, lambda spec: respond(dit, spec))
        return found

    def _load_vae(self, how: Numerics) -> "AutoencoderKL":
        merge = self._device.type == "cpu" and how.dtype == torch.bfloat16  # slower in fp16, and on a GPU not measured
        vae = self._codec.load(self._find_vae(), self._place("vae"), how.dtype, merge)
        if how.vae_slicing:
            vae.enable_slicing()
        if self.config.vae_tiling:
            vae.enable_tiling()
        return vae

    @torch.inference_mode()
    def _compile(self) -> None:
        """Compiles the network for the shapes that it will meet; if that fails, goes on without."""
        numerics.compile_network(self._networks[0], self.config, self._device)
        try:
            with self._at_work(self._networks[0], "model"):
                for images in {len(piece) for piece in self._pieces([0])}:
                    x = torch.zeros(images, self._channels, self._input_size, self._input_size, device=self._device)
                    for t in self.guidance.times():
                        self.guided(range(images))(x, t)
        except Exception as error:
            if is_out_of_memory(error):
                return  # which the first block will find too, and draw in halves
            self._note(event="not compiled", reason=one_line(error))
            warn(f"warning: torch.compile failed, so this rank runs without it ({one_line(error)})")
            self._networks = self._load_dit(self.how), self._networks[1]

    def _place(self, network: str) -> torch.device:
        """Where a network is while it has nothing to do."""
        return torch.device("cpu") if self.config.offload in (network, "both") else self._device

    @contextmanager
    def _at_work(self, network: "DiT | AutoencoderKL", name: str) -> Iterator[None]:
        """Has a network on the device in here."""
        network.to(self._device)
        try:
            yield
        finally:
            network.to(self._place(name))

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
            if self.how.compile:
                self._compile()  # anew, so that what was compiled for more images gives its memory back
            memory.release(self._device)

    def _name(self, start: int) -> str:
        return f"images {start} to {start + self.config.per_proc_batch_size - 1}"

    @torch.inference_mode()
    def _blocks(self, left: list[int], count: int, check: Callable[[], object]) -> Iterator[tuple[int, np.ndarray]]:
        """As `blocks`; takes from `left` what is drawn."""
        size, pieces = self.config.per_proc_batch_size, self._pieces(left)
        with self._noise(pieces) as noise:
            block: list[Tensor] = []
            for piece in pieces:
                with self._at_work(self._networks[0], "model"):
                    latents = self._sample(self._networks[0], piece, noise, check)
                    latents = self._finite(piece, count, latents, check)
                if block and piece.start % size == 0:  # decoded while these latents were made
                    yield left.pop(0), self._take(block)
                block.append(self._decode(latents))
                if piece.stop % size == 0 and not self._beside:
                    yield left.pop(0), self._take(block)
            if block:
                yield left.pop(0), self._take(block)

    def _pieces(self, starts: list[int]) -> list[range]:
        """The blocks that begin at `starts`, in pieces that are drawn at once."""
        size = self.config.per_proc_batch_size
        return [
            range(first, min(first + self._batch, start + size))
            for start in starts
            for first in range(start, start + size, self._batch)
        ]

    def _take(self, block: list[Tensor]) -> np.ndarray:
        """The pixels of a block, once they are there; empties it."""
        if self._beside:
            self._beside.synchronize()
        pixels = (block[0] if len(block) == 1 else torch.cat(block)).numpy()
        block.clear()
        return pixels

    def _decode(self, latents: Tensor) -> Tensor:
        """Pixels in the host's memory; with a stream of its own, they are there when that has come so far."""
        if not self._beside:
            return self.pixels(latents).cpu()
        self._beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._beside):
            pixels = self.pixels(latents)
            latents.record_stream(self._beside)
            return torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True).copy_(pixels, non_blocking=True)

    def pixels(self, latents: Tensor) -> Tensor:
        """Images (N, H, W, 3) uint8; decoded once more in fp32 if they do not fit into fp16."""
        _, vae = self._networks
        try:
            with self._at_work(vae, "vae"):
                return self._codec.decode(vae, latents, self.config.rounding)
        except OverflowError as error:
            self._note(event="decoded again in fp32", reason=str(error))
            if self._vae_in_fp32 is None:
                self._vae_in_fp32 = self._load_vae(replace(self.how, precision="fp32"))
            with self._at_work(self._vae_in_fp32, "vae"):
                return self._codec.decode(self._vae_in_fp32, latents, self.config.rounding)

    def _noise(self, pieces: list[range]) -> NoiseStream:
        config = self.config
        draws = self._sampler.noises(config.count_steps(), **config.sampler_options())
        shape = (self._channels, self._input_size, self._input_size)
        return NoiseStream(config.global_seed, pieces, shape, draws, self._device)

    def guided(self, piece: range, dit: DiT | None = None) -> Raw:
        """The network, or another, for the labels of `piece`, guided."""
        config, network = self.config, dit or self._networks[0]
        labels = plan.labels(config.labels, config.num_classes, config.global_seed, piece.start, piece.stop)
        y = torch.from_numpy(labels).to(self._device)
        null = torch.full_like(y, network.null_label) if config.cfg_scale != 1.0 else None
        return guided(asked(network, self._spec, shared_timestep=not config.exact), null, y, self.guidance)

    @torch.inference_mode()
    def latents(self, piece: range, check: Callable[[], object], dit: DiT | None = None) -> Tensor:
        """The latents of one batch (N, C, H, W), by the network that is loaded or another."""
        with self._noise([piece]) as noise:
            return self._sample(dit or self._networks[0], piece, noise, check)

    def _sample(self, dit: DiT, piece: range, noise: NoiseStream, check: Callable[[], object]) -> Tensor:
        predict = self.guided(piece, dit)

        def model(x: Tensor, t: float) -> Tensor:
            check()
            return predict(x, t)

        return self._solve(model, noise)

    def _solve(self, model: Raw, noise: NoiseStream) -> Tensor:
        denoise = PREDICTIONS[self._spec.predicts](model)
        return self._sampler.draw(denoise, next(noise), self._grid, noise, **self.config.sampler_options())

    def _finite(self, piece: range, count: int, latents: Tensor, check: Callable[[], object]) -> Tensor:
        """The same latents if all are finite, else with those that are not drawn once more, in fp32."""
        bad = ~latents.isfinite().flatten(1).all(1)
        bad[max(count - piece.start, 0) :] = False
        if not bad.any():
            return latents
        if self._dit_in_fp32 is None:
            is_plain = self.how.dtype == torch.float32 and not self.how.compile
            self._dit_in_fp32 = self._networks[0] if is_plain else self._load_dit(REFERENCE)
        dit = self._dit_in_fp32
        with in_fp32(), self._at_work(dit, "model"):
            again = self.latents(piece, check, dit)
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
