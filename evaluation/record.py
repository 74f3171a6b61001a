"""A result out of scores: every number with what it is, and everything that they depend on."""

import platform
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np

from fiducial import printable
from fiducial.evaluation.caveats import deviations, of_extractor, of_panel, spread_of_labels
from fiducial.evaluation.data.images import Images, Seen, are_floats
from fiducial.evaluation.data.references import Reference
from fiducial.evaluation.data.runs import ClassNames, find_run
from fiducial.evaluation.features import FDR6
from fiducial.evaluation.features.extraction import Features
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.metrics import METRICS, Metric, Need, called
from fiducial.evaluation.metrics.inputs import Inputs
from fiducial.evaluation.pictures import beside, of_samples
from fiducial.evaluation.results.grid import Grid
from fiducial.evaluation.results.parts import Memorisation, Number
from fiducial.evaluation.results.result import Result
from fiducial.evaluation.score import Scores

PACKAGES = ("torch", "torchvision", "torch-fidelity", "numpy", "scipy", "pillow")
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
    memorised, more = scores.memorised, [name for one in (inputs, *inputs.panel) for name in one.extractor.packages]
    grid = grid or of_samples(images)
    return Result(
        metrics=_numbers(images, inputs, scores),
        warnings=tuple(warnings),
        left_out=left_out,
        samples=_described_samples(images, own),
        reference=reference and described_reference(reference),
        extractor=described_extractor(extractor)
        | ({"panel": [described_extractor(one.extractor) for one in inputs.panel]} if inputs.panel else {}),
        settings={
            **settings.recorded(),
            "tf32": False,
            "device": extractor.device.type,
            "world_size": inputs.group.world_size,
            "shuffle_seed": settings.rules.shuffle_seed,
            **{f"{row.name}_seed": row.seed for row in METRICS.values() if _is_seeded(row, scores)},
            "intervals": taken_for(inputs.strata),
            "features": own.origin,
        },
        packages={"python": platform.python_version(), **{name: version(name) for name in (*PACKAGES, *more)}},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        grid=grid,
        real=beside(grid, images, names.names, reference, training, not scores.pairing.why),
        class_names=names if names.names else None,
        curve=scores.curve,
        classes=scores.classes,
        moves=_moves(inputs, scores),
        memorisation=memorised and with_pictures(memorised, images, training),
        training=_described_training(training, memorised) if memorised else None,
    ).drawn_by(find_run(images.path, own.pixels_sha256))


def _moves(inputs: Inputs, scores: Scores) -> dict[str, np.ndarray]:
    """Those of all numbers that have some, by their keys."""
    of_panel = {called("fid", one.extractor)[0]: scores.panel.get(one.extractor.name) for one in (inputs, *inputs.panel)}
    found = {key: one.moves for key, one in of_panel.items() if one and one.moves is not None}
    return found | {called(name, inputs.extractor)[0]: moves for name, moves in scores.moves.items()}


def _is_seeded(row: Metric, scores: Scores) -> bool:
    """Whether a metric's seed is recorded: of what was computed, and beside an option, which is recorded always."""
    return row.seed is not None and (row.name in scores.values or row.option is not None)


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
        if METRICS[name].needs is Need.PANEL:
            more = of_panel([one.extractor for one in inputs.panel], reference)
            found[key] = replace(found[key], deviations=(*found[key].deviations, *more))
    return found | _of_panel(inputs, scores, found)


def _of_panel(inputs: Inputs, scores: Scores, others: dict[str, Number]) -> dict[str, Number]:
    """The distances that FDr6 is the mean of, but for what is there already."""
    found, rules = {}, inputs.settings.rules
    for one in (inputs, *inputs.panel) if scores.panel else ():
        key, label = called("fid", one.extractor)
        distance, divisor = scores.panel[one.extractor.name], FDR6[one.extractor.name]
        share = f"over {divisor:g} it is {distance.value / divisor:.4g}"
        if key not in others:
            found[key] = Number(
                name="fid",
                label=label,
                **asdict(distance.plain),
                n=len(one.own.rows),
                reference_n=one.reference.count_for("fid"),
                protocol=inputs.settings.protocol,
                definition=f"{rules.definition('fid', one.extractor.name)}; {share}",
                deviations=tuple(of_extractor(one.extractor, rules.name)),
            )
    return found


def with_pictures(found: Memorisation, images: Images | Seen, training: Images) -> Memorisation:
    """The same with the pictures of its pairs, where there are files of them."""
    if not isinstance(images, Images):
        return found
    ours, theirs = images.pick([pair.sample for pair in found.pairs]), training.pick([pair.training for pair in found.pairs])
    return replace(found, pictures=[(ours[pair.sample], theirs[pair.training]) for pair in found.pairs])


def described_extractor(extractor: Extractor) -> dict:
    """The extractor as the result records it."""
    return {
        "name": extractor.name,
        "dimension": extractor.dimension,
        "weights_sha256": extractor.weights_sha256,
        "weights": WEIGHTS[extractor.as_published],
        **({"preparation": extractor.preparation} if extractor.preparation else {}),
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


def described_reference(reference: Reference) -> dict:
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
