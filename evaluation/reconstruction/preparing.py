"""All that a measurement of reconstructions needs besides the autoencoder, checked before anything is computed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fiducial import Group, UserError
from fiducial.evaluation.data.images import Images
from fiducial.evaluation.data.opening import open_images
from fiducial.evaluation.data.references import Reference, find_reference, holds_statistics
from fiducial.evaluation.data.remarks import REFERENCE, look_at, require_levels, tell, weights_unlike_published
from fiducial.evaluation.features import lpips
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.features.load import given_for, load_extractor, require_taken
from fiducial.evaluation.features.lpips import Perceptual
from fiducial.evaluation.features.perceptual import PERCEPTUAL
from fiducial.evaluation.fit import check_protocol, check_reference, check_size, choose_extractor
from fiducial.evaluation.metrics import of_pairs
from fiducial.evaluation.metrics.similarity import LEAST
from fiducial.evaluation.settings import Settings

BY_DEFAULT = ("rfid", "psnr", "ssim", "lpips")
DISTANCE = "rfid"
IMAGES = "images"  # what they are called in sentences


@dataclass(frozen=True)
class Prepared:
    """The images, the metrics that are wanted of them, and the loaded networks of those.

    `reference` is of other images, None where rFID is to the originals, or not wanted; then `extractor` is None too. `said` are
    sentences that were said on this rank's terminal, `notes` those that belong in the result.
    """

    images: Images
    metrics: tuple[str, ...]
    settings: Settings
    group: Group
    extractor: Extractor | None = None
    reference: Reference | None = None
    perceptual: Mapping[str, Perceptual] = ()
    notes: tuple[str, ...] = ()
    said: tuple[str, ...] = ()


def parse_metrics(text: str | None) -> tuple[str, ...]:
    """The metrics in a text with commas between, in the order of METRICS; those by default of None.

    Raises:
        UserError: if one is unknown, or there is none.
    """
    names = BY_DEFAULT if text is None else [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError(f"--metrics names none: choose from {', '.join(of_pairs())}")
    if unknown := [name for name in names if name not in of_pairs()]:
        raise UserError(f"--metrics {unknown[0]}: no such metric of reconstructions; choose from {', '.join(of_pairs())}")
    return tuple(name for name in of_pairs() if name in names)


def open_originals(path: Path, crop: int | None, metrics: tuple[str, ...], group: Group) -> tuple[Images, tuple[str, ...]]:
    """The images that are to be reconstructed, and what was said of them on the terminal.

    Raises:
        UserError: if there are none, or the metrics do not take their size.
    """
    if holds_statistics(path):
        raise UserError(f"{path} holds mu and sigma, so it is a reference; give images, and this as --ref for rFID to it")
    images = open_images(path, crop)
    least = {"ssim": LEAST, **{name: spec.least for name, spec in PERCEPTUAL.items()}}
    for name in metrics:
        if min(images.height, images.width) < least.get(name, 1):
            raise UserError(
                f"--metrics {name}: takes images of {least[name]} pixels a side and more, and {path} holds images of "
                f"{images.width} x {images.height}; leave it out"
            )
    said = look_at(images, IMAGES, group)
    require_levels(images, IMAGES, group)
    return images, said


def prepare(
    images: Images,
    metrics: tuple[str, ...],
    ref: str | None,
    group: Group,
    settings: Settings,
    extractor: str | None = None,
    weights: Mapping[str, str | Path] | None = None,
    said: tuple[str, ...] = (),
) -> Prepared:
    """Load the networks that the metrics need, and read the reference.

    Args:
        ref: of rFID, as `calc` takes it; None for the originals.
        weights: files by the name of whose weights they are.

    Raises:
        UserError: if something is missing or does not fit.
    """
    own = {one.name for name, spec in PERCEPTUAL.items() if name in metrics for one in spec.weights}
    of_networks = {name: path for name, path in (weights or {}).items() if name in own}
    others = {name: path for name, path in (weights or {}).items() if name not in own}
    if DISTANCE not in metrics and (
        given := [f"--ref {ref}"] * (ref is not None) + [f"--extractor {extractor}"] * bool(extractor)
    ):
        raise UserError(f"{given[0]}: only rfid takes it, which --metrics leaves out")
    if DISTANCE not in metrics:
        require_taken((), others)
    files = {
        name: lpips.find(spec, of_networks, group, settings.cache_dir) for name, spec in PERCEPTUAL.items() if name in metrics
    }
    perceptual = {name: lpips.load(PERCEPTUAL[name], found, group.device) for name, found in files.items()}
    network, reference = None, None
    if DISTANCE in metrics:
        settings.check_cache()
        network, reference, more = _with_reference(images, ref, group, settings, extractor, others)
        said += more
    notes = [
        f"{name.upper()} was computed with weights that are not the published files: compare no number with published ones."
        for name, one in perceptual.items()
        if not one.as_published
    ]
    if network is not None and (unlike := weights_unlike_published(network, given_for(network.name, others))):
        notes.append(unlike)
    if group.is_main:
        said += tell(*notes)
    return Prepared(images, metrics, settings, group, network, reference, perceptual, tuple(notes), said)


def _with_reference(
    images: Images, ref: str | None, group: Group, settings: Settings, extractor: str | None, weights: Mapping[str, str | Path]
) -> tuple[Extractor, Reference | None, tuple[str, ...]]:
    """The extractor, the reference, None where it is the originals, and what was said of it."""
    size = images.height if images.height == images.width else None
    wanted = check_protocol(ref, extractor, settings)
    reference = find_reference(ref, group, settings.cache_dir, size, images.crop, wanted) if ref is not None else None
    spec = choose_extractor(reference, wanted, settings)
    require_taken((spec.name,), weights)
    said = look_at(reference and reference.images, REFERENCE, group)
    require_levels(reference and reference.images, REFERENCE, group)
    network = load_extractor(spec.name, weights, group, settings.dtype, settings.cache_dir)
    if reference:
        check_reference(reference, network)
    check_size(str(images.path), images.height, images.width, network, reference)
    if images.count < 2:
        raise UserError(
            f"{images.path}: rFID needs at least 2 images, and there is {images.count}; give --metrics psnr,ssim,lpips"
        )
    return network, reference, said
