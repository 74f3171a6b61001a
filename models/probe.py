"""The probe: tells what a network predicts by its answer to pure noise, for weights alone look the same for DiT and SiT.

At the last timestep of DiT's chain x_t = alpha x_0 + sigma noise is noise but for alpha = 0.006, so a network that predicts noise
returns its input. One that predicts velocity returns its input less an image, whatever its clock: with an image of root mean
square s the correlation is 1 / sqrt(1 + s^2). Halfway, alpha is 0.28 there, and 0.5 or more on the chains of others.
A SiT's noise is at 0 on its own clock, where the image it takes away is the mean of its class. A mean velocity is asked over no
time, where it is the velocity. A network that predicts the image returns that mean, in which nothing is of the noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fiducial import UserError
from fiducial.models.networks.dit import DiT
from fiducial.models.networks.table import MEAN_VELOCITY, NETWORKS, USUAL, NetworkSpec, asked, kin

PURE_NOISE, HALFWAY = 999, 500  # of a thousand, of a network that predicts noise; another is asked at its own end
LATENTS = 4  # each of another class, one at a time, so that it takes no more memory than drawing one image
SEED = 0
# The digits: predicting noise 0.952 after 50 steps of training, 0.987 after 100, 0.99995 in the end; velocity at most 0.85.
LEAST_CORRELATION = 0.95
LEAST_SIZE, MOST_SIZE = 0.05, 2.0  # the digits after 10 steps 0.01, after 25 0.1
USUAL_SIZE = 0.8, 1.25  # the digits in the end 1.00015
# The least with an image of root mean square 1 is 0.96. The digits 0.98, and 0.92 by a cosine schedule.
LEAST_HALFWAY = 0.95
# Of velocity, towards noise: 1 / sqrt(1 + s^2) with s up to 1.7, of the mean of a class in latents that are scaled to 1.
LEAST_OF_VELOCITY, MOST_OF_VELOCITY = 0.5, 2.0
MOST_OF_IMAGE = 0.5  # correlation of an image with the noise that it was made of; what returns its input has 1
ON_PURPOSE = "--no-probe draws from it all the same"


OF_IMAGE = "image_"  # before the names of an image's numbers in a manifest


@dataclass(frozen=True)
class Response:
    """A network's answer to pure noise, over all values of a few latents; NaN where its output is not finite."""

    correlation: float  # of output and input at the noise end, -1 to 1; 0 where the output is constant
    size: float  # root mean square of that output by that of the input
    halfway: float  # the correlation halfway, where a velocity on a clock that runs the other way has the other sign
    null: "Response | None" = None  # of one latent with the null label, where that was asked for
    family: str = USUAL  # as which it was asked

    @property
    def is_finite(self) -> bool:
        own = map(math.isfinite, (self.correlation, self.size, self.halfway))
        return all(own) and (self.null is None or self.null.is_finite)

    def recorded(self) -> dict[str, float | None]:
        """As it stands in a manifest, None for NaN; of classes alone, and nothing where no number tells anything."""
        if NETWORKS[self.family].predicts not in JUDGES:
            return {}
        end = round(1000 * NETWORKS[self.family].noise_end)
        of = OF_IMAGE if NETWORKS[self.family].predicts == "x0" else ""
        named = {
            f"{of}correlation_at_{end}": self.correlation,
            f"{of}size_at_{end}": self.size,
            f"{of}correlation_at_{HALFWAY}": self.halfway,
        }
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
def respond(
    network: DiT,
    num_classes: int,
    input_size: int,
    device: torch.device,
    with_null: bool,
    spec: NetworkSpec = NETWORKS[USUAL],
) -> Response:
    """The answer of `network`, on `device`, to latents (LATENTS, C, input_size, input_size) of pure noise. No random state but
    its own is touched.

    Args:
        with_null: ask for the null label, too, which guidance needs; the network has one then.
        spec: as a network of which family it is asked.
    """
    random = torch.Generator().manual_seed(SEED)
    noise = spec.noise_scale(input_size) * torch.randn(LATENTS, network.in_channels, input_size, input_size, generator=random)
    noise = noise.to(device)
    labels = torch.linspace(0, num_classes - 1, LATENTS).long().to(device)

    predict = asked(network, spec)

    def at(t: float, noise: Tensor, labels: Tensor) -> tuple[float, float]:
        rows = [predict(x, t, y)[:, : network.in_channels] for x, y in zip(noise.split(1), labels.split(1), strict=True)]
        return compare(noise, torch.cat(rows))

    def found_for(*given: Tensor) -> Response:
        return Response(*at(spec.noise_end, *given), halfway=at(HALFWAY / 1000, *given)[0], family=spec.name)

    found = found_for(noise, labels)
    return replace(found, null=found_for(noise[:1], torch.full_like(labels[:1], network.null_label))) if with_null else found


def require(found: Response, path: Path, spec: NetworkSpec, respond_as: Callable[[NetworkSpec], Response] | None = None) -> None:
    """Raise UserError if a network that responds so is not of the family that it is drawn as.

    Args:
        respond_as: asks the same network as one of another family, so that the error can name that.
    """
    if said := wrong(replace(found, null=None)):
        other = respond_as and looks_like(spec, respond_as)
        hint = f"; it answers as a {other} does, which --model {other}-... is for" if other else ""
        raise UserError(f"{path}: {said}{hint}; {ON_PURPOSE}")
    if found.null and (said := wrong(found.null)):
        raise UserError(
            f"{path}: with the null label, {said}; --cfg-scale 1.0 draws classes without that label, and {ON_PURPOSE}"
        )


def looks_like(besides: NetworkSpec | None, respond_as: Callable[[NetworkSpec], Response]) -> str | None:
    """The first family whose weights look the same, but for one, as which a network answers as it should; None if there is none
    that can be told."""
    others = (spec for spec in kin(besides) if spec.predicts in JUDGES)
    return next((spec.name for spec in others if not wrong(respond_as(spec))), None)


def wrong(found: Response) -> str | None:
    """Why a network that responds so is not of the family as which it was asked; None if it is, or if no answer tells."""
    if not found.is_finite:
        return "of pure noise this network makes NaN or infinity, also in fp32; its weights are damaged, or its training diverged"
    judge = JUDGES.get(NETWORKS[found.family].predicts)
    return judge(found) if judge else None


def untrained(found: Response, at: str) -> str | None:
    if found.size >= LEAST_SIZE:
        return None
    return (
        f"this network is untrained: of pure noise {at} it makes all but zero, {found.size:.2g} of its input's size, about 1 "
        "expected"
    )


def wrong_for_noise(found: Response) -> str | None:
    """Why a network that responds so does not predict noise; None if it does."""
    at = f"at t = {PURE_NOISE}"
    if said := untrained(found, at):
        return said
    if found.correlation < LEAST_CORRELATION:
        return (
            f"this network does not predict noise {at}: correlation {found.correlation:.2f}, about 1 expected; a SiT or REPA "
            "checkpoint has the same keys and predicts velocity; --model SiT-... or REPA-... draws from it"
        )
    if found.size > MOST_SIZE:
        return (
            f"this network does not predict noise {at}, but a multiple of it: its output is {found.size:.3g} times as large as "
            "its input, about 1 expected; its weights are damaged or scaled"
        )
    return None


def wrong_for_velocity(found: Response) -> str | None:
    """Why a network that responds so does not predict velocity on its family's clock; None if it does."""
    at = "where its clock says noise"
    if said := untrained(found, at):
        return said
    if found.correlation < LEAST_OF_VELOCITY or found.size > MOST_OF_VELOCITY:
        return (
            f"this network does not predict velocity {at}: of pure noise it makes {found.size:.3g} times its size with a "
            f"correlation of {found.correlation:.2f}, about 1 expected of both but for the mean of the data"
            + ("; a DiT has the same keys" if NETWORKS[found.family].is_alike else "")
        )
    if found.halfway < 0:  # at its ends a network answers so whichever way its clock runs
        return (
            f"this network's clock runs the other way than a {found.family}'s, as SiT's and REPA's do of each other: halfway "
            "between image and noise it leads from pure noise to an image's place and not away (correlation "
            f"{found.halfway:.2f}, above 0 expected)"
        )
    return None


def wrong_for_image(found: Response) -> str | None:
    """Why a network that responds so does not predict the image on its family's clock; None if it does. The mean of the data may
    be of any size, down to none."""
    at = "where its clock says noise"
    if abs(found.correlation) > MOST_OF_IMAGE:
        return (
            f"this network does not predict the image {at}: of pure noise it returns {found.size:.3g} times its size with a "
            f"correlation of {found.correlation:.2f}, about 0 expected of the mean of the data; it may predict noise or "
            "velocity, or its clock run the other way"
        )
    if found.size > MOST_SIZE:
        return (
            f"this network does not predict the image {at}: of pure noise it makes {found.size:.3g} times its size, less than 1 "
            "expected of the mean of the data; its weights are damaged or scaled"
        )
    return None


# By what a network predicts. A score of pure noise may be of any size, so that is not judged.
JUDGES = {
    "noise": wrong_for_noise,
    "velocity": wrong_for_velocity,
    MEAN_VELOCITY: wrong_for_velocity,
    "x0": wrong_for_image,
}


def doubt_of(recorded: dict[str, float]) -> str | None:
    """`doubt` of what stands in a manifest; None for a network that does not predict noise, of which no more is known."""
    names = f"correlation_at_{HALFWAY}", f"size_at_{PURE_NOISE}"
    return doubt(*(recorded[name] for name in names)) if all(name in recorded for name in names) else None


def in_words(recorded: dict[str, float] | None) -> str:
    """The answer to pure noise in words, by its entry in a manifest; None where it was not asked."""
    if not recorded:
        return "the network was not asked whether it predicts noise (--no-probe)"
    correlation, size, halfway = recorded.values()
    if any(name.startswith(OF_IMAGE) for name in recorded):
        told = f"correlation {correlation:.3f} of pure noise, about 0 expected, and size {size:.3f}"
        return f"the network predicts the image: {told}"
    if f"size_at_{PURE_NOISE}" not in recorded:
        return f"the network predicts velocity: correlation {correlation:.3f} and size {size:.3f} of pure noise, about 1 expected"
    return (
        f"the network predicts noise: correlation {correlation:.3f} and size {size:.3f} at t = {PURE_NOISE}, about 1 expected, "
        f"and correlation {halfway:.3f} at t = {HALFWAY}"
    )


def doubt(correlation: float, size: float) -> str | None:
    """A doubt about a network that predicts pure noise, but with this size there, or this correlation with it halfway; None if
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
