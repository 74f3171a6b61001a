"""The path that a run's latents go, from noise to image, and where its sampler stops on it: what options and the network's row of
NETWORKS come to.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fiducial import UserError
from fiducial.diffusion.grids import PLACES, Spacing, named
from fiducial.diffusion.paths import CHAIN, LINEAR, PATHS, Grid, louder
from fiducial.diffusion.prediction import PREDICTIONS, Denoiser, Raw, from_x0
from fiducial.diffusion.samplers import SAMPLERS, Sampler
from fiducial.diffusion.samplers.row import why_not
from fiducial.models.networks.table import NetworkSpec, spec_of
from fiducial.sampling.options.choices import spacing_of
from fiducial.sampling.options.config import SamplingConfig

Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Flow:
    """The choices of a run, of which a network of the chain has none."""

    spec: NetworkSpec  # of the network, on the path and with the prediction that it is drawn with
    published: NetworkSpec  # its row
    least_time: float
    noise_scale: float
    in_float64: bool

    @classmethod
    def of(cls, config: SamplingConfig) -> "Flow":
        """The choices of a configuration whose model is known."""
        row = spec_of(config.model)
        spec = replace(row, path=config.path or row.path, predicts=config.prediction or row.predicts)
        usual = row.least_time if config.prediction in (None, row.predicts) else 0.0
        return cls(
            spec,
            row,
            usual if config.least_time is None else config.least_time,
            row.noise_scale(config.image_size) if config.noise_scale is None else config.noise_scale,
            config.state == "float64",
        )

    @property
    def is_as_published(self) -> bool:
        """Whether the network is asked as its family's are, so that its answer to pure noise is known."""
        return (self.spec.path, self.spec.predicts) == (self.published.path, self.published.predicts)

    def recorded(self, config: SamplingConfig) -> dict[str, str | float]:
        """The entries of a run's identity: nothing that a DiT or SiT has always been drawn with."""
        if self.spec.path == CHAIN:
            return {}
        found = {"path": self.spec.path} if self.spec.path != self.published.path else {}
        found |= {"prediction": self.spec.predicts} if self.spec.predicts != self.published.predicts else {}
        found |= {"least_time": self.least_time} if self.least_time else {}
        found |= {"noise_scale": self.noise_scale} if self.noise_scale != 1 else {}
        spacing = spacing_of(config)
        if spacing is not None and (config.sampler != "euler" or spacing != PLACES):
            found["places"] = named(spacing.times(config.count_steps()))
        return found

    def times(self, config: SamplingConfig) -> list[float] | None:
        """Where the run's sampler stops, from 1, noise, to 0, the image; None on the chain."""
        spacing = spacing_of(config)
        return None if self.spec.path == CHAIN or spacing is None else list(spacing.times(config.count_steps()))

    def grid(
        self, config: SamplingConfig, device: torch.device, steps: str | None = None, sampler: Sampler | None = None
    ) -> Grid:
        """Where a sampler stops: by default the run's own at its own steps."""
        row, steps = sampler or SAMPLERS[config.sampler], steps or config.num_sampling_steps
        if self.spec.path == CHAIN:
            return row.grid(steps, device)
        return row.grid(steps, device, louder(PATHS[self.spec.path], self.noise_scale), asked_for(config))

    def denoiser(self, raw: Raw) -> Denoiser:
        """The denoiser that a sampler takes, of a network that predicts so."""
        if self.spec.predicts == "x0":
            return from_x0(raw, self.least_time)
        return PREDICTIONS[self.spec.predicts](raw)

    def draw(self, raw: Raw, sampler: Sampler, grid: Grid, noise: Iterator[Tensor], **options: float | str) -> Tensor:
        """The latents, float32, to which a sampler leads with such a network, from the first of `noise`."""
        denoise, x = self.denoiser(raw), next(noise)
        x = x if self.noise_scale == 1 else self.noise_scale * x
        if not self.in_float64:
            return sampler.draw(denoise, x, grid, noise, **options)
        return sampler.draw(denoise, x.double(), grid, (one.double() for one in noise), **options).float()

    def asked(self, network: Network) -> Network:
        """A network that is asked in float32, as always, and answers in the precision of the latents."""
        if not self.in_float64:
            return network
        return lambda x, *given, **beside: network(x.float(), *given, **beside).to(x.dtype)


def asked_for(config: SamplingConfig) -> Spacing | None:
    """The grid of `--grid`, None where it was not given."""
    return None if config.grid is None else spacing_of(config)


def check_flow(config: SamplingConfig, hint: str = "") -> None:
    """Check that a sampler solves what a network predicts on its path. Model and sampler are known.

    Raises:
        UserError: naming the option that is in the way; `hint` is added where another model may be meant.
    """
    row, spec = SAMPLERS[config.sampler], spec_of(config.model)
    for name in ("path", "prediction"):
        if spec.path == CHAIN and getattr(config, name) is not None:
            raise UserError(f"--{name} {getattr(config, name)}: {config.model} was trained on DDPM's chain; leave it out{hint}")
    path, predicts = config.path or spec.path, config.prediction or spec.predicts
    if path not in row.solves:
        able = [name for name, other in SAMPLERS.items() if path in other.solves and _takes(other, predicts)]
        raise UserError(
            f"--sampler {config.sampler}: does not solve what {config.model} was trained on; choose from {', '.join(able)}{hint}"
        )
    if not _takes(row, predicts):
        raise UserError(
            f"--sampler {config.sampler}: takes a network that predicts {' or '.join(row.takes)}, not {config.model}, which "
            f"predicts {predicts}"
        )
    if path == CHAIN:
        return
    if config.least_time and (predicts != "x0" or path != LINEAR):
        raise UserError(
            f"--least-time {config.least_time}: only for a network that predicts the image on the linear path, and "
            f"{config.model} predicts {predicts} on {path}"
        )
    spacing = spacing_of(config)
    if said := why_not(row, spacing, PATHS[path], predicts, config.sampler_options()):
        raise UserError(f"--grid {config.grid or spacing.text}: {said}")


def _takes(sampler: Sampler, predicts: str) -> bool:
    return sampler.takes is None or predicts in sampler.takes
