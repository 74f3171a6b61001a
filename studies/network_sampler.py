"""Fiducial's samplers on a network that is in memory, as it is while it is trained."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fiducial.diffusion.guidance import guided
from fiducial.diffusion.samplers import SAMPLERS
from fiducial.models.decoders.rounding import to_pixels
from fiducial.models.networks.table import asked, spec_of
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.source.flow import Flow, check_flow
from fiducial.sampling.source.latent_diffusion import guidance_of


class NetworkSampler:
    """Draws from a network of one of the families of `fiducial.models`, with guidance, as `FidCallback` takes it.

    A sampler that draws noise in its steps takes it from torch's generator, which `FidCallback` sets for each block; so its
    images are not those of `fiducial sample` with the same seed, as those of deterministic samplers are up to the precision.

    Args:
        model: the name that `--model` takes, such as "DiT-B/2", which says what the network predicts, and on which path.
        decode: latents (n, C, H, W) float32 -> images (n, 3, H, W) from -1 to 1, such as `Autoencoder(folder).load(device)`;
            None where the network draws pixels.
        num_sampling_steps: as the option.
        sampler: as the option; None for that of the family's published numbers.
        cfg_scale: 1 for no guidance, which halves the work.
        options: others of `SamplingConfig`, such as `cfg_channels`, `image_size` or `path`.

    Raises:
        UserError: if the options do not go with each other.
    """

    def __init__(
        self,
        model: str,
        decode: Callable[[Tensor], Tensor] | None = None,
        num_sampling_steps: int | str = 50,
        sampler: str | None = None,
        cfg_scale: float = 1.0,
        **options: object,
    ):
        sampler = sampler or spec_of(model).sampler
        sizes = {"image_size": 256, "num_classes": 1000} | options
        self.config = SamplingConfig(
            model=model, sampler=sampler, num_sampling_steps=str(num_sampling_steps), cfg_scale=cfg_scale, **sizes
        )
        self.config.validate()
        check_flow(self.config)
        self.config.count_steps()
        self._flow, self._decode = Flow.of(self.config), decode

    def __call__(self, model: nn.Module, noise: Tensor, labels: Tensor) -> Tensor:
        """Images (n, 3, H, W) uint8 from noise (n, C, H, W), for labels (n,)."""
        latents = self.latents(model, noise, labels)
        images = latents if self._decode is None else self._decode(latents)
        return to_pixels(images.float(), self.config.rounding).permute(0, 3, 1, 2)

    @torch.no_grad()
    def latents(self, model: nn.Module, noise: Tensor, labels: Tensor) -> Tensor:
        """The latents (n, C, H, W) float32 to which the sampler leads."""
        config, guidance, flow = self.config, guidance_of(self.config), self._flow
        told = config.cfg_scale, *config.guidance_interval
        asking = flow.asked(asked(model, flow.spec, True, told))
        weak = torch.full_like(labels, model.null_label) if guidance.scale != 1.0 else None
        predict, row = guided(asking, weak, labels, guidance), SAMPLERS[config.sampler]
        return flow.draw(predict, row, flow.grid(config, noise.device), _noises(noise), **config.sampler_options())


def _noises(first: Tensor) -> Iterator[Tensor]:
    """The initial noise, then as much as is asked for from torch's generator."""
    yield first
    while True:
        yield torch.randn_like(first)
