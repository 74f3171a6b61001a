"""A result out of scores: every number with what it is, and everything that they depend on."""

import platform
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np

from fiducial import printable
from fiducial.evaluation.caveats import deviations, spread_of_labels
from fiducial.evaluation.data.images import Images, Seen, are_floats
from fiducial.evaluation.data.references import Reference
from fiducial.evaluation.data.runs import ClassNames, find_run
from fiducial.evaluation.features.extraction import Features
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.metrics import METRICS, Need, called
from fiducial.evaluation.metrics.inputs import Inputs
from fiducial.evaluation.results.grid import Grid
from fiducial.evaluation.results.parts import Memorisation, Number
from fiducial.evaluation.results.result import Result
from fiducial.evaluation.score import Scores

PACKAGES = ("torch", "torchvision", "torch-fidelity", "numpy", "scipy", "pillow")
GRID_ROWS, GRID_COLUMNS = 10, 10
FLOATS = "the images were floats, not rounded to the 256 levels that files have"
WEIGHTS = {True: "as published", False: "not the published file", None: "the published file's hash is not known here"}


def record(
    images: Images | Seen,
    inputs: Inputs,
    scores: Scores,
    warnings: list[str],
    left_out: dict[str, str],
    training: Images | None,
    names: ClassNames,
    grid: Grid | None,
) -> Result:
    """The result of samples, with pictures of them, which are `grid` where they are not in files.

    Args:
        training: the images that `inputs` has features of.
        names: of the samples' classes.
    """
    own, reference, extractor, settings = inputs.own, inputs.reference, inputs.extractor, inputs.settings
    memorised = scores.memorised
    return Result(
        metrics=_numbers(images, inputs, scores),
        warnings=tuple(warnings),
        left_out=left_out,
        samples=_described_samples(images, own),
        reference=reference and _described_reference(reference),
        extractor=_described_extractor(extractor),
        settings={
            **settings.recorded(),
            "tf32": False,
            "device": extractor.device.type,
            "world_size": inputs.group.world_size,
            "shuffle_seed": settings.rules.shuffle_seed,
            **{f"{row.name}_seed": row.seed for row in METRICS.values() if row.seed is not None},
            "intervals": taken_for(inputs.strata),
            "features": own.origin,
        },
        packages={"python": platform.python_version(), **{name: version(name) for name in (*PACKAGES, *extractor.packages)}},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        grid=grid or _grid_of(images),
        class_names=names if names.names else None,
        curve=scores.curve,
        classes=scores.classes,
        moves={called(name, extractor)[0]: moves for name, moves in scores.moves.items()},
        memorisation=memorised and with_pictures(memorised, images, training),
        training=_described_training(training, memorised) if memorised else None,
    ).drawn_by(find_run(images.path, own.pixels_sha256))


def taken_for(strata: np.ndarray | None) -> str:
    """How the samples were drawn, as their intervals take it."""
    if strata is None:
        return "samples are drawn independently"
    return f"labels are balanced: of each of {strata.max() + 1:,} classes a fixed number of samples is drawn"


def _numbers(images: Images | Seen, inputs: Inputs, scores: Scores) -> dict[str, Number]:
    """All numbers by their keys, with what they are."""
    of_images = (FLOATS,) if are_floats(images) else ()
    reference, extractor, settings, found = inputs.reference, inputs.extractor, inputs.settings, {}
    for name, estimate in scores.values.items():
        key, label = called(name, extractor)
        of_training = METRICS[name].needs is Need.TRAINING
        others = scores.memorised.training_n if of_training else reference and reference.count_for(name)
        n, reference_n = METRICS[name].uses(images.count, others)
        found[key] = Number(
            name=name,
            label=label,
            **asdict(estimate),
            n=n,
            reference_n=reference_n,
            protocol=settings.protocol,
            definition=settings.rules.definition(name, extractor.name),
            deviations=(*of_images, *deviations(name, None if of_training else reference, extractor, settings)),
        )
    return found


def with_pictures(found: Memorisation, images: Images | Seen, training: Images) -> Memorisation:
    """The same with the pictures of its pairs, where there are files of them."""
    if not isinstance(images, Images):
        return found
    ours, theirs = images.pick([pair.sample for pair in found.pairs]), training.pick([pair.training for pair in found.pairs])
    return replace(found, pictures=[(ours[pair.sample], theirs[pair.training]) for pair in found.pairs])


def _grid_of(images: Images) -> Grid:
    """The report's pictures."""
    grid = Grid.choose(images.labels, images.count, GRID_ROWS, GRID_COLUMNS)
    grid.fill(images.pick)
    return grid


def _described_extractor(extractor: Extractor) -> dict:
    """The extractor as the result records it."""
    return {
        "name": extractor.name,
        "dimension": extractor.dimension,
        "weights_sha256": extractor.weights_sha256,
        "weights": WEIGHTS[extractor.as_published],
    }


def _described_samples(images: Images | Seen, own: Features) -> dict:
    """Samples as the result records them."""
    return {
        "path": printable(str(images.path)),
        "count": images.count,
        "image_size": [images.height, images.width],
        "resize": images.resize,
        **({"rounding": "none"} if are_floats(images) else {}),
        "not_read": images.not_read,
        "labels": spread_of_labels(images.labels),
        "content_sha256": own.content_sha256,
        "pixels_sha256": own.pixels_sha256,
    }


def _described_training(images: Images, memorised: Memorisation) -> dict:
    """The training images as the result records them."""
    return {"path": printable(str(images.path)), "count": images.count, "pixels_sha256": memorised.training_sha256}


def _described_reference(reference: Reference) -> dict:
    """A reference as the result records it."""
    provenance = reference.provenance
    images = reference.images
    return {
        "path": printable(str(reference.path)),
        "url": reference.url,
        "kind": reference.kind,
        "sha256": reference.sha256,
        "pixels_sha256": provenance.pixels_sha256,
        "image_size": reference.image_size and list(reference.image_size),
        "weights_sha256": provenance.weights_sha256,
        "extractor": provenance.extractor,
        "dtype": provenance.dtype,
        "resize": images.resize if images else provenance.resize,
        "not_read": images.not_read if images else provenance.not_read,
        "count": provenance.count,
        "images": images.count if images else None,
        "features": provenance.features,
        "source": provenance.source,
    }
