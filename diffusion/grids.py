"""Explicit tuples of places on a path, made by named builders: what "250 steps" are in one paper and not in another.

A builder is written as a text, `--grid` of a run: `places` or `steps`, and after commas what else is so of it.

    places                         N places from 1 to 0, so N - 1 steps: SiT's ODE (torchdiffeq on linspace(0, 1, N))
    steps                          N steps: REPA's ODE, JiT, diffusion-bench
    places,tail=0.04               N places from 1 to 0.04, and a last step from there to 0: SiT's and REPA's SDE, DDT
    places,shift=1/0.3             LightningDiT, whose 0.3 is on a clock that begins at noise
    places,end=0.001,shift=sqrt(48)    RAE at 256
    steps,shift=8                  RAEv2
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass

from fiducial.diffusion.paths import Path, Point


@dataclass(frozen=True)
class Places:
    """Where a sampler of a flow stops, from noise to image: one place more than it takes steps."""

    points: tuple[Point, ...]
    path: Path  # which they are places on

    def __len__(self) -> int:
        return len(self.points) - 1

    @property
    def levels(self) -> tuple[float, ...]:
        """The time at which each step begins."""
        return tuple(point.t for point in self.points[:-1])


@dataclass(frozen=True)
class Spacing:
    """A builder of times, from 1, noise, down to 0, the image."""

    of_steps: bool = False  # a count is of equal steps, not of places
    start: float = 1.0
    end: float = 0.0  # the last of the equally spaced
    has_tail: bool = False  # 0 comes after it
    shift: float = 1.0  # s of s t / (1 + (s - 1) t); above 1 there are more places near noise

    @property
    def text(self) -> str:
        """As `read_spacing` takes it, with all digits."""
        said = {"start": (self.start, 1.0), "tail" if self.has_tail else "end": (self.end, 0.0), "shift": (self.shift, 1.0)}
        given = [f"{name}={value!r}" for name, (value, usual) in said.items() if value != usual]
        return ",".join(["steps" if self.of_steps else "places", *given])

    def times(self, count: int) -> tuple[float, ...]:
        """Strictly falling. As doubles they are the nearest to fractions of the count: 0.3, and not 0.30000000000000004."""
        intervals = count if self.of_steps else count - 1
        if intervals < 1:
            raise ValueError("takes at least 2 places, which are one step")
        times = [((intervals - step) * self.start + step * self.end) / intervals for step in range(intervals + 1)]
        times += [0.0] if self.has_tail else []
        return tuple(shifted(t, self.shift) for t in times)

    def places(self, path: Path, count: int) -> Places:
        return Places(tuple(map(path, self.times(count))), path)


PLACES, STEPS = Spacing(), Spacing(of_steps=True)
MOST_SHIFT = 1000
TAIL = 0.04  # SiT's and REPA's last step of an SDE
WITH_TAIL = Spacing(end=TAIL, has_tail=True)


def shifted(t: float, shift: float) -> float:
    """s t / (1 + (s - 1) t); as 1 - t runs it is by 1 / s: 1 - shifted(1 - t, s) = shifted(t, 1 / s)."""
    return t if shift == 1 or t == 1 else shift * t / (1 + (shift - 1) * t)  # at 1 it would be 1 but for rounding


def read_spacing(text: str) -> Spacing:
    """The builder that a text names.

    Raises:
        ValueError: in a sentence, if it names none.
    """
    kind, *given = text.replace(" ", "").split(",")
    if kind not in ("places", "steps"):
        raise ValueError("begins with places (N places, so N - 1 steps) or steps (N steps), such as places,tail=0.04")
    values: dict[str, float] = {}
    for entry in given:
        name, _, number = entry.partition("=")
        if name not in ("start", "end", "tail", "shift") or name in values:
            raise ValueError(f"takes start=, end=, tail= and shift=, once each, and not {entry!r}")
        values[name] = _number(entry, number)
    if {"end", "tail"} <= values.keys():
        raise ValueError("takes end= (it stops there) or tail= (a last step leads from there to 0), not both")
    start, end, shift = values.get("start", 1.0), values.get("end", values.get("tail", 0.0)), values.get("shift", 1.0)
    if not 0 <= end < start <= 1:
        raise ValueError("must lead from start= down to end= or tail=, both between 0, the image, and 1, noise")
    if "tail" in values and not end:
        raise ValueError("tail=0 is no step; leave it out")
    if not 1 / MOST_SHIFT <= shift <= MOST_SHIFT:
        raise ValueError(f"shift= must be between {1 / MOST_SHIFT:g} and {MOST_SHIFT:,}")
    return Spacing(kind == "steps", start, end, "tail" in values, shift)


def _number(entry: str, text: str) -> float:
    """A number, a fraction or a root: 0.04, 1/0.3, sqrt(48)."""
    try:
        if found := re.fullmatch(r"sqrt\((.+)\)", text):
            return math.sqrt(float(found[1]))
        above, _, beneath = text.partition("/")
        return float(above) / float(beneath or 1)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"{entry!r} is no number such as 0.04, 1/0.3 or sqrt(48)") from None


def named(times: tuple[float, ...]) -> str:
    """A short name that no other times have: how many, where they begin and end, the last step, and a hash of all."""
    whole = hashlib.sha256(json.dumps(times).encode()).hexdigest()[:16]
    last = times[-2] - times[-1]
    return f"{len(times) - 1} steps from {times[0]:g} to {times[-1]:g}, the last of {last:.6g}; sha256 {whole}"
