"""What a network predicts, told by what it makes of pure noise: weights alone look the same for DiT and SiT.

At the last timestep of DiT's chain x_t = alpha x_0 + sigma noise is noise but for alpha = 0.006, so a network that predicts noise
returns its input. One that predicts velocity returns its input less an image, whatever its clock: with an image of root mean
square s the correlation is 1 / sqrt(1 + s^2). Halfway, alpha is 0.28 there, and 0.5 or more on the chains of others.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distributed import UserError
from models.dit import DiT

PURE_NOISE, HALFWAY = 999, 500  # timesteps
LATENTS = 4  # each of another class, one at a time, so that it takes no more memory than drawing one image
SEED = 0
# The digits: predicting noise 0.952 after 50 steps of training, 0.987 after 100, 0.99995 in the end; velocity at most 0.85.
LEAST_CORRELATION = 0.95
LEAST_SIZE = 0.05  # the digits after 10 steps 0.01, after 25 0.1
# The least with an image of root mean square 1 is 0.96. The digits 0.98, and 0.92 by a cosine schedule.
LEAST_HALFWAY = 0.95
ON_PURPOSE = "--no-probe draws from it all the same"


@dataclass(frozen=True)
class Response:
    """What a network made of pure noise, by all values of a few latents; NaN where its output is not finite."""

    correlation: float  # of output and input at t = 999, -1 to 1; 0 where the output is constant
    size: float  # root mean square of that output by that of the input
    halfway: float  # the correlation at t = 500

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, vars(self).values()))

    def recorded(self) -> dict[str, float | None]:
        """As it stands in a manifest, None for NaN."""
        named = {"correlation_at_999": self.correlation, "size_at_999": self.size, "correlation_at_500": self.halfway}
        return {name: round(value, 5) if math.isfinite(value) else None for name, value in named.items()}


def compare(noise: Tensor, output: Tensor) -> tuple[float, float]:
    """Pearson's correlation of a network's input and output, two tensors of one shape, and the root mean square of the output by
    that of the input. In float64; NaN where a value is not finite, correlation 0 where all are equal."""
    x, y = (value.flatten().double() for value in (noise, output))
    size = y.square().mean().sqrt() / x.square().mean().sqrt()
    x, y = x - x.mean(), y - y.mean()
    norms = x.norm() * y.norm()
    return float(torch.where(norms == 0, norms, x @ y / norms)), float(size)


@torch.inference_mode()
def respond(network: DiT, num_classes: int, input_size: int, device: torch.device) -> Response:
    """What `network`, on `device`, makes of latents (LATENTS, C, input_size, input_size) of pure noise. No random state but its
    own is touched."""
    random = torch.Generator().manual_seed(SEED)
    noise = torch.randn(LATENTS, network.in_channels, input_size, input_size, generator=random).to(device)
    labels = torch.linspace(0, num_classes - 1, LATENTS).long().to(device)

    def at(timestep: int) -> tuple[float, float]:
        t = torch.full((1,), float(timestep), device=device)
        rows = [network(x, t, y)[:, : network.in_channels] for x, y in zip(noise.split(1), labels.split(1), strict=True)]
        return compare(noise, torch.cat(rows))

    return Response(*at(PURE_NOISE), halfway=at(HALFWAY)[0])


def require_noise(found: Response, path: Path) -> None:
    """Raises UserError if a network that responds so does not predict noise, as DiT's samplers take it to."""
    at = f"at t = {PURE_NOISE}"
    if not found.is_finite:
        raise UserError(
            f"{path}: of pure noise this network makes NaN or infinity, also in fp32; its weights are damaged, or its training "
            f"diverged; {ON_PURPOSE}"
        )
    if found.size < LEAST_SIZE:
        raise UserError(
            f"{path}: this network is untrained: of pure noise {at} it makes all but zero, {found.size:.2g} of its input's size, "
            f"about 1 expected; {ON_PURPOSE}"
        )
    if found.correlation < LEAST_CORRELATION:
        raise UserError(
            f"{path}: this network does not predict noise {at}: correlation {found.correlation:.2f}, about 1 expected; a SiT or "
            f"REPA checkpoint has the same keys, and predicts velocity, which no sampler here takes; {ON_PURPOSE}"
        )


def doubt(correlation: float) -> str | None:
    """What to say of a network that predicts pure noise, but has this correlation with it halfway; None if that is as it is on
    DiT's chain."""
    if correlation >= LEAST_HALFWAY:
        return None
    return (
        f"at t = {HALFWAY} this network takes much of pure noise for image (correlation {correlation:.2f}, about 1 expected), as "
        "one does that was trained with another noise schedule than DiT's linear betas, for another clock, or on latents of "
        "another scale; what is drawn is then wrong"
    )
