"""The two networks of latent diffusion on one device: loading, asking, moving to and fro, and their twins in fp32."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from fiducial.models import probe
from fiducial.models.checkpoints import checkpoint
from fiducial.models.decoders.rounding import to_pixels
from fiducial.models.decoders.table import Decoder
from fiducial.models.latent import LatentShape
from fiducial.models.networks.dit import DiT
from fiducial.models.networks.table import NetworkSpec, asked, is_guided_outside
from fiducial.precision import plain_float32
from fiducial.sampling import memory
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.source import weak
from fiducial.sampling.source.flow import Flow
from fiducial.sampling.source.numerics import REFERENCE, Numerics
from fiducial.sampling.source.offload import Waiting


class Networks:
    """The network that is sampled and the codec of its latents.

    Args:
        config: its labels are numbers.
        how: precision, compilation and kernels.
        latent: what the network is to draw.
        open_codec: gives the codec, not loaded.
    """

    def __init__(
        self, config: SamplingConfig, device: torch.device, how: Numerics, latent: LatentShape, open_codec: Callable[[], Decoder]
    ):
        self.config, self.device, self.how, self.latent, self._open_codec = config, device, how, latent, open_codec
        self.untold: list[dict] = []  # what was out of the ordinary before somebody took note of it
        self.note: Callable[..., object] = lambda **event: self.untold.append(event)
        self.flow = Flow.of(config)
        self.spec = self.flow.spec
        self.network: DiT | None = None
        self.weak: DiT | None = None  # which is guided away from, where that is a network
        self.decoder: Decoder | None = None
        self.response: probe.Response | None = None  # of the network, unless `--no-probe`
        self._network_in_fp32: DiT | None = None  # loaded if numbers overflow
        self._weak_in_fp32: DiT | None = None
        self._decoder_in_fp32: Decoder | None = None
        self._waiting = Waiting(device)

    def load(self) -> None:
        """Load both, and ask the network whether it is of its family.

        Raises:
            UserError: if it is not, as pure noise tells.
        """
        network = self.load_network(self.how)
        if self.config.probe and self.flow.is_as_published:
            self.response = self._probe(network)
        self.network, self.weak = network, self._load_weak(self.how)
        self.decoder = self._load_decoder(self.how)

    def load_anew(self) -> None:
        """Load the networks once more, as compiling has left them unusable."""
        self.network, self.weak = self.load_network(self.how), self._load_weak(self.how)

    def beside(self) -> list[DiT]:
        """The networks that predict beside the one that is sampled: one where it is guided away from another, else none."""
        return [] if self.weak is None else [self.weak]

    def weak_beside(self, network: DiT) -> DiT | None:
        """The other network in the precision of `network`, if there is one."""
        return self.weak if network is self.network else self._weak_in_fp32

    def _load_weak(self, how: Numerics) -> DiT | None:
        network = weak.load(self.config, self._place("model"))
        return None if network is None else prepared(network, how)

    def load_network(self, how: Numerics) -> DiT:
        """The network, from its file."""
        config = self.config
        found = checkpoint.read(config.ckpt, config.weights_key)
        return prepared(found.load(config.model, config.num_classes, self._place("model"), config.network), how)

    def asked(self, network: DiT, spec: NetworkSpec | None = None, with_inner: bool = False) -> Callable[..., Tensor]:
        """A network, of this family or another, on the clock of the samplers, as `table.asked`; told the run's guidance, if it is
        one that is."""
        told = self.config.cfg_scale, *self.config.guidance_interval
        return asked(network, spec or self.spec, not self.config.exact, told, with_inner)

    def _probe(self, network: DiT) -> probe.Response:
        """The network's answer to pure noise; asked in fp32 if it overflows in less, as it then draws (see `in_fp32`).

        Raises:
            UserError: if it is not what a network of its family makes of it.
        """
        config = self.config
        guided_by_null = is_guided_outside(config.model, config.cfg_scale) and config.is_guided_by_null
        with_null = network.null_label is not None and (guided_by_null or config.labels == "null")

        def respond(network: DiT, spec: NetworkSpec) -> probe.Response:
            with self.at_work(network, "model"):
                return probe.respond(network, config.num_classes, self.latent.size, self.device, with_null, spec)

        found = respond(network, self.spec)
        if not found.is_finite and self.how.dtype != torch.float32:
            found = respond(network := self.load_network(REFERENCE), self.spec)
        probe.require(found, config.ckpt, self.spec, lambda spec: respond(network, spec))
        return found

    def _load_decoder(self, how: Numerics) -> Decoder:
        merge = self.device.type == "cpu" and how.dtype == torch.bfloat16  # slower in fp16, and on a GPU not measured
        slices = {"slicing": how.vae_slicing, "tiling": self.config.vae_tiling}
        return self._open_codec().load(self._place("vae"), how.dtype, merge=merge, **slices)

    def _place(self, name: str) -> torch.device:
        """Where a network is while it has nothing to do."""
        return torch.device("cpu") if self._is_offloaded(name) else self.device

    def _is_offloaded(self, name: str) -> bool:
        return self.config.offload in (name, "both")

    def at_work(self, network: nn.Module, name: str) -> AbstractContextManager:
        """Have a network on the device in there; `name` as `--offload` calls it."""
        other = self.weak_beside(network) if name == "model" else None
        return self._waiting.at_work(network, other) if self._is_offloaded(name) else nullcontext()

    def release(self) -> None:
        """Let go of all networks, and give their memory back."""
        if self.network is not None and self.how.compile:
            torch.compiler.reset()  # which has constants and graphs of its own
        self.network = self.weak = self.decoder = None
        self._network_in_fp32 = self._weak_in_fp32 = self._decoder_in_fp32 = None
        memory.release(self.device)

    def network_in_fp32(self) -> DiT:
        """The network in the reference's precision, not compiled, which is the one that is loaded where that is so."""
        if self._network_in_fp32 is None:
            is_plain = self.how.dtype == torch.float32 and not self.how.compile
            self._weak_in_fp32 = self.weak if is_plain else self._load_weak(REFERENCE)
            self._network_in_fp32 = self.network if is_plain else self.load_network(REFERENCE)
        return self._network_in_fp32

    @contextmanager
    def reference(self) -> Iterator[DiT]:
        """The network in fp32 at its place; it and the decoder in fp32 are let go afterwards, unless they were there."""
        before = self._network_in_fp32, self._weak_in_fp32, self._decoder_in_fp32
        try:
            yield self.network_in_fp32()
        finally:
            self._network_in_fp32, self._weak_in_fp32, self._decoder_in_fp32 = before
            memory.release(self.device)

    def decode(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, H, W, 3) uint8, or float32 levels by `--rounding none`; (N,) bool, which were finite before that. Nothing
        waits for the device."""
        return self._decode(self.decoder, latents)

    def decode_in_fp32(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The same in the reference's precision, by the codec that is loaded where that multiplies in float32."""
        if self._decoder_in_fp32 is None:
            is_plain = self.how.dtype == torch.float32
            self._decoder_in_fp32 = self.decoder if is_plain else self._load_decoder(replace(self.how, precision="fp32"))
        with plain_float32():
            return self._decode(self._decoder_in_fp32, latents)

    def _decode(self, decoder: Decoder, latents: Tensor) -> tuple[Tensor, Tensor]:
        with self.at_work(decoder, "vae"):
            images = decoder(latents)
            return to_pixels(images, self.config.rounding), images.isfinite().flatten(1).all(1)


def prepared(network: DiT, how: Numerics) -> DiT:
    """A network that was read, with kernels and precision as they are to be; its file is let go."""
    checkpoint.forget()
    if how.attention == "products":
        network.attend_by_products()
    return network if how.dtype == torch.float32 else network.to_half(how.dtype)
