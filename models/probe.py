"""What a network predicts, told by what it makes of pure noise: weights alone look the same for DiT and SiT.

At the last timestep of DiT's chain x_t = alpha x_0 + sigma noise is noise but for alpha = 0.006, so a network that predicts noise
returns its input. One that predicts velocity returns its input less an image, whatever its clock: with an image of root mean
square s the correlation is 1 / sqrt(1 + s^2). Halfway, alpha is 0.28 there, and 0.5 or more on the chains of others.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fiducial import UserError
from fiducial.models.networks.dit import DiT

PURE_NOISE, HALFWAY = 999, 500  # timesteps
LATENTS = 4  # each of another class, one at a time, so that it takes no more memory than drawing one image
SEED = 0
# The digits: predicting noise 0.952 after 50 steps of training, 0.987 after 100, 0.99995 in the end; velocity at most 0.85.
LEAST_CORRELATION = 0.95
LEAST_SIZE, MOST_SIZE = 0.05, 2.0  # the digits after 10 steps 0.01, after 25 0.1
USUAL_SIZE = 0.8, 1.25  # the digits in the end 1.00015
# The least with an image of root mean square 1 is 0.96. The digits 0.98, and 0.92 by a cosine schedule.
LEAST_HALFWAY = 0.95
ON_PURPOSE = "--no-probe draws from it all the same"


@dataclass(frozen=True)
class Response:
    """What a network made of pure noise, by all values of a few latents; NaN where its output is not finite."""

    correlation: float  # of output and input at t = 999, -1 to 1; 0 where the output is constant
    size: float  # root mean square of that output by that of the input
    halfway: float  # the correlation at t = 500
    null: "Response | None" = None  # of one latent with the null label, where that was asked for

    @property
    def is_finite(self) -> bool:
        own = map(math.isfinite, (self.correlation, self.size, self.halfway))
        return all(own) and (self.null is None or self.null.is_finite)

    def recorded(self) -> dict[str, float | None]:
        """As it stands in a manifest, None for NaN; of classes alone."""
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
def respond(network: DiT, num_classes: int, input_size: int, device: torch.device, with_null: bool) -> Response:
    """What `network`, on `device`, makes of latents (LATENTS, C, input_size, input_size) of pure noise. No random state but its
    own is touched.

    Args:
        with_null: ask for the null label, too, which guidance needs; the network has one then.
    """
    random = torch.Generator().manual_seed(SEED)
    noise = torch.randn(LATENTS, network.in_channels, input_size, input_size, generator=random).to(device)
    labels = torch.linspace(0, num_classes - 1, LATENTS).long().to(device)

    def at(timestep: int, noise: Tensor, labels: Tensor) -> tuple[float, float]:
        t = torch.full((1,), float(timestep), device=device)
        rows = [network(x, t, y)[:, : network.in_channels] for x, y in zip(noise.split(1), labels.split(1), strict=True)]
        return compare(noise, torch.cat(rows))

    def asked(*given: Tensor) -> Response:
        return Response(*at(PURE_NOISE, *given), halfway=at(HALFWAY, *given)[0])

    found = asked(noise, labels)
    return replace(found, null=asked(noise[:1], torch.full_like(labels[:1], network.null_label))) if with_null else found


def require_noise(found: Response, path: Path) -> None:
    """Raises UserError if a network that responds so does not predict noise, as DiT's samplers take it to."""
    if said := wrong(replace(found, null=None)):
        raise UserError(f"{path}: {said}; {ON_PURPOSE}")
    if found.null and (said := wrong(found.null)):
        raise UserError(
            f"{path}: with the null label, {said}; --cfg-scale 1.0 draws classes without that label, and {ON_PURPOSE}"
        )


def wrong(found: Response) -> str | None:
    """Why a network that responds so does not predict noise; None if it does."""
    at = f"at t = {PURE_NOISE}"
    if not found.is_finite:
        return "of pure noise this network makes NaN or infinity, also in fp32; its weights are damaged, or its training diverged"
    if found.size < LEAST_SIZE:
        return (
            f"this network is untrained: of pure noise {at} it makes all but zero, {found.size:.2g} of its input's size, about 1 "
            "expected"
        )
    if found.correlation < LEAST_CORRELATION:
        return (
            f"this network does not predict noise {at}: correlation {found.correlation:.2f}, about 1 expected; a SiT or REPA "
            "checkpoint has the same keys, and predicts velocity, which no sampler here takes"
        )
    if found.size > MOST_SIZE:
        return (
            f"this network does not predict noise {at}, but a multiple of it: its output is {found.size:.3g} times as large as "
            "its input, about 1 expected; its weights are damaged or scaled"
        )
    return None


def doubt(correlation: float, size: float) -> str | None:
    """What to say of a network that predicts pure noise, but with this size there, or this correlation with it halfway; None if
    both are as they are on DiT's chain."""
    said = []
    if not USUAL_SIZE[0] <= size <= USUAL_SIZE[1]:
        said.append(
            f"at t = {PURE_NOISE} what this network makes of pure noise is {size:.2f} times as large as its input, about 1 "
            "expected, as by one that was hardly trained, or whose weights were scaled"
        )
    if correlation < LEAST_HALFWAY:
        said.append(
            f"at t = {HALFWAY} this network takes much of pure noise for image (correlation {correlation:.2f}, about 1 "
            "expected), as one does that was trained with another noise schedule than DiT's linear betas, for another clock, or "
            "on latents of another scale"
        )
    return "; ".join(said) + "; what is drawn is then wrong" if said else None
