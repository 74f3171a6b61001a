"""The parts of a result besides samples, reference and extractor: numbers, curves, classes, memorised images."""

from dataclasses import dataclass, field

import numpy as np

from fiducial.evaluation.metrics import METRICS
from fiducial.evaluation.metrics.intervals import Estimate
from fiducial.evaluation.results.wording import number


@dataclass(frozen=True)
class Number:
    """One number, and what it is; `name` is its metric's in `METRICS`, whatever the extractor.

    `error`, `low` and `high` are the standard error and the 95 % interval (see `evaluation.intervals`); `spread` is over the
    blocks of an Inception score or the subsets of KID. `n` and `reference_n` count the images on either side, where that is
    known; `definition` is a sentence, `deviations` say what differs from `protocol`.
    """

    name: str
    label: str
    value: float
    error: float | None
    low: float | None
    high: float | None
    spread: float | None
    n: int
    reference_n: int | None
    protocol: str
    definition: str
    deviations: tuple[str, ...]

    @property
    def unit(self) -> str:
        return METRICS[self.name].unit

    def shown(self) -> str:
        """The value as it is printed, with its spread over blocks or subsets where there is one."""
        spread = "" if self.spread is None else f" ± {number(self.spread, '', self.low, self.high)}"
        return number(self.value, self.unit, self.low, self.high) + spread


@dataclass(frozen=True)
class Curve:
    """The Fréchet distance against the number of samples, with the line through it in 1 / N and its value for infinitely many."""

    counts: tuple[int, ...]
    values: tuple[float, ...]
    slope: float
    at_infinity: Estimate

    def at(self, count: float) -> float:
        return self.at_infinity.value + self.slope / count


@dataclass(frozen=True)
class ClassScore:
    """The Fréchet distance within one class."""

    label: int
    distance: Estimate
    n: int
    reference_n: int


@dataclass(frozen=True)
class Influences:
    """The file, beside a result, of the moves of its numbers: float32, little-endian, one number's after the other's.

    `counts` says by their keys how many each has, `sha256` is of the file.
    """

    file: str
    sha256: str
    counts: dict[str, int]


@dataclass(frozen=True)
class Pair:
    """A sample and the training image nearest to it; `ratio` is their distance over that image's to its nearest fellow."""

    sample: int
    training: int
    distance: float
    ratio: float


@dataclass(frozen=True)
class Memorisation:
    """`authentic` is the share of samples that are no nearer to a training image than another training image is.

    `pairs` are those with the smallest ratios, `pictures` their images (H, W, 3) uint8, the sample's and the training image's;
    `training_sha256` is the hash of all training images' pixels.
    """

    authentic: Estimate
    n: int
    training_n: int
    pairs: tuple[Pair, ...]
    pictures: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    training_sha256: str | None = None
