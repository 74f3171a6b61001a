"""The file of a result's influences: how far each sample moves each number, so that runs can be compared sample by sample.

RUN.influences.f32 beside RUN.json, which names it: the moves of one number after the other's (see `metrics.intervals`).
"""

import hashlib
from pathlib import Path

import numpy as np

from fiducial.evaluation.metrics import METRICS
from fiducial.evaluation.metrics.intervals import length
from fiducial.evaluation.results.parts import Influences

ENDING = ".influences.f32"
KIND = np.dtype("<f4")
LARGEST = 1 << 31  # bytes of a file


def packed(json_file: Path, moves: dict[str, np.ndarray]) -> tuple[Influences, bytes]:
    """The file of these moves, by the keys of their numbers, beside a result, and its content."""
    content = b"".join(np.asarray(of_one, KIND).tobytes() for of_one in moves.values())
    counts = {key: len(of_one) for key, of_one in moves.items()}
    return Influences(json_file.stem + ENDING, hashlib.sha256(content).hexdigest(), counts), content


def read(json_file: Path, influences: Influences | None) -> dict[str, np.ndarray]:
    """The moves, float64, by the keys of their numbers.

    Raises:
        ValueError: with the reason, if there is no file of them, or it is another one than the result names.
    """
    if influences is None:
        raise ValueError(f"{json_file.name} names no file of influences: evaluate the samples again, with --json")
    path, counts = json_file.with_name(Path(influences.file).name or "-"), influences.counts
    size = KIND.itemsize * sum(counts.values())
    try:
        is_that = min(counts.values(), default=1) > 0 and path.stat().st_size == size <= LARGEST
        content = path.read_bytes() if is_that else b""
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror})") from error
    values = np.frombuffer(content, KIND)
    if not is_that or hashlib.sha256(content).hexdigest() != influences.sha256 or not np.isfinite(values).all():
        raise ValueError(f"{path.name} is not the file that {json_file.name} names")
    ends = np.cumsum(list(counts.values()))[:-1]
    return dict(zip(counts, np.split(values.astype(np.float64), ends), strict=True))


def error_of_pair(metric: str, one: np.ndarray | None, other: np.ndarray | None, count: int) -> float | None:
    """Standard error of a metric's difference between runs of `count` samples that belong together, by the moves of each.

    What moves both alike, sample by sample, does not move the difference. Of a share of samples that are counted, one more
    counts as having changed, without which few that have would bound too much. None where moves are not known.
    """
    if one is None or other is None or len(one) != len(other):
        return None
    error = length(np.subtract(one, other))
    return float(np.hypot(error, METRICS[metric].bounds[1] / count)) if METRICS[metric].counted else error
