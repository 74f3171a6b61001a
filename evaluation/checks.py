"""What fits together, before anything is computed; and what a reader has to know of the numbers afterwards."""

import shlex
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fiducial import Group, UserError, default_cache, unwritable
from fiducial.classes import difference
from fiducial.evaluation.extraction import temporary_cache
from fiducial.evaluation.features import EXTRACTORS, Extractor, Outputs
from fiducial.evaluation.images import Images
from fiducial.evaluation.metrics import PER_DIMENSION
from fiducial.evaluation.neighbours import DENSITY_NEIGHBOURS, NEIGHBOURS
from fiducial.evaluation.protocols import (
    ADM_IS_BLOCK,
    BY_DEFAULT,
    FIDELITY_IS_SPLITS,
    FROM_FEATURES,
    KID_SUBSET_SIZE,
    LABELS,
    METRICS,
    PROTOCOLS,
    PUBLISHED_COUNT,
    REFUSED,
    called,
)
from fiducial.evaluation.published import PUBLISHED
from fiducial.evaluation.references import ADM_KIND, Reference
from fiducial.evaluation.remarks import SAMPLES, remarks
from fiducial.evaluation.runs import ClassNames, names_beside

if TYPE_CHECKING:
    from fiducial.evaluation.scores import Scores

CLASSES_SHOWN = 5  # that a warning names
ASTRAY = 0.1  # of all classes, from which on they may be numbered wrongly
PROBE = 1 << 16  # bytes that are written to a cache, to see whether that can be done
OTHERS_THAN_ADM = ("inception-clean", "dinov2")  # extractors whose features are not those of ADM's statistics


@dataclass(frozen=True)
class Settings:
    """How to evaluate. `metrics` None means all that the protocol defines and the reference allows."""

    protocol: str = "adm"
    metrics: tuple[str, ...] | None = None
    fp16_compat: bool = False
    dtype: str = "float32"
    batch_size: int = 64
    kid_subset_size: int = KID_SUBSET_SIZE
    cache_dir: Path | None = None
    keep_features: bool = True

    def check(self) -> None:
        """Raises UserError for what cannot be meant."""
        if self.batch_size < 1:
            raise UserError(f"--batch-size {self.batch_size}: must be at least 1")
        if self.kid_subset_size < 2:
            raise UserError(f"--kid-subset-size {self.kid_subset_size}: must be at least 2")
        if self.metrics is not None and not self.metrics:
            raise UserError(f"--metrics names none: choose from {', '.join(METRICS)}")
        if refused := [name for name in self.metrics or () if name in REFUSED]:
            raise UserError(f"--metrics {refused[0]}: {REFUSED[refused[0]]}")
        if unknown := [name for name in self.metrics or () if name not in METRICS]:
            raise UserError(f"--metrics {unknown[0]}: no such metric; choose from {', '.join(METRICS)}")
        if self.fp16_compat and self.protocol != "adm":
            raise UserError(f"--fp16-compat: it rounds as ADM's evaluator does, which --protocol {self.protocol} does not follow")

    def cache(self, group: Group) -> AbstractContextManager[Path]:
        """The folder of features, for the time of an evaluation; by every rank."""
        folder = self.cache_dir or default_cache()
        return nullcontext(folder) if self.keep_features else temporary_cache(folder, group)

    def check_cache(self) -> None:
        """Raises UserError if features cannot be put into the cache."""
        folder = self.cache_dir or default_cache()
        if reason := unwritable(folder, PROBE):
            raise UserError(f"--cache-dir {folder} cannot be written ({reason}), where features are put; choose another")

    def recorded(self) -> dict[str, str | int | bool]:
        """What numbers hang on."""
        return {
            "protocol": self.protocol,
            "precision_recall_distances": "float16 as ADM's" if self.fp16_compat else "float32",
            "dtype": self.dtype,
            "kid_subset_size": self.kid_subset_size,
        }


def check_protocol(ref: str | None, extractor: str | None, settings: Settings) -> str | None:
    """The extractor that was asked for, by name or by the protocol; None if the reference is to say which.

    Raises:
        UserError: if the two differ, or `ref` is published and made with another.
    """
    own = PROTOCOLS[settings.protocol].extractor
    if own and extractor not in (None, own):
        raise UserError(f"--extractor {extractor}: --protocol {settings.protocol} is of {own}")
    wanted = own or extractor
    if ref in PUBLISHED and not Path(ref).exists() and wanted in OTHERS_THAN_ADM:
        raise UserError(f"--ref {ref}: was made with inception, and {wanted} is wanted; python -m evaluation ref makes one")
    return wanted


def choose_extractor(reference: Reference | None, wanted: str | None, settings: Settings) -> Outputs:
    """The extractor to load: `wanted`, else the one that the reference was made with, else Inception.

    Raises:
        UserError: if the reference was made with another, as far as that can be seen before its weights are loaded.
    """
    made_with = reference.provenance.extractor if reference else None
    if reference and reference.kind == ADM_KIND and wanted in OTHERS_THAN_ADM:
        made_with = "inception"
    if wanted and made_with and wanted != made_with:
        own = PROTOCOLS[settings.protocol].extractor
        asked = f"--protocol {settings.protocol} is of the extractor {wanted}" if own else f"--extractor {wanted}"
        raise UserError(f"{asked}: {reference.path} was made with {made_with}; numbers across extractors mean nothing")
    name = wanted or made_with or "inception"
    if name not in EXTRACTORS:
        raise UserError(f"there is no extractor {name!r}; choose from {', '.join(EXTRACTORS)}")
    found = EXTRACTORS[name]
    if reference and reference.mu is not None and len(reference.mu) != found.dimension:
        raise UserError(f"{reference.path} has {len(reference.mu)} features, but {name} gives {found.dimension}")
    return found


def choose_metrics(
    reference: Reference | None, extractor: Extractor | Outputs, settings: Settings
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The metrics that can be had of this reference, and for each other one of the protocol, why not.

    Raises:
        UserError: if one that was asked for by name cannot be had.
    """
    wanted = settings.metrics or tuple(name for name in METRICS if name in (*PROTOCOLS[settings.protocol].own, *BY_DEFAULT))
    left_out = {}
    for name in wanted:
        if name == "is":
            if not extractor.logits:
                left_out[name] = f"the extractor {extractor.name} has no logits, which IS needs"
        elif name == "sfid" and not extractor.spatial_dimension:
            left_out[name] = f"the extractor {extractor.name} has no spatial features, which sFID needs"
        elif name == "sfid" and reference.mu_s is None and reference.mu is not None:
            left_out[name] = f"{reference.path} has no mu_s and sigma_s, which sFID needs"
        elif name in FROM_FEATURES and reference.images is None and reference.features is None:
            left_out[name] = f"{reference.path} has statistics but neither images nor features, which {LABELS[name]} needs"
    if left_out and settings.metrics:
        raise UserError(next(iter(left_out.values())))
    return tuple(name for name in wanted if name not in left_out), left_out


def check_reference(reference: Reference, extractor: Extractor) -> None:
    """Raises UserError if the reference was made with other weights than these, or cannot be extracted with them."""
    if reference.mu_s is not None and extractor.spatial_dimension not in (0, len(reference.mu_s)):
        raise UserError(
            f"{reference.path} has {len(reference.mu_s)} spatial features, "
            f"but {extractor.name} gives {extractor.spatial_dimension}"
        )
    recorded = reference.provenance.weights_sha256
    if recorded not in (None, extractor.weights_sha256):
        raise UserError(
            f"{reference.path} was made with other weights of {extractor.name} (SHA-256 {recorded[:12]}, "
            f"here {extractor.weights_sha256[:12]})"
        )
    if reference.images:
        check_reference_images(reference.images, extractor)


def check_reference_images(images: Images, extractor: Extractor) -> None:
    """Raises UserError if no statistics can be made of these images."""
    check_size(str(images.path), images.height, images.width, extractor)
    if images.count < 2:
        raise UserError(f"{images.path} holds {images.count} image; a reference needs a covariance, so at least 2")


def check_size(what: str, height: int, width: int, extractor: Extractor, reference: Reference | None = None) -> None:
    """Raises UserError if the extractor takes one image size only, and not this one, or the reference is of another."""
    size = extractor.image_size
    if size and (height, width) != (size, size):
        raise UserError(f"{what}: images of {width} x {height}, but the extractor {extractor.name} takes {size} x {size} only")
    if reference:
        check_size_of_reference(what, height, width, reference, extractor.name)


def check_size_of_reference(what: str, height: int, width: int, reference: Reference, extractor: str) -> None:
    """Raises UserError if the reference is of another size than these images; before the extractor of that name is loaded."""
    size = reference.image_size
    if not size or size == (height, width):
        return
    remedy = ""
    if height == width and not (reference.images and reference.path.suffix == ".npz"):  # whose images are what they are
        remedy = f"; {making_reference(reference.path if reference.images else 'IMAGES', height, extractor)}"
    are = f"images of {width} x {height}, but the reference {reference.path} is of {size[1]} x {size[0]}"
    raise UserError(f"{what}: {are}{remedy}")


def making_reference(images: Path | str, size: int, extractor: str) -> str:
    """The command that makes a reference of images of any size, in a clause."""
    options = "" if extractor == "inception" else f" --extractor {extractor}"
    command = f"python -m evaluation ref {shlex.quote(str(images))} --image-size {size}{options} --out REF.npz"
    return f"{command} makes one of this size"


def check_samples(
    images: Images, metrics: tuple[str, ...], reference: Reference | None, extractor: Extractor, settings: Settings
) -> dict[str, str]:
    """Which of `metrics` cannot be had of so many samples, and why.

    Raises:
        UserError: if the images fit neither extractor nor reference, or are too few for a metric that was asked for by name.
    """
    check_size(str(images.path), images.height, images.width, extractor, reference)
    pairs = images.count if reference is None else min(images.count, reference.comparable)
    splits = FIDELITY_IS_SPLITS if settings.protocol == "torch-fidelity" else 1
    least = {
        **{"fid": 2, "sfid": 2, "vendi": 2, "is": splits, "fid-infinity": PER_DIMENSION * extractor.dimension},
        **dict.fromkeys(("precision", "recall"), NEIGHBOURS + 1),
        **dict.fromkeys(("density", "coverage"), DENSITY_NEIGHBOURS + 1),
        "kid": settings.kid_subset_size,
    }
    short = {}
    for name in metrics:
        both, needed = name in FROM_FEATURES, least[name]
        count = pairs if both else images.count
        if count < needed:
            sides = " on either side" if both else ""
            short[name] = f"{LABELS[name]} needs at least {needed:,} images{sides}, and there are {count:,}"
    if short and (settings.metrics or "fid" in short):
        hint = "; --kid-subset-size makes do with fewer" if "kid" in short else ""
        raise UserError(f"{images.path}: {next(iter(short.values()))}{hint}")
    return short


def check_class_names(images: Images, names: ClassNames) -> None:
    """Raises UserError if names that were given are not those of the run that the samples are of, or a label is beyond them."""
    if (own := names_beside(images.path)) and own.names != names.names:
        raise UserError(
            f"--class-names: they are not those that {images.path} was drawn with, for {difference(own.names, names.names)}; "
            "leave the option out, and the run's are taken"
        )
    if images.labels is not None and (most := int(images.labels.max())) > len(names.names):
        raise UserError(f"--class-names: names {len(names.names):,} classes, but {images.path} has the label {most:,}")


def deviations(metric: str, reference: Reference | None, extractor: Extractor, settings: Settings) -> list[str]:
    """How one number's making differs from its protocol's."""
    found = []
    if metric in PROTOCOLS[settings.protocol].borrowed and metric != "is-shuffled":
        owner = next(name for name, protocol in PROTOCOLS.items() if metric in protocol.own)
        found.append(f"{settings.protocol} defines no {LABELS[metric]}; this is {owner}'s")
    found += _deviations_of_extractor(metric, extractor, settings)
    if extractor.name in ("inception", "inception-clean"):
        if settings.protocol in ("adm", "clean"):
            found.append("the network is torch-fidelity's port of the TensorFlow graph")
        if not extractor.as_published:
            found.append("the Inception weights are not the published file")
        if settings.protocol == "torch-fidelity" and metric in ("precision", "recall"):
            found.append("on Inception's pool3, where torch-fidelity's default is VGG16")
    if extractor.dtype != "float32":
        found.append(f"the network ran in {extractor.dtype}")
    if reference and metric in ("fid", "sfid") and reference.kind == "statistics without provenance":
        found.append("the reference does not say with what network and resize it was made")
    if reference and reference.provenance.dtype not in (None, extractor.dtype) and metric != "is":
        found.append(f"the reference was made in {reference.provenance.dtype}")
    if metric in ("precision", "recall") and settings.protocol == "adm" and not settings.fp16_compat:
        found.append("distances are float32; ADM's are float16, which --fp16-compat gives")
    if metric in ("precision", "recall") and settings.fp16_compat:
        found.append("float16 in ADM's order of operations, which was not compared with TensorFlow's kernels")
    if metric == "kid" and settings.protocol == "clean":
        found.append("subsets are drawn with a seed; clean-fid's have none, and are smaller where there are few images")
    if metric == "kid" and settings.kid_subset_size != KID_SUBSET_SIZE:
        found.append(f"subsets of {settings.kid_subset_size:,} instead of {KID_SUBSET_SIZE:,}")
    return found


def _deviations_of_extractor(metric: str, extractor: Extractor, settings: Settings) -> list[str]:
    """What a protocol is not known for: another extractor, or what its own differs in."""
    own = PROTOCOLS[settings.protocol].extractor
    if own is None and extractor.name in OTHERS_THAN_ADM:
        return [f"the extractor is {extractor.name}, where {settings.protocol}'s is inception"]
    if own != "dinov2":
        return []
    found = ["the network is timm's implementation of DINOv2"]
    if metric == "fid":
        found.append("the resize is EDM2's, in float32; dgm-eval's rounds to whole levels")
    if metric in ("precision", "recall"):
        found.append("EDM2 has none; dgm-eval takes the 5th neighbour, among 10,000 random images of either side")
    return found


def warnings(
    images: Images, reference: Reference | None, extractor: Extractor, metrics: Iterable[str], sorted_by_class: bool
) -> list[str]:
    """What a reader has to know before comparing these numbers with others."""
    found, fid = [], called("fid", extractor)[1]
    published = extractor.name != "digits"  # whether there are numbers of others to compare with
    for metric, dimension in (("fid", extractor.dimension), ("sfid", extractor.spatial_dimension)):
        if metric in metrics and images.count <= dimension:
            found.append(
                f"{called(metric, extractor)[1]} of {images.count:,} samples in {dimension:,} dimensions: the covariance is "
                "singular, and the value is far above that of many samples."
            )
    if "fid" in metrics and published and images.count != PUBLISHED_COUNT:
        found.append(f"This is not {fid}-50K: it was computed on {images.count:,} samples, and {fid} depends on their number.")
    made_of = reference.count_for("fid") if reference and {"fid", "sfid"} & set(metrics) else None
    if made_of and made_of < PUBLISHED_COUNT and published:
        name = reference.provenance.source or reference.path.name
        adms = "" if extractor.suffix else ", which ADM's files hold as mu and sigma"
        singular = "their covariance is singular, and " if made_of <= extractor.dimension else ""
        found.append(
            f"The reference statistics were computed on the {made_of:,} images of {name}; {singular}"
            f"published numbers use those of the whole training set{adms}."
        )
    if reference and reference.kind == "statistics without provenance" and "fid" in metrics:
        whose = "clean-fid" if extractor.name == "inception-clean" else "ADM"
        found.append(
            f"{reference.path.name} does not say how it was made; pytorch-fid, for one, resizes in another way than {whose}, "
            f"and its statistics give another {fid}."
        )
    found += remarks(images, SAMPLES) + remarks(reference and reference.images, "reference images")
    if images.resize:
        found.append(f"The samples are not as they are in their files: {images.resize}.")
    if reference and reference.provenance.not_read:
        not_read = reference.provenance.not_read
        found.append(f"When {reference.path.name} was made, files that look like images were not read: {not_read}.")
    if "is-shuffled" in metrics and (sorted_by_class or labels_are_sorted(images.labels)):
        found.append(
            "The file looks sorted by class, so that blocks of consecutive images hold few classes and the IS is too low; "
            "the shuffled IS is not."
            if images.count > ADM_IS_BLOCK
            else f"The file looks sorted by class; up to {ADM_IS_BLOCK:,} images are one block, so the IS does not suffer here."
        )
    return found


def warnings_of_classes(scores: "Scores", fid: str) -> list[str]:
    """What a reader has to know of FID by class."""
    found, count = [], len(scores.classes)
    if count and (lacking := scores.pairing.lacking):
        some = ", ".join(lacking[:CLASSES_SHOWN]) + (", ..." if len(lacking) > CLASSES_SHOWN else "")
        found.append(
            f"The reference has no images of {len(lacking):,} of the samples' classes ({some}), so {fid} by class lacks them."
        )
    if scores.astray > ASTRAY * count:
        found.append(
            f"In {fid} by class, those of {scores.astray:,} of {count:,} classes lie nearer to another class of the reference "
            "than to their own: they are not what their labels say, or the two sides number or call their classes differently."
        )
    return found


def labels_are_sorted(labels: np.ndarray | None) -> bool:
    """Whether labels only rise, from one class at least to another."""
    return labels is not None and len(labels) > 1 and bool((np.diff(labels) >= 0).all()) and labels[0] != labels[-1]


def looks_sorted(predicted: np.ndarray) -> bool:
    """Whether neighbours in the file are predicted to be of one class far more often than chance has it."""
    pairs = len(predicted) - 1
    if pairs < 1:
        return False
    shares = np.unique(predicted, return_counts=True)[1] / len(predicted)
    chance, seen = float((shares**2).sum()), float((np.diff(predicted) == 0).mean())
    beyond_noise = (seen - chance) * pairs**0.5 > 6 * (chance * (1 - chance)) ** 0.5
    return chance < 1 and beyond_noise and (seen - chance) / (1 - chance) > 0.2


def spread_of_labels(labels: np.ndarray | None) -> str | None:
    """How the classes are represented, since random and balanced labels give different numbers."""
    if labels is None:
        return None
    counts = np.unique(labels, return_counts=True)[1]
    return f"{len(counts):,} different, {counts.min():,} to {counts.max():,} images each"
