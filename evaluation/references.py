"""References: statistics (and a few images or features) read from ADM's, pytorch-fid's or our own npz, or images as they are."""

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from distributed import UserError, file_sha256, write_whole
from evaluation.features import ASSETS
from evaluation.images import DAMAGED_ARCHIVE, Images, one_line, open_images, read_array
from evaluation.protocols import FROM_FEATURES

DIGITS = ASSETS / "digits" / "reference.npz"
PROVENANCE = "provenance"  # our own files' extra array: a JSON text
MAX_DIMENSION = 4096  # more than any extractor gives; a header that claims more is not believed
MAX_FEATURES = 8 << 30  # bytes


@dataclass(frozen=True)
class Provenance:
    """Where statistics come from; what another file leaves unsaid is None. `features` is how many images' features are stored."""

    extractor: str | None = None
    weights_sha256: str | None = None
    count: int | None = None
    image_size: int | None = None
    pixels_sha256: str | None = None
    source: str | None = None
    resize: str | None = None
    dtype: str | None = None
    features: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Provenance":
        """Reads the JSON text of a file.

        Raises:
            ValueError: if a field is unknown or of another kind.
        """
        given = json.loads(text)
        kinds = {"count": int, "image_size": int, "features": int}
        for name, value in given.items():
            if name not in cls.__dataclass_fields__ or not isinstance(value, kinds.get(name, str) | None):
                raise ValueError(f"its provenance has {name} = {value!r}")
        return cls(**given)


@dataclass(frozen=True)
class Reference:
    """What samples are compared with.

    Statistics are float64: `mu` (D,) and `sigma` (D, D), `mu_s` and `sigma_s` those of the spatial features, None where there
    are none. `images` are to be extracted, for features; `features` (M, D) float32 are such, in the file. A reference of
    images alone has no statistics of its own.
    """

    path: Path
    sha256: str | None  # of the file; None for images alone, which are hashed when they are extracted
    kind: str  # what the file is, in words
    mu: np.ndarray | None = None
    sigma: np.ndarray | None = None
    mu_s: np.ndarray | None = None
    sigma_s: np.ndarray | None = None
    images: Images | None = None
    features: np.ndarray | None = None
    provenance: Provenance = Provenance()

    @property
    def comparable(self) -> int:
        """How many images it has to compare samples with, one by one."""
        return len(self.features) if self.features is not None else self.images.count if self.images else 0

    def count_for(self, metric: str) -> int | None:
        """How many reference images went into this metric, where that is known."""
        if metric in FROM_FEATURES:
            return self.comparable
        if metric not in ("fid", "sfid"):
            return None
        return self.images.count if self.kind == "images" else self.provenance.count

    @property
    def image_size(self) -> int | None:
        """The height of its images, where it is known."""
        return self.images.height if self.images else self.provenance.image_size


def find_reference(name: str) -> Path:
    """The path behind `--ref`: `digits` is the embedded reference, anything else a path.

    Raises:
        UserError: if nothing is there.
    """
    path = DIGITS if name == "digits" else Path(name)
    if not name or not path.exists():
        raise UserError(f"--ref {name}: no such file or folder")
    return path


def open_reference(path: Path) -> Reference:
    """Reads what `path` holds: statistics and provenance, images (not yet their pixels), or both.

    ADM's files carry the statistics of the whole training set beside 10,000 of its images; both are kept apart.

    Raises:
        UserError: if it is damaged, not finite, or its parts do not fit each other.
    """
    names = _members(path)
    if not {"mu.npy", "sigma.npy"} <= names:
        images = open_images(path)
        return Reference(path, None, "images", images=images)
    try:
        with zipfile.ZipFile(path) as archive:
            mu, sigma = _read_statistics(archive, "mu", "sigma")
            spatial = (None, None)
            if {"mu_s.npy", "sigma_s.npy"} <= names:
                spatial = _read_statistics(archive, "mu_s", "sigma_s")
            text = str(read_array(archive, f"{PROVENANCE}.npy", 1 << 20)) if f"{PROVENANCE}.npy" in names else "{}"
            provenance = Provenance.parse(text)
            features = read_array(archive, "features.npy", MAX_FEATURES) if "features.npy" in names else None
            if features is not None and (features.dtype != np.float32 or features.ndim != 2 or features.shape[1] != len(mu)):
                raise ValueError(f"its features are {features.dtype} {features.shape}, and mu {mu.shape}")
            if features is not None and not np.isfinite(features).all():
                raise ValueError("its features hold NaN or infinity")
    except (*DAMAGED_ARCHIVE, AttributeError) as error:
        raise UserError(f"{path} is a damaged reference ({one_line(error)})") from error
    images = open_images(path) if "arr_0.npy" in names else None
    kinds = {bool(provenance.extractor): "Fiducial's statistics", images is not None: "ADM's statistics and images"}
    kind = kinds.get(True, "statistics without provenance")
    return Reference(path, file_sha256(path), kind, mu, sigma, *spatial, images, features, provenance)


def _members(path: Path) -> set[str]:
    """The names in the archive `path`; none if it is no archive."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return set()
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist())
    except DAMAGED_ARCHIVE as error:
        raise UserError(f"{path} is damaged ({one_line(error)})") from error


def _read_statistics(archive: zipfile.ZipFile, mean: str, covariance: str) -> tuple[np.ndarray, np.ndarray]:
    """(D,) and (D, D) as float64.

    Raises:
        ValueError: if they are not that, or not finite.
    """
    limit = MAX_DIMENSION**2 * 8
    mu, sigma = (read_array(archive, f"{name}.npy", limit) for name in (mean, covariance))
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise ValueError(f"{mean} is {mu.dtype} and {covariance} {sigma.dtype}, not real numbers")
    if mu.ndim != 1 or not len(mu) or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"{mean} (D,) and {covariance} (D, D) expected; found {mu.shape} and {sigma.shape}")
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError("its statistics hold NaN or infinity")
    if np.abs(sigma - sigma.T).max() > 1e-3 * max(np.abs(sigma).max(), 1e-30) or sigma.diagonal().min() < 0:
        raise ValueError(f"{covariance} is not symmetric with a non-negative diagonal, so no covariance")
    return mu, sigma


def write_reference(reference: Reference, path: Path) -> None:
    """Writes statistics, features and provenance; `mu` and `sigma` are where other tools look for them.

    Raises:
        UserError: if the file cannot be written.
    """
    arrays = {name: getattr(reference, name) for name in ("mu", "sigma", "mu_s", "sigma_s", "features")}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    arrays[PROVENANCE] = np.array(json.dumps(asdict(reference.provenance)))

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:
            np.savez(file, **arrays)

    try:
        write_whole(path, write)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from error
