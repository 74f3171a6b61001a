"""Verification of the numerics of a run on this very device, before they are believed: what the fast path makes of the
run's first images against what fp32 makes of them, without TF32, compilation and fused attention.

The network is evaluated at a few timesteps on the same inputs, twice and in two orders, so that an output or an input of the call
before shows as a difference; then one block is drawn whole, and a few latents are decoded. Speed is no part of the verdict, which
would else change between sessions.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fiducial.precision import plain_float32
from fiducial.sampling.source.numerics import HALF

IMAGES = 4  # whose evaluations are compared
WHOLE = 2  # that are drawn whole by the reference as well
LATE = 0.1  # below this t of 0 to 1 what is predicted is small by the network's input, and its error large
RANKS_AGREE = 1e-5  # relative error between the references of two ranks


@dataclass(frozen=True)
class Bounds:
    """The largest errors that pass. By bf16, the digits' evaluations have 0.002 to 0.016, in a channel 0.02; those of random
    DiTs up to 0.015 and 0.026; the digits' latents 0.004 and pixels 0.2."""

    prediction: float  # relative, of what the network puts out, t >= LATE
    late: float  # the same below
    latents: float  # relative, after all steps
    pixels: float  # levels of 255, in the mean


CHANNEL = 1.6  # times as large an error passes in one channel; one that is not guided and should be shows there alone
BOUNDS = {precision: Bounds(0.03, 0.10, 0.02 if precision in HALF else 0.002, 0.5) for precision in ("fp32", "tf32", *HALF)}


class Drawing(Protocol):
    """Drawing of the run's first images in one way."""

    def few_steps(self, look: Callable[[Tensor, float, Tensor], object]) -> Tensor:
        """Latents (n, C, h, w) of these images in a few steps; `look` gets input, t and output of each evaluation."""

    def evaluate(self, x: Tensor, t: float) -> Tensor:
        """The guided output (n, C or 2C, h, w) of the network for inputs (k, C, h, w), repeated to n."""

    def latents(self) -> Tensor:
        """The latents (n, C, h, w) of these images after all steps."""

    def decode(self, latents: Tensor) -> Tensor:
        """Images (m, H, W, 3) uint8 in the host's memory, m >= n, of the latents over and over."""


@dataclass(frozen=True)
class Expected:
    """The run's first images as the reference draws them."""

    evaluations: list[tuple[Tensor, float, Tensor]]  # input (IMAGES, C, h, w), t, output
    latents: Tensor | None  # (WHOLE, C, h, w) after all steps, if they were drawn
    decoded: Tensor  # latents (n, C, h, w)
    pixels: Tensor  # (n, H, W, 3) uint8 of those

    @classmethod
    @torch.inference_mode()
    def by(cls, reference: Drawing, whole: Drawing | None) -> "Expected":
        """By a drawing of IMAGES images and, if latents after all steps are wanted, another of WHOLE."""
        found, few = evaluated(reference)
        with as_reference():
            latents = whole.latents() if whole else None
            decoded = few[:WHOLE] if latents is None else latents
            return cls(found, latents, decoded, reference.decode(decoded))


@torch.inference_mode()
def evaluated(reference: Drawing) -> tuple[list[tuple[Tensor, float, Tensor]], Tensor]:
    """The evaluations of the reference in a few steps, as `Expected` has them, and the latents that they lead to."""
    found: list[tuple[Tensor, float, Tensor]] = []
    with as_reference():
        return found, reference.few_steps(lambda *seen: found.append(seen))


@contextmanager
def as_reference() -> Iterator[None]:
    """No TF32 and no fused attention in here."""
    with plain_float32(), sdpa_kernel(SDPBackend.MATH):
        yield


@dataclass(frozen=True)
class Errors:
    """The largest errors of what was verified; NaN where something was not finite."""

    prediction: float
    late: float
    latents: float | None
    pixels: float
    repeats: bool  # whether the same call gives the same bits
    seconds: float

    def why_not(self, bounds: Bounds) -> str | None:
        """The first reason not to draw so; None if there is none."""
        if not self.repeats:
            return "the same inputs give other outputs the second time"
        for name, said in (
            ("prediction", f"outputs of the network at t >= {LATE:g}"),
            ("late", f"outputs of the network at t < {LATE:g}"),
            ("latents", "latents after all steps"),
            ("pixels", "pixels"),
        ):
            found, most = getattr(self, name), getattr(bounds, name)
            if found is not None and not found <= most:
                unit = " levels in the mean" if name == "pixels" else ""
                value = "not finite" if found != found else f"off by {found:.2g}{unit}"
                return f"{said} are {value} against fp32 ({most:g} is allowed)"
        return None

    def line(self) -> str:
        latents = "" if self.latents is None else f"latents {self.latents:.2g}, "
        return f"evaluations off by {max(self.prediction, self.late):.2g}, {latents}pixels {self.pixels:.2g} levels"


@torch.inference_mode()
def compare(expected: Expected, by: Drawing, with_latents: bool, twice: bool = False) -> Errors:
    """Errors of a way of drawing.

    Args:
        with_latents: draw a block whole; the reference has done so as well.
        twice: and once more, which has to give the same bits.
    """
    began, evaluations = time.monotonic(), expected.evaluations
    outputs = [by.evaluate(x, t).clone() for x, t, _ in evaluations]
    again = [by.evaluate(x, t).clone() for x, t, _ in reversed(evaluations)][::-1]
    repeats = all(map(same, outputs, again))
    errors = [(t, largest_error(found, right, x.shape[1])) for found, (x, t, right) in zip(outputs, evaluations, strict=True)]
    latents = None
    if with_latents:
        found = by.latents()
        latents = relative(found, expected.latents)
        repeats &= not twice or same(found, by.latents())
    pixels = by.decode(expected.decoded).clone()
    repeats &= same(pixels, by.decode(expected.decoded))
    right = expected.pixels[torch.arange(len(pixels)) % len(expected.pixels)]
    off = (pixels.double() - right.double()).abs().mean().item()
    prediction, late = (worst([error for t, error in errors if (t >= LATE) == early]) for early in (True, False))
    return Errors(prediction, late, latents, off, repeats, time.monotonic() - began)


def same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are equal to the bit, NaN and all."""
    return torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))


def worst(errors: list[float]) -> float:
    """The largest, NaN if one is; 0 of none."""
    return max(errors, key=lambda error: (error != error, error), default=0.0)


def largest_error(found: Tensor, right: Tensor, channels: int) -> float:
    """The largest relative error (`relative`) of outputs (n, C or 2C, h, w): of the first `channels`, which are what the network
    predicts, of the variance after them, and, less weighty, of a single channel."""
    starts = range(0, right.shape[1], channels)
    whole = [relative(found[:, start : start + channels], right[:, start : start + channels]) for start in starts]
    single = [relative(found[:, [channel]], right[:, [channel]]) / CHANNEL for channel in range(right.shape[1])]
    return worst(whole + single)


def relative(found: Tensor, right: Tensor) -> float:
    """The norm of the difference by that of what is right, for the image where it is largest; NaN if some value is not finite.

    Args:
        found: (m, C, h, w), of which the first n are compared.
        right: (n, C, h, w).
    """
    x, y = found[: len(right)].flatten(1).double(), right.flatten(1).double()
    errors = (x - y).norm(dim=1) / y.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return worst(errors.tolist()) if x.isfinite().all() else float("nan")
