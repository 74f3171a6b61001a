"""Checks that samples, reference, extractor and metrics go together, before anything is computed."""

import shlex
from pathlib import Path

from fiducial import UserError
from fiducial.classes import difference
from fiducial.evaluation.data.images import Images
from fiducial.evaluation.data.published import PUBLISHED
from fiducial.evaluation.data.references import ADM_KIND, Reference
from fiducial.evaluation.data.runs import ClassNames, names_beside
from fiducial.evaluation.features import DEFAULT, ExtractorSpec, differs_from_adm, spec_of
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.metrics import METRICS, Metric, Need
from fiducial.evaluation.settings import Settings


def check_protocol(ref: str | None, extractor: str | None, settings: Settings) -> str | None:
    """The extractor that was asked for, by name or by the protocol; None if the reference is to say which.

    Raises:
        UserError: if the two differ, or `ref` is published and made with another.
    """
    own = settings.rules.extractor
    if own and extractor not in (None, own):
        raise UserError(f"--extractor {extractor}: --protocol {settings.protocol} is of {own}")
    wanted = own or extractor
    published = PUBLISHED.get(ref) if ref and not Path(ref).exists() else None
    if published and differs_from_adm(wanted) and wanted not in published.extractors:
        made_with = " and ".join(published.extractors)
        raise UserError(f"--ref {ref}: was made with {made_with}, and {wanted} is wanted; python -m evaluation ref makes one")
    return wanted


def choose_extractor(reference: Reference | None, wanted: str | None, settings: Settings) -> ExtractorSpec:
    """The extractor to load: `wanted`, else the one that the reference was made with, else Inception.

    Raises:
        UserError: if the reference was made with another, as far as that can be seen before its weights are loaded.
    """
    if wanted:
        spec_of(wanted)
    made_with = reference.provenance.extractor if reference else None
    if reference and reference.kind == ADM_KIND and differs_from_adm(wanted):
        made_with = DEFAULT
    if wanted and made_with and wanted != made_with:
        own = settings.rules.extractor
        asked = f"--protocol {settings.protocol} is of the extractor {wanted}" if own else f"--extractor {wanted}"
        raise UserError(f"{asked}: {reference.path} was made with {made_with}; numbers across extractors mean nothing")
    name = wanted or made_with or DEFAULT
    found = spec_of(name)
    if reference and reference.mu is not None and len(reference.mu) != found.dimension:
        raise UserError(f"{reference.path} has {len(reference.mu)} features, but {name} gives {found.dimension}")
    return found


def choose_metrics(
    reference: Reference | None, extractor: ExtractorSpec, settings: Settings
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The metrics that can be had of this reference, and for each other one of the protocol, why not.

    Raises:
        UserError: if one that was asked for by name cannot be had.
    """
    wanted = settings.metrics or settings.rules.by_default
    left_out = {name: why for name in wanted if (why := _lacking(METRICS[name], reference, extractor))}
    if left_out and settings.metrics:
        raise UserError(next(iter(left_out.values())))
    return tuple(name for name in wanted if name not in left_out), left_out


def _lacking(metric: Metric, reference: Reference | None, extractor: ExtractorSpec) -> str | None:
    """Why a metric cannot be had, if it cannot."""
    if metric.needs is Need.LOGITS and not extractor.has_logits:
        return f"the extractor {extractor.name} has no logits, which {metric.label} needs"
    if metric.needs is Need.SPATIAL and not extractor.spatial_dimension:
        return f"the extractor {extractor.name} has no spatial features, which {metric.label} needs"
    if metric.needs is Need.SPATIAL and reference.mu_s is None and reference.mu is not None:
        return f"{reference.path} has no mu_s and sigma_s, which {metric.label} needs"
    if metric.needs is Need.FEATURES and reference.images is None and reference.features is None:
        return f"{reference.path} has statistics but neither images nor features, which {metric.label} needs"
    return None


def check_reference(reference: Reference, extractor: Extractor) -> None:
    """Raise UserError if the reference was made with other weights than these, or cannot be extracted with them."""
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
    """Raise UserError if no statistics can be made of these images."""
    check_size(str(images.path), images.height, images.width, extractor)
    if images.count < 2:
        raise UserError(f"{images.path} holds {images.count} image; a reference needs a covariance, so at least 2")


def check_size(what: str, height: int, width: int, extractor: Extractor, reference: Reference | None = None) -> None:
    """Raise UserError if the extractor takes one image size only, and not this one, or the reference is of another."""
    size = extractor.image_size
    if size and (height, width) != (size, size):
        raise UserError(f"{what}: images of {width} x {height}, but the extractor {extractor.name} takes {size} x {size} only")
    if reference:
        check_size_of_reference(what, height, width, reference, extractor.name)


def check_size_of_reference(what: str, height: int, width: int, reference: Reference, extractor: str) -> None:
    """Raise UserError if the reference is of another size than these images; before the extractor of that name is loaded."""
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
    options = "" if extractor == DEFAULT else f" --extractor {extractor}"
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
    short = {}
    for name in metrics:
        row = METRICS[name]
        both, needed = row.needs is Need.FEATURES, row.at_least(extractor.dimension, settings)
        count = pairs if both else images.count
        if count < needed:
            sides = " on either side" if both else ""
            short[name] = f"{row.label} needs at least {needed:,} images{sides}, and there are {count:,}"
    if short and (settings.metrics or images.count < 2):  # of which there is no distance either
        hints = "".join(f"; {fewer}" for name in short if (fewer := METRICS[name].fewer))
        raise UserError(f"{images.path}: {next(iter(short.values()))}{hints}")
    return short


def check_class_names(images: Images, names: ClassNames) -> None:
    """Raise UserError if names that were given are not those of the run that the samples are of, or a label is beyond them."""
    if (own := names_beside(images.path)) and own.names != names.names:
        raise UserError(
            f"--class-names: they are not those that {images.path} was drawn with, for {difference(own.names, names.names)}; "
            "leave the option out, and the run's are taken"
        )
    if images.labels is not None and (most := int(images.labels.max())) > len(names.names):
        raise UserError(f"--class-names: names {len(names.names):,} classes, but {images.path} has the label {most:,}")
