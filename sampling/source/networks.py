"""The two networks of latent diffusion on one device: loading, asking, moving to and fro, and their twins in fp32."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fiducial.models import probe
from fiducial.models.checkpoints import checkpoint
from fiducial.models.decoders.table import decoder_of
from fiducial.models.networks.dit import DiT
from fiducial.models.networks.table import NetworkSpec, spec_of
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.source.numerics import REFERENCE, Numerics


class Networks:
    """The network that is sampled and the codec of its latents.

    Args:
        how: precision, compilation and kernels.
        find_codec: gives the codec's folder.
        latent: channels and size of a latent.
        note: called with what is out of the ordinary.
    """

    def __init__(
        self,
        config: SamplingConfig,
        device: torch.device,
        how: Numerics,
        find_codec: Callable[[], Path],
        latent: tuple[int, int],
        note: Callable[..., object],
    ):
        self.config, self.device, self.how, self._find_codec, self.note = config, device, how, find_codec, note
        self.channels, self.input_size = latent
        self.spec, self._codec = spec_of(config.model), decoder_of(config.vae)
        self.network: DiT | None = None
        self.decoder: nn.Module | None = None
        self.response: probe.Response | None = None  # of the network, unless `--no-probe`
        self._network_in_fp32: DiT | None = None  # loaded if numbers overflow
        self._decoder_in_fp32: nn.Module | None = None

    def load(self) -> None:
        """Load both, and ask the network whether it is of its family.

        Raises:
            UserError: if it is not, as pure noise tells.
        """
        network = self.load_network(self.how)
        if self.config.probe:
            self.response = self._probe(network)
        self.network, self.decoder = network, self._load_decoder(self.how)

    def load_network(self, how: Numerics) -> DiT:
        """The network, from its file."""
        config, shape = self.config, (self.input_size, self.channels)
        where = self._place("model")
        named = config.network, config.weights_key
        network = checkpoint.load_dit(config.ckpt, config.model, config.num_classes, *shape, where, *named)
        if how.attention == "products":
            network.attend_by_products()
        return network if how.dtype == torch.float32 else network.to_half(how.dtype)

    def _probe(self, network: DiT) -> probe.Response:
        """The network's answer to pure noise; asked in fp32 if it overflows in less, as it then draws (see `in_fp32`).

        Raises:
            UserError: if it is not what a network of its family makes of it.
        """
        config = self.config
        with_null = network.null_label is not None and (config.cfg_scale != 1.0 or config.labels == "null")

        def respond(network: DiT, spec: NetworkSpec) -> probe.Response:
            with self.at_work(network, "model"):
                return probe.respond(network, config.num_classes, self.input_size, self.device, with_null, spec)

        found = respond(network, self.spec)
        if not found.is_finite and self.how.dtype != torch.float32:
            found = respond(network := self.load_network(REFERENCE), self.spec)
        probe.require(found, config.ckpt, self.spec, lambda spec: respond(network, spec))
        return found

    def _load_decoder(self, how: Numerics) -> nn.Module:
        merge = self.device.type == "cpu" and how.dtype == torch.bfloat16  # slower in fp16, and on a GPU not measured
        decoder = self._codec.load(self._find_codec(), self._place("vae"), how.dtype, merge)
        if how.vae_slicing:
            decoder.enable_slicing()
        if self.config.vae_tiling:
            decoder.enable_tiling()
        return decoder

    def _place(self, name: str) -> torch.device:
        """Where a network is while it has nothing to do."""
        return torch.device("cpu") if self.config.offload in (name, "both") else self.device

    @contextmanager
    def at_work(self, network: nn.Module, name: str) -> Iterator[None]:
        """Have a network on the device in here; `name` as `--offload` calls it."""
        network.to(self.device)
        try:
            yield
        finally:
            network.to(self._place(name))

    def network_in_fp32(self) -> DiT:
        """The network in the reference's precision, not compiled, which is the one that is loaded where that is so."""
        if self._network_in_fp32 is None:
            is_plain = self.how.dtype == torch.float32 and not self.how.compile
            self._network_in_fp32 = self.network if is_plain else self.load_network(REFERENCE)
        return self._network_in_fp32

    def decode(self, latents: Tensor) -> Tensor:
        """Images (N, H, W, 3) uint8; decoded once more in fp32 if they do not fit into fp16."""
        try:
            with self.at_work(self.decoder, "vae"):
                return self._codec.decode(self.decoder, latents, self.config.rounding)
        except OverflowError as error:
            self.note(event="decoded again in fp32", reason=str(error))
            if self._decoder_in_fp32 is None:
                self._decoder_in_fp32 = self._load_decoder(replace(self.how, precision="fp32"))
            with self.at_work(self._decoder_in_fp32, "vae"):
                return self._codec.decode(self._decoder_in_fp32, latents, self.config.rounding)
