"""From images and what reconstructs them to a result."""

import platform
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import torch

from fiducial import UserError, printable
from fiducial.evaluation.caveats import deviations
from fiducial.evaluation.data.references import Reference
from fiducial.evaluation.data.remarks import missing, repeated
from fiducial.evaluation.features import spec_of
from fiducial.evaluation.features.extraction import Features, extract
from fiducial.evaluation.making import moments_of_features
from fiducial.evaluation.metrics import METRICS, called, intervals
from fiducial.evaluation.metrics.pairs import ERROR, PairInputs, psnr_values
from fiducial.evaluation.metrics.similarity import psnr_of
from fiducial.evaluation.reconstruction.measuring import Measured, Reconstruct, measure
from fiducial.evaluation.reconstruction.pictures import shown_images
from fiducial.evaluation.reconstruction.preparing import DISTANCE, IMAGES, Prepared
from fiducial.evaluation.reconstruction.result import Reconstruction, Worst
from fiducial.evaluation.record import PACKAGES, described_extractor, described_reference
from fiducial.evaluation.results.parts import Number
from fiducial.precision import plain_float32
from fiducial.ranks.cores import bounded_threads

WORST = 10  # images that are named
FLOATS = "reconstructions are floats, not rounded to the 256 levels that files have"
OWNERS = {"psnr": "scikit-image", "ssim": "scikit-image", "lpips": "lpips", "lpips-vgg": "lpips"}


def reconstruct_all(prepared: Prepared, reconstruct: Reconstruct, codec: Mapping, rounded: bool = True) -> Reconstruction | None:
    """The result, on rank 0; to be called by all ranks.

    Args:
        codec: the autoencoder as the result records it.
        rounded: whether reconstructions are uint8.

    Raises:
        UserError: if an image cannot be read or reconstructed.
    """
    images, group, settings = prepared.images, prepared.group, prepared.settings
    columns = (ERROR, *(name for name in prepared.metrics if name not in (DISTANCE, "psnr")))
    with settings.cache(group) if prepared.extractor else nullcontext(Path(gettempdir())) as cache:
        originals, reference = _originals(prepared, cache)
        measured = measure(
            images, reconstruct, columns, prepared.perceptual, prepared.extractor, group, settings.batch_size, cache
        )
        if originals is not None and originals.pixels_sha256 != measured.originals_sha256:
            raise UserError(f"{images.path}: its images have changed while they were read")
        inputs = PairInputs(measured.columns, group, measured.features, originals, reference)
        with bounded_threads(group), torch.inference_mode(), plain_float32():
            found = {name: METRICS[name].of(inputs) for name in prepared.metrics}
        noted = _notes(prepared, measured, originals, found) if group.is_main else []  # while features are there
    if not group.is_main:
        return None
    result = _recorded(prepared, found, measured, reference or _as_reference(prepared, originals), dict(codec), rounded)
    result = replace(result, warnings=(*prepared.notes, *noted))
    return replace(result, shown=shown_images(images, reconstruct, result.worst, METRICS[result.worst_by].label))


def _originals(prepared: Prepared, cache: Path) -> tuple[Features | None, Reference | None]:
    """The originals' features where rFID is to them, else the reference with its moments; neither without rFID."""
    if prepared.extractor is None:
        return None, None
    how = (prepared.extractor, prepared.group, prepared.settings.batch_size, cache)
    reference = prepared.reference
    if reference is None:
        return extract(prepared.images, *how), None
    if reference.mu is None:
        theirs = extract(reference.images, *how)
        reference = replace(reference, sha256=theirs.content_sha256, **moments_of_features(theirs))
    return None, reference


def _as_reference(prepared: Prepared, originals: Features | None) -> Reference | None:
    """The originals as a reference."""
    return originals and Reference(prepared.images.path, originals.content_sha256, "images", images=prepared.images)


def _recorded(
    prepared: Prepared,
    found: Mapping[str, intervals.Measured | None],
    measured: Measured,
    reference: Reference | None,
    codec: dict,
    rounded: bool,
) -> Reconstruction:
    """The result without warnings and pictures."""
    images, group, extractor = prepared.images, prepared.group, prepared.extractor
    keys, identical = {name: _called(name, prepared) for name in found}, int((measured.columns[ERROR] == 0).sum())
    numbers = {
        keys[name][0]: _number(
            *(name, keys[name][1], one), images.count - (identical if name == "psnr" else 0), prepared, reference, rounded
        )
        for name, one in found.items()
        if one
    }
    moves = {keys[name][0]: one.moves for name, one in found.items() if one and one.moves is not None}
    worst_by, worst = _worst(prepared, measured)
    return Reconstruction(
        metrics=numbers,
        warnings=(),
        left_out={
            keys[name][1]: "every reconstruction equals its original, and has an infinite PSNR"
            for name in found
            if not found[name]
        },
        originals={
            "path": printable(str(images.path)),
            "count": images.count,
            "image_size": [images.height, images.width],
            "resize": images.resize,
            "not_read": images.not_read,
            "pixels_sha256": measured.originals_sha256,
        },
        codec=codec | {"pixels_sha256": measured.pixels_sha256},
        reference=reference and described_reference(reference),
        extractor=extractor and described_extractor(extractor),
        perceptual={
            name: {"network": one.spec.title, "sha256": one.sha256, "as_published": one.as_published}
            for name, one in prepared.perceptual.items()
        },
        settings={
            "protocol": prepared.settings.protocol,
            "device": group.device.type,
            "world_size": group.world_size,
            "batch_size": prepared.settings.batch_size,
        },
        packages={"python": platform.python_version(), **{name: version(name) for name in (*PACKAGES, "diffusers")}},
        identical=identical,
        worst_by=worst_by,
        worst=worst,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        moves=moves,
    )


def _called(name: str, prepared: Prepared) -> tuple[str, str]:
    """The key and the label of a metric."""
    return called(name, prepared.extractor) if name == DISTANCE else (name, METRICS[name].label)


def _number(
    name: str,
    label: str,
    one: intervals.Measured,
    count: int,
    prepared: Prepared,
    reference: Reference | None,
    rounded: bool,
) -> Number:
    """A number of `count` images with what it is."""
    owner, definition, different, others = OWNERS.get(name), METRICS[name].definition, [], None
    if name == DISTANCE:
        against = "their originals" if prepared.reference is None else "the reference"
        owner = prepared.settings.protocol
        definition = prepared.settings.rules.definition(name, prepared.extractor.name, against)
        different = deviations("fid", prepared.reference, prepared.extractor, prepared.settings)
        others = reference.count_for("fid")
    floats = () if rounded else (FLOATS,)
    return Number(
        name,
        label,
        **asdict(one.plain),
        n=count,
        reference_n=others,
        protocol=owner,
        definition=definition,
        deviations=(*floats, *different),
    )


def _worst(prepared: Prepared, measured: Measured) -> tuple[str, tuple[Worst, ...]]:
    """By which value images are the worst, and those that are, the worst first."""
    columns, names = measured.columns, prepared.images.names
    by = next(iter(prepared.perceptual), "psnr")
    badness = columns[by] if by != "psnr" else columns[ERROR]
    psnr = psnr_values(columns[ERROR])

    def of(name: str, index: int) -> float | None:
        return float(columns[name][index]) if name in columns else None

    return by, tuple(
        Worst(
            index,
            printable(names[index]) if names else None,
            float(psnr[index]) if np.isfinite(psnr[index]) else None,
            of("ssim", index),
            of(next(iter(prepared.perceptual), "lpips"), index),
        )
        for index in np.argsort(-badness, kind="stable")[:WORST].tolist()
    )


def _notes(
    prepared: Prepared, measured: Measured, originals: Features | None, found: Mapping[str, intervals.Measured | None]
) -> list[str]:
    """Sentences that a reader has to know before comparing these numbers with others."""
    images, extractor, count = prepared.images, prepared.extractor, prepared.images.count
    notes = missing(images, IMAGES)
    if extractor is not None:
        label, usual = called(DISTANCE, extractor)[1], METRICS[DISTANCE].published_count
        if count <= extractor.dimension:
            notes.append(
                f"{label} of {count:,} images in {extractor.dimension:,} dimensions: the covariances are singular, the value is "
                "another than that of many images, and has no interval."
            )
        if count != usual and spec_of(extractor.name).comparable:
            notes.append(
                f"This is not {label}-{usual // 1000}K: it was computed on {count:,} images, and {label} depends on their number."
            )
    if originals is not None and (different := len(originals.first_of_each())) < count:
        notes.append(repeated(different, count, IMAGES))
    if images.resize:
        notes.append(f"The originals are not as they are in their files: {images.resize}.")
    errors = measured.columns[ERROR]
    if "psnr" in found and (same := int((errors == 0).sum())):
        rest = f"PSNR is the mean over the other {count - same:,}" if same < count else "there is no PSNR"
        pooled = f"; that of the mean squared error over all is {psnr_of(float(errors.mean())):.4f} dB" if same < count else ""
        notes.append(f"{same:,} of {count:,} reconstructions equal their originals, with an infinite PSNR: {rest}{pooled}.")
    return notes
