"""One of the two sets that are compared, with what is known of how it was made."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fiducial import UserError
from fiducial.decoding import read_json
from fiducial.evaluation.data.remarks import open_samples
from fiducial.evaluation.data.runs import LARGEST_MANIFEST, MANIFEST

LEAST = 32  # images, below which no test here means anything


@dataclass(frozen=True)
class Side:
    """Images (N, H, W, 3) uint8, their labels (N,) where the file has them, and settings of the run where it is one."""

    path: Path
    images: np.ndarray
    labels: np.ndarray | None = None
    settings: dict[str, object] = field(default_factory=dict)


def open_side(path: Path) -> Side:
    """Read a npz, a run, or a folder or zip of images.

    Raises:
        UserError: if it is missing, damaged, a reference, or has too few images.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if (path / MANIFEST).is_file() and path.with_name(f"{path.name}.npz").is_file():
        path = path.with_name(f"{path.name}.npz")
    found = open_samples(path)
    if found.count < LEAST:
        raise UserError(f"{path}: has {found.count} images, and a diagnosis needs {LEAST} or more")
    return Side(path, np.concatenate(list(found.batches(256))), found.labels, settings_beside(path))


def settings_beside(path: Path) -> dict[str, object]:
    """Settings that determine the run's images, by its manifest; empty where there is none that can be read."""
    try:
        manifest = read_json(path.parent / path.name.removesuffix(".npz") / MANIFEST, LARGEST_MANIFEST)
    except (OSError, ValueError, UserError):
        return {}
    identity = manifest.get("identity") if isinstance(manifest, dict) else None
    return flat(identity) if isinstance(identity, dict) else {}


def flat(given: dict, prefix: str = "") -> dict[str, object]:
    """Nested settings with their names joined by dots."""
    found: dict[str, object] = {}
    for name, value in given.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
