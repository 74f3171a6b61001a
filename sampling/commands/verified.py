"""Findings of `doctor` on numerics: what each precision, compiled and not, makes of two networks on this device, against fp32."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from fiducial.models.decoders.autoencoder import Autoencoder
from fiducial.models.latent import LatentShape
from fiducial.models.networks.dit import DiT
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.options.presets import PRESETS
from fiducial.sampling.source import checking, numerics
from fiducial.sampling.source.latent_diffusion import LatentDiffusion
from fiducial.sampling.source.networks import Networks
from fiducial.sampling.source.numerics import REFERENCE, Numerics
from fiducial.sampling.source.protocol import Unfit
from fiducial.sampling.source.verification import BOUNDS, Expected

BLOCKS = 2  # of a DiT-XL/2, whose time and memory are no more than a check's
VAE = Path(PRESETS["digits"]["vae"])


class BlocksOfXL(Networks):
    """A DiT-XL/2 of few blocks and random weights, and the digits' codec."""

    def load_network(self, how: Numerics) -> DiT:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            network = DiT(self.latent.size, depth=BLOCKS, num_classes=self.config.num_classes)
            for name, parameter in network.named_parameters():
                if name != "pos_embed":
                    parameter.normal_(std=0.05)
        network = network.to(self.device).eval().requires_grad_(False)
        if how.attention == "products":
            network.attend_by_products()
        return network if how.dtype == torch.float32 else network.to_half(how.dtype)


CASES: dict[str, tuple[type[Networks], int, dict]] = {  # networks, size of their latents, and what is not as in the preset digits
    "the digits": (Networks, 8, {}),
    f"{BLOCKS} random blocks of DiT-XL/2": (
        BlocksOfXL,
        32,
        {"model": "DiT-XL/2", "image_size": 256, "per_proc_batch_size": 4, "probe": False},
    ),
}


def verified(device: torch.device, **options: object) -> Iterator[Iterator[tuple[str, bool]]]:
    """For each network, a line for each of the numerics that can be chosen here, and whether it passes; found while it is read.

    Args:
        options: of both runs, that are not as in the preset digits.
    """
    for name, (kind, size, changes) in CASES.items():
        config = SamplingConfig(**PRESETS["digits"] | changes | options)

        def source_by(how: Numerics, kind: type[Networks] = kind, size: int = size, config: SamplingConfig = config):
            return LatentDiffusion(kind(config, device, how, LatentShape(4, size), lambda: Autoencoder(VAE)))

        found = of_network(numerics.choices(config, device), source_by)
        yield ((f"{name}: {line}", passes) for line, passes in found)


def of_network(choices: Sequence[Numerics], source_by: Callable[[Numerics], LatentDiffusion]) -> Iterator[tuple[str, bool]]:
    """A line for all but the reference, and whether that passes. Only a network that was trained is drawn with to the end."""
    expected = loaded(source_by(REFERENCE), lambda source: checking.expect(source, type(source.networks) is Networks))
    for how in choices:
        if how != REFERENCE:
            yield loaded(source_by(how), lambda source: judged(source, expected))


def loaded(source: LatentDiffusion, work: Callable[[LatentDiffusion], object]):
    """The result of `work` on a source while its networks are loaded."""
    with source.switched():
        source.networks.load()
        try:
            return work(source)
        finally:
            source.release()


def judged(source: LatentDiffusion, expected: Expected) -> tuple[str, bool]:
    try:
        found = checking.errors_of(source, expected)
    except Unfit as error:
        return str(error), False
    reason = found.why_not(BOUNDS[source.how.precision])
    return f"{checking.in_words(source.how)}: {reason or found.line()}, {found.seconds:.1f} s", reason is None
