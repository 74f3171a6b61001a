"""References: statistics (and a few images or features) read from ADM's, pytorch-fid's or our own npz, from EDM2's pickles, or
images as they are.
"""

import json
import os
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from fiducial import Group, UserError, decode_json, file_sha256, one_line
from fiducial.evaluation.data import pickled
from fiducial.evaluation.data.damage import DAMAGED_ARCHIVE
from fiducial.evaluation.data.images import Images
from fiducial.evaluation.data.npz import read_any_header, read_array, write_npz
from fiducial.evaluation.data.numbering import OWN, Numbering
from fiducial.evaluation.data.opening import open_images
from fiducial.evaluation.data.published import PUBLISHED, Published, fetch
from fiducial.evaluation.features import DEFAULT, EXTRACTORS, file_of
from fiducial.evaluation.metrics import METRICS, OF_REFERENCE, Need
from fiducial.evaluation.metrics.gaussians import factor
from fiducial.wings import ASSETS

DIGITS = ASSETS / "digits" / "reference.npz"
PROVENANCE, NUMBERING = "provenance", "numbering"  # our own files' extra arrays: a JSON text each
MAX_DIMENSION = 4096  # more than any extractor gives; a header that claims more is not believed
LARGEST = 1e30
LONGEST_TEXT = 1 << 26  # bytes, four a character
ADM_KIND = "ADM's statistics and images"
WITHOUT_PROVENANCE = "statistics without provenance"
STATISTICS = ({"mu.npy", "sigma.npy"}, {"ref_mu.npy", "ref_sigma.npy"})  # the second as JAX's codes of MeanFlow and iMF call them
# Under what names pickles have statistics, by extractor, and whose they are then.
PICKLED = {
    "EDM2's statistics": {"inception": "fid", "dinov2": "fd_dinov2"},
    "FD-loss's statistics": {
        "inception": "guided_diffusion_stats.npz",
        "convnextv2": "convnext_in256_t224_stats.npz",
        "dinov2-256": "vit_large_patch14_dinov2_lvd142m_in256_t256_stats.npz",
        "mae": "vit_large_patch16_224_mae_in256_t224_stats.npz",
        "siglip2": "vit_so400m_patch16_siglip_256_v2_webli_in256_t224_stats.npz",
        "clip": "vit_large_patch14_clip_224_openai_in256_t256_stats.npz",
    },
}
PICKLES = (".pkl", ".pickle")


@dataclass(frozen=True)
class Provenance:
    """Where statistics come from; what another file leaves unsaid is None. `features` is how many images' features are stored."""

    extractor: str | None = None
    weights_sha256: str | None = None
    count: int | None = None
    image_size: int | None = None  # height; the width is the same unless `image_width` says otherwise
    image_width: int | None = None
    pixels_sha256: str | None = None
    source: str | None = None
    resize: str | None = None
    not_read: str | None = None  # files beside the images that look like some and are not read
    dtype: str | None = None
    features: int | None = None
    features_seed: int | None = None
    different: int | None = None  # images, where some are equal to others pixel by pixel
    no_classes: str | None = None  # why it has no classes, in a clause, where they may be expected

    @classmethod
    def parse(cls, text: str) -> "Provenance":
        """Read the JSON text of a file.

        Raises:
            ValueError: if a field is unknown or of another kind.
        """
        given = decode_json(text)
        if not isinstance(given, dict):
            raise ValueError("its provenance is no JSON object")
        numbers = ("count", "image_size", "image_width", "features", "features_seed", "different")
        for name, value in given.items():
            fits = isinstance(value, str) if name not in numbers else type(value) is int and value >= 0
            if name not in cls.__dataclass_fields__ or not (fits or value is None):
                raise ValueError(f"its provenance has {name} = {value!r}")
        return cls(**given)


@dataclass(frozen=True)
class Reference:
    """A reference that samples are compared with.

    Statistics are float64: `mu` (D,) and `sigma` (D, D), `mu_s` and `sigma_s` those of the spatial features, None where there
    are none. `images` are to be extracted, for features; `features` (M, D) float32 are such, in the file, and `labels` (M,)
    int64 their classes, where they are known, which mean what `numbering` says, if anything does. A reference of images alone
    has no statistics of its own.
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
    labels: np.ndarray | None = None
    numbering: Numbering | None = OWN
    provenance: Provenance = Provenance()
    url: str | None = None  # where it is published

    @property
    def comparable(self) -> int:
        """How many images it has to compare samples with, one by one."""
        return len(self.features) if self.features is not None else self.images.count if self.images else 0

    def count_for(self, metric: str) -> int | None:
        """How many reference images went into this metric, where that is known."""
        row = METRICS[metric]
        if row.needs is Need.FEATURES:
            return self.comparable
        if not row.of_distributions:
            return None
        return self.images.count if self.kind == "images" else self.provenance.count

    def deviations(self, metric: str, dtype: str) -> list[str]:
        """Deviations from the protocol where a metric of samples, extracted in `dtype`, is compared with this."""
        found = []
        row = METRICS[metric]
        if row.of_distributions and self.kind == WITHOUT_PROVENANCE:
            found.append("the reference does not say with what network and resize it was made")
        if self.provenance.dtype not in (None, dtype) and row.needs in OF_REFERENCE:
            found.append(f"the reference was made in {self.provenance.dtype}")
        return found

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of its images, where they are known."""
        if self.images:
            return self.images.height, self.images.width
        height = self.provenance.image_size
        return height and (height, self.provenance.image_width or height)


def find_reference(
    name: str,
    group: Group,
    cache_dir: Path | None = None,
    image_size: int | None = None,
    crop: int | None = None,
    extractor: str | None = None,
) -> Reference:
    """The reference that `--ref` names: `digits` is the embedded one, a name in `PUBLISHED` is fetched, else it is a path.

    Args:
        image_size: of the samples that it is for, so that a published file of another size is not fetched.
        crop: to which its files of images are cropped, if it is such.
        extractor: whose statistics are wanted of a file that has several; None for Inception's.

    Raises:
        UserError: if nothing is there, or it cannot be fetched, or is for another size of images.
    """
    published = None if name and Path(name).exists() else PUBLISHED.get(name)
    if published and image_size not in (None, published.image_size):
        fitting = [other for other, reference in PUBLISHED.items() if reference.image_size == image_size]
        remedy = f"choose from {', '.join(fitting)}" if fitting else "make one with python -m evaluation ref"
        raise UserError(f"--ref {name}: is of {published.image_size} pixels, and the samples are of {image_size}; {remedy}")
    if published:
        path = group.once_per_node(["reference", name, cache_dir], lambda: str(fetch(name, cache_dir)), main_first=True)
        return _as_published(open_reference(Path(path), extractor=extractor), published)
    path = DIGITS if name == "digits" else Path(name)
    if not name or not path.exists():
        raise UserError(f"--ref {name}: no such file or folder, nor one of {', '.join(PUBLISHED)}")
    return open_reference(path, crop, extractor)


def _as_published(found: Reference, published: Published) -> Reference:
    """A reference with what is known of where it is published, unless it says that itself."""
    provenance = replace(found.provenance, count=published.count, image_size=published.image_size, source=published.source)
    own = {"kind": published.kind, "provenance": provenance} if published.kind else {}
    return replace(found, url=published.url, **own)


def open_reference(path: Path, crop: int | None = None, extractor: str | None = None) -> Reference:
    """Read what `path` holds: statistics and provenance, images (not yet their pixels), or both.

    ADM's files carry the statistics of the whole training set beside 10,000 of its images; both are kept apart. A folder that
    `ref` made of several extractors holds a file of each.

    Raises:
        UserError: if it is damaged, not finite, or its parts do not fit each other.
    """
    if path.suffix in PICKLES and path.is_file():
        return _open_pickle(path, extractor)
    if path.is_dir() and (several := [name for name in EXTRACTORS if (path / file_of(name)).is_file()]):
        own = path / file_of(extractor or (DEFAULT if DEFAULT in several else several[0]))
        if not own.is_file():
            raise UserError(f"{path} has references of {', '.join(several)}, and none of {extractor}")
        path = own
    names = _members(path)
    if not (called := _statistics_in(names)):
        return Reference(path, None, "images", images=open_images(path, crop))
    try:
        with zipfile.ZipFile(path) as archive:
            mu, sigma = _read_statistics(archive, *called)
            spatial = (None, None)
            if {"mu_s.npy", "sigma_s.npy"} <= names:
                spatial = _read_statistics(archive, "mu_s", "sigma_s")
            provenance = Provenance.parse(_read_text(archive, PROVENANCE) or "{}")
            numbering = Numbering.parse(text) if (text := _read_text(archive, NUMBERING)) else None
            features = _read_features(archive, len(mu)) if "features.npy" in names else None
            labels = _read_labels(archive, len(features)) if {"features.npy", "labels.npy"} <= names else None
    except (*DAMAGED_ARCHIVE, AttributeError) as error:
        raise UserError(f"{path} is a damaged reference ({one_line(error)})") from error
    images = open_images(path) if "arr_0.npy" in names else None
    kind = ADM_KIND if images else WITHOUT_PROVENANCE
    if provenance.extractor:
        kind = "Fiducial's statistics"
    return Reference(path, file_sha256(path), kind, mu, sigma, *spatial, images, features, labels, numbering, provenance)


def holds_statistics(path: Path) -> bool:
    """Whether `path` is an npz with `mu` and `sigma`, not just images."""
    return path.suffix in PICKLES or _statistics_in(_members(path)) is not None


def _statistics_in(names: set[str]) -> tuple[str, str] | None:
    """The names of mean and covariance among those in an archive."""
    found = next((pair for pair in STATISTICS if names >= pair), None)
    return found and tuple(name.removesuffix(".npy") for name in sorted(found))


def _open_pickle(path: Path, extractor: str | None) -> Reference:
    """A pickle of EDM2's or FD-loss's kind: mean and covariance of each extractor, or of one alone.

    Raises:
        UserError: if it is none.
    """
    content = pickled.read(path)
    whose = next((whose for whose, names in PICKLED.items() if set(names.values()) & set(content)), WITHOUT_PROVENANCE)
    names = {name: called for name, called in PICKLED.get(whose, {}).items() if called in content}
    wanted = extractor or next(iter(names), "inception")
    found = content.get(names.get(wanted), content)
    if not (isinstance(found, dict) and all(isinstance(found.get(name), np.ndarray) for name in ("mu", "sigma"))):
        there = ", ".join(names) or "no extractor"
        raise UserError(f"{path} has no mu and sigma of {wanted}; it has those of {there}")
    try:
        mu, sigma = _checked(found["mu"], found["sigma"], "mu", "sigma")
    except ValueError as error:
        raise UserError(f"{path} is a damaged reference ({one_line(error)})") from error
    made_with = wanted if found is not content else None
    kind = whose if made_with else WITHOUT_PROVENANCE
    return Reference(path, file_sha256(path), kind, mu, sigma, provenance=Provenance(made_with))


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
    return _checked(mu, sigma, mean, covariance)


def _checked(mu: np.ndarray, sigma: np.ndarray, mean: str, covariance: str) -> tuple[np.ndarray, np.ndarray]:
    """The same as float64; raises ValueError if they are no mean and covariance, or not finite. They are called so."""
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise ValueError(f"{mean} is {mu.dtype} and {covariance} {sigma.dtype}, not real numbers")
    if mu.ndim != 1 or not len(mu) or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"{mean} (D,) and {covariance} (D, D) expected; found {mu.shape} and {sigma.shape}")
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError("its statistics hold NaN or infinity")
    if max(np.abs(mu).max(), np.abs(sigma).max()) > LARGEST:
        raise ValueError("its statistics are larger than those of any features")
    if np.abs(sigma - sigma.T).max() > 1e-3 * np.abs(sigma).max():
        raise ValueError(f"{covariance} is not symmetric, so no covariance")
    factor(sigma)
    return mu, sigma


def _read_text(archive: zipfile.ZipFile, name: str) -> str | None:
    """One of our own files' texts; None where there is none."""
    return str(read_array(archive, f"{name}.npy", LONGEST_TEXT)) if f"{name}.npy" in archive.namelist() else None


def _read_features(archive: zipfile.ZipFile, dimension: int) -> np.ndarray:
    """(M, dimension) float32.

    Raises:
        ValueError: if they are not that, not finite, or compressed, so that a small file could ask for any memory.
    """
    with archive.open("features.npy") as member:
        shape, dtype, _ = read_any_header(member)
    if dtype.newbyteorder("=") != np.float32 or len(shape) != 2 or shape[1] != dimension:
        raise ValueError(f"its features are {dtype} {shape}, and mu ({dimension},)")
    if archive.getinfo("features.npy").compress_type != zipfile.ZIP_STORED:
        raise ValueError("its features are compressed, which those of Fiducial are not")
    features = read_array(archive, "features.npy", os.path.getsize(archive.filename)).astype(np.float32, order="C", copy=False)
    if not np.isfinite(features).all():
        raise ValueError("its features hold NaN or infinity")
    return features


def _read_labels(archive: zipfile.ZipFile, count: int) -> np.ndarray:
    """The classes of stored features, (count,) int64.

    Raises:
        ValueError: if they are not that.
    """
    labels = read_array(archive, "labels.npy", count * 8)
    if labels.dtype.newbyteorder("=") != np.int64 or labels.shape != (count,):
        raise ValueError(f"its labels are {labels.dtype} {labels.shape}, and its features {count:,}")
    return labels.astype(np.int64)


def write_reference(reference: Reference, path: Path) -> None:
    """Write statistics, features and provenance; `mu` and `sigma` are where other tools look for them.

    Raises:
        UserError: if the file cannot be written.
    """
    arrays = {name: getattr(reference, name) for name in ("mu", "sigma", "mu_s", "sigma_s", "features", "labels")}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    arrays[PROVENANCE] = np.array(json.dumps(asdict(reference.provenance)))
    if reference.labels is not None and reference.numbering:
        arrays[NUMBERING] = np.array(reference.numbering.to_json())
    write_npz(path, arrays)
