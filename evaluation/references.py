"""Reference statistics: read from ADM's, pytorch-fid's or our own npz, or computed from images."""

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from distributed import UserError, file_sha256, write_whole
from evaluation.features import ASSETS
from evaluation.images import DAMAGED_ARCHIVE

DIGITS = ASSETS / "digits" / "reference.npz"
PROVENANCE = "provenance"  # our own files' extra array: a JSON text


@dataclass(frozen=True)
class Provenance:
    """Where statistics come from; what another file leaves unsaid is None."""

    extractor: str | None = None
    weights_sha256: str | None = None
    count: int | None = None
    image_size: int | None = None
    pixels_sha256: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Reference:
    """Mean (D,) and covariance (D, D), float64, of a reference's features."""

    path: Path
    sha256: str  # of the file; of the pixels where the reference was made from images just now
    mu: np.ndarray
    sigma: np.ndarray
    provenance: Provenance


def find_reference(name: str) -> Path:
    """The path behind `--ref`: `digits` is the embedded reference, anything else a path.

    Raises:
        UserError: if nothing is there.
    """
    path = DIGITS if name == "digits" else Path(name)
    if not name or not path.exists():
        raise UserError(f"--ref {name}: no such file or folder")
    return path


def holds_statistics(path: Path) -> bool:
    """Whether `path` is an npz with `mu` and `sigma`; if not, it is to be read as images."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return {"mu.npy", "sigma.npy"} <= set(archive.namelist())
    except DAMAGED_ARCHIVE as error:
        raise UserError(f"{path} is damaged ({error})") from error


def read_reference(path: Path) -> Reference:
    """Reads statistics (see `holds_statistics`). ADM's files carry those of the whole training set beside 10,000 images:
    the statistics are used, the images are not.

    Raises:
        UserError: if they are damaged, not finite, or do not fit each other.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mu, sigma = arrays["mu"], arrays["sigma"]
            if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
                raise ValueError(f"mu is {mu.dtype} and sigma {sigma.dtype}, not real numbers")
            mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
            text = str(arrays[PROVENANCE]) if PROVENANCE in arrays.files else "{}"
        provenance = Provenance(**json.loads(text))
    except (*DAMAGED_ARCHIVE, TypeError) as error:
        raise UserError(f"{path} is a damaged reference ({error})") from error
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(f"{path}: mu (D,) and sigma (D, D) expected; found {mu.shape} and {sigma.shape}")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path}: its statistics hold NaN or infinity")
    return Reference(path, file_sha256(path), mu, sigma, provenance)


def write_reference(path: Path, mu: np.ndarray, sigma: np.ndarray, provenance: Provenance) -> None:
    """Writes statistics with their provenance; `mu` and `sigma` are where other tools look for them."""
    arrays = {"mu": mu, "sigma": sigma, PROVENANCE: np.array(json.dumps(asdict(provenance)))}

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:
            np.savez(file, **arrays)

    try:
        write_whole(path, write)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from error
