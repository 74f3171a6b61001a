"""The typed result of `fiducial reconstruct`, its form in JSON, and the file of its moves."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from fiducial import about
from fiducial.evaluation.results.form import decode
from fiducial.evaluation.results.parts import Number

FORMAT = "fiducial-reconstruction-1"
ENDING = ".influences.f32"
KIND = np.dtype("<f4")
LARGEST = 1 << 31  # bytes of a file of moves
LEFT_OUT = ("moves", "shown")  # of the fields, in JSON


@dataclass(frozen=True)
class Moves:
    """The file, beside a result, of the moves of its numbers (see `metrics.pairs`): float32, one number's after the other's.

    `counts` says by the numbers' keys how many each has, `sha256` is of the file.
    """

    file: str
    sha256: str
    counts: dict[str, int]


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
    influences: Moves | None = None
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


def packed(json_file: Path, moves: dict[str, np.ndarray]) -> tuple[Moves, bytes]:
    """The file of these moves, by the keys of their numbers, beside a result, and its content."""
    content = b"".join(np.asarray(of_one, KIND).tobytes() for of_one in moves.values())
    counts = {key: len(of_one) for key, of_one in moves.items()}
    return Moves(json_file.stem + ENDING, hashlib.sha256(content).hexdigest(), counts), content


def read_moves(json_file: Path, told: Moves | None) -> dict[str, np.ndarray]:
    """The moves (N,) float64 by the keys of their numbers.

    Raises:
        ValueError: with the reason, if there is no file of them, or another one than the result names.
    """
    if told is None:
        raise ValueError(f"{json_file.name} names no file of influences")
    path, counts = json_file.with_name(Path(told.file).name or "-"), told.counts
    size = KIND.itemsize * sum(counts.values())
    try:
        is_that = min(counts.values(), default=1) > 0 and path.stat().st_size == size <= LARGEST
        content = path.read_bytes() if is_that else b""
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror})") from error
    values = np.frombuffer(content, KIND)
    if not is_that or hashlib.sha256(content).hexdigest() != told.sha256 or not np.isfinite(values).all():
        raise ValueError(f"{path.name} is not the file that {json_file.name} names")
    ends = np.cumsum(list(counts.values()))[:-1]
    return dict(zip(counts, np.split(values.astype(np.float64), ends), strict=True))
