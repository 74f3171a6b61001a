"""The typed result of `fiducial reconstruct`, and its form in JSON."""

import json
from dataclasses import asdict, dataclass, field

import numpy as np

from fiducial import about
from fiducial.evaluation.results.form import decode
from fiducial.evaluation.results.parts import Influences, Number

FORMAT = "fiducial-reconstruction-1"
LEFT_OUT = ("moves", "shown")  # of the fields, in JSON


@dataclass(frozen=True)
class Worst:
    """One of the images that are reconstructed worst: its index, its file where it has one, and its own values.

    `psnr` is None where it is infinite, others where they were not computed.
    """

    index: int
    name: str | None
    psnr: float | None
    ssim: float | None
    lpips: float | None


@dataclass(frozen=True)
class Shown:
    """Pictures (h, w, 3) uint8 of an image, of its reconstruction, and of a multiple of their absolute difference."""

    caption: str
    original: np.ndarray
    reconstruction: np.ndarray
    difference: np.ndarray


@dataclass(frozen=True)
class Reconstruction:
    """All metrics of reconstructions with everything they depend on.

    `originals` are the images, `codec` the autoencoder and how it was run, `reference` the images or statistics that rFID is to,
    `extractor` the network of its features, both None without rFID; `perceptual` are the networks of LPIPS by the metrics' names.
    `identical` counts reconstructions that are equal to their originals. `moves` are (N,) by the numbers' keys, `influences`
    names the file of them. `shown` are pictures by what they are, with the gain of their differences.
    """

    metrics: dict[str, Number]
    warnings: tuple[str, ...]
    left_out: dict[str, str]
    originals: dict
    codec: dict
    reference: dict | None
    extractor: dict | None
    perceptual: dict[str, dict]
    settings: dict
    packages: dict[str, str]
    identical: int
    worst_by: str
    worst: tuple[Worst, ...]
    created: str
    influences: Influences | None = None
    fiducial: dict[str, str | None] = field(default_factory=about)
    moves: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    shown: dict[str, tuple[int, tuple[Shown, ...]]] = field(default_factory=dict, repr=False, compare=False)

    def to_json(self) -> str:
        """Everything but the pictures and the moves; `parse` reads it."""
        form = {"format": FORMAT}
        for name in self.__dataclass_fields__:
            if name not in LEFT_OUT:
                form[name] = _plain(getattr(self, name))
        return json.dumps(form, indent=2) + "\n"

    @classmethod
    def parse(cls, form: dict) -> "Reconstruction":
        """Read what `to_json` wrote, decoded.

        Raises:
            Unexpected: if it is something else.
        """
        return decode(cls, form, without=LEFT_OUT)


def _plain(value: object) -> object:
    """A part of a result as JSON has it."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value
