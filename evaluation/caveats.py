"""Caveats of numbers: in what they deviate from their protocol, and what else moves them."""

from collections.abc import Iterable

import numpy as np

from fiducial.evaluation.data.images import Images, are_floats
from fiducial.evaluation.data.published import PUBLISHED
from fiducial.evaluation.data.references import ADM_KIND, WITHOUT_PROVENANCE, Reference
from fiducial.evaluation.data.remarks import SAMPLES, missing, remarks
from fiducial.evaluation.features import DEFAULT, FDR6, differs_from_adm, spec_of
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.metrics import METRICS, PUBLISHED_COUNT, Need, called
from fiducial.evaluation.protocols import Deviation
from fiducial.evaluation.score import Scores
from fiducial.evaluation.settings import Settings

CLASSES_SHOWN = 5  # that a warning names
ASTRAY = 0.1  # of all classes, from which on they may be numbered wrongly


def deviations(metric: str, reference: Reference | None, extractor: Extractor, settings: Settings) -> list[str]:
    """How one number's making differs from its protocol's."""
    rules, row = settings.rules, METRICS[metric]

    def of(rows: Iterable[Deviation]) -> list[str]:
        return [one.text for one in rows if one.holds(metric, extractor.name, settings)]

    found = [f"{rules.name} defines no {row.label}; this is {owner}'s"] if (owner := _borrowed_from(metric, settings)) else []
    if rules.extractor is None and differs_from_adm(extractor.name):
        found.append(f"the extractor is {extractor.name}, where {rules.name}'s is {DEFAULT}")
    found += of_extractor(extractor, rules.name) + of(rules.of_network)
    if extractor.dtype != "float32":
        found.append(f"the network ran in {extractor.dtype}")
    found += reference.deviations(metric, extractor.dtype) if reference else []
    found += of(rules.of_arithmetic)
    return found + ([own] if (own := row.deviation(settings)) else [])


def _borrowed_from(metric: str, settings: Settings) -> str | None:
    """The protocol whose definition of a metric is taken; not for what only comes with another metric."""
    return None if METRICS[metric].follows else settings.rules.defined_by(metric)


def of_extractor(extractor: Extractor, protocol: str) -> list[str]:
    """In what a network and its weights differ from the protocol's own."""
    spec = spec_of(extractor.name)
    found = [spec.caveats[protocol]] if protocol in spec.caveats else []
    if extractor.as_published is False:
        found.append(f"the {spec.weights.title} weights are not the published file")
    return found


def of_panel(others: Iterable[Extractor], reference: Reference) -> list[str]:
    """In what FDr6 of these networks differs from the published one, beside what Inception's part of it does."""
    found = [f"{one.name}: {text}" for one in others for text in of_extractor(one, "adm")]
    published = next((one.extractors for one in PUBLISHED.values() if one.url == reference.url), ())
    if reference.kind != ADM_KIND and not set(FDR6) <= set(published):
        found.append("the reference's Inception statistics are not known to be ADM's, which the published divisor goes with")
    return [*found, "images have 256 levels; FD-loss's own are of floats that were not rounded"]


def warnings(images: Images, reference: Reference | None, extractor: Extractor, metrics: Iterable[str]) -> list[str]:
    """Sentences that a reader has to know before comparing these numbers with others."""
    found, count = [], images.count
    published = spec_of(extractor.name).comparable  # whether there are numbers of others to compare with
    rows = [METRICS[name] for name in metrics]
    distances = [row for row in rows if row.of_distributions]
    for row in distances:
        dimension = extractor.spatial_dimension if row.needs is Need.SPATIAL else extractor.dimension
        if count <= dimension:
            found.append(
                f"{called(row.name, extractor)[1]} of {count:,} samples in {dimension:,} dimensions: the covariance is "
                "singular, and the value is far above that of many samples."
            )
    for row in rows:
        if row.published_count not in (None, count) and published:
            label = called(row.name, extractor)[1]
            usual = f"{label}-{row.published_count // 1000}K"
            found.append(f"This is not {usual}: it was computed on {count:,} samples, and {label} depends on their number.")
    if reference and distances:
        found += _of_statistics(reference, extractor, distances[0].name, published)
    found += remarks(images, SAMPLES) + remarks(reference and reference.images, "reference images")
    if images.resize:
        found.append(f"The samples are not as they are in their files: {images.resize}.")
    if are_floats(images):
        found.append("The images were evaluated as floats, not rounded to 256 levels; numbers of files are of other images.")
    if reference and reference.provenance.not_read:
        not_read = reference.provenance.not_read
        found.append(f"When {reference.path.name} was made, files that look like images were not read: {not_read}.")
    return found


def _of_statistics(reference: Reference, extractor: Extractor, metric: str, published: bool) -> list[str]:
    """Sentences on the reference's statistics, which `metric` is the distance to."""
    found, made_of = [], reference.count_for(metric)
    if made_of and made_of < PUBLISHED_COUNT and published:
        name = reference.provenance.source or reference.path.name
        adms = "" if extractor.suffix else ", which ADM's files hold as mu and sigma"
        singular = "their covariance is singular, and " if made_of <= extractor.dimension else ""
        found.append(
            f"The reference statistics were computed on the {made_of:,} images of {name}; {singular}"
            f"published numbers use those of the whole training set{adms}."
        )
    if reference.kind == WITHOUT_PROVENANCE:
        whose = spec_of(extractor.name).resized_as
        found.append(
            f"{reference.path.name} does not say how it was made; here images are resized as {whose} does it, and statistics of "
            f"images that were resized in another way give another {called(metric, extractor)[1]}."
        )
    return found


def warnings_of_classes(scores: Scores, fid: str) -> list[str]:
    """Sentences that a reader has to know of FID by class."""
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


def warnings_of_training(images: Images | None) -> list[str]:
    """Sentences that a reader has to know of training images, if there are any."""
    found = missing(images, "training images") if images else []
    if images and (lossy := sorted(images.headers.lossy)):
        found.append(f"Training images are {' and '.join(lossy)} files; what copies one lies a little away from it.")
    return found


def spread_of_labels(labels: np.ndarray | None) -> str | None:
    """How the classes are represented, since random and balanced labels give different numbers."""
    if labels is None:
        return None
    counts = np.unique(labels, return_counts=True)[1]
    return f"{len(counts):,} different, {counts.min():,} to {counts.max():,} images each"
