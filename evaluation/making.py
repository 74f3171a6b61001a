"""Making a reference of images."""

from collections.abc import Iterable, Sequence

import numpy as np

from fiducial import Group, printable
from fiducial.evaluation.data.images import Images
from fiducial.evaluation.data.numbering import within_one_folder
from fiducial.evaluation.data.references import Provenance, Reference
from fiducial.evaluation.features.extraction import Features, extract_each
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.fit import check_reference_images
from fiducial.evaluation.metrics.statistics import FeatureStatistics
from fiducial.evaluation.settings import Settings

FEATURES_SEED = 0


def make_reference(images: Images, extractor: Extractor, group: Group, settings: Settings, keep: int) -> Reference:
    """The reference by one extractor; see `make_references`."""
    return make_references(images, [extractor], group, settings, keep)[0]


def make_references(
    images: Images, extractors: Sequence[Extractor], group: Group, settings: Settings, keep: int
) -> list[Reference]:
    """Statistics of images by each extractor, in one pass, with their provenance, and the features of `keep` images, at random.

    Raises:
        UserError: if there are too few, or one cannot be read.
    """
    for extractor in extractors:
        check_reference_images(images, extractor)
    with settings.cache(group) as cache:
        seen = extract_each(images, extractors, group, settings.batch_size, cache)
        different = len(seen[0].first_of_each())
    return [_reference(images, extractor, one, keep, different) for extractor, one in zip(extractors, seen, strict=True)]


def _reference(images: Images, extractor: Extractor, seen: Features, keep: int, different: int) -> Reference:
    """The reference of images with these features, of which so many are different."""
    chosen = np.random.default_rng(FEATURES_SEED).choice(images.count, min(keep, images.count), replace=False)
    provenance = Provenance(
        extractor=extractor.name,
        weights_sha256=extractor.weights_sha256,
        count=images.count,
        image_size=images.height,
        image_width=images.width if images.width != images.height else None,
        pixels_sha256=seen.pixels_sha256,
        source=printable(images.path.name),
        resize=images.resize,
        not_read=images.not_read,
        dtype=extractor.dtype,
        features=len(chosen),
        features_seed=FEATURES_SEED if len(chosen) < images.count else None,
        different=different if different < images.count else None,
        no_classes=_why_no_classes(images),
    )
    chosen = np.sort(chosen)
    features = seen.rows[chosen] if keep else None
    labels = images.classes[chosen] if keep and images.classes is not None else None
    found = {"features": features, "labels": labels, "numbering": images.numbering, "provenance": provenance}
    return Reference(images.path, None, "Fiducial's statistics", **moments_of_features(seen), **found)


def _why_no_classes(images: Images) -> str | None:
    """Why images that one may expect to have classes have none, in a clause."""
    if images.no_labels or images.classes is not None:
        return images.no_labels
    return within_one_folder(images.names, printable(images.path.name)).why or None


def moments_of(batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of features (B, D) in batches."""
    statistics = None
    for features in batches:
        statistics = statistics or FeatureStatistics.empty(features.shape[1])
        statistics.update(features)
    statistics.flush()
    return statistics.mean, statistics.covariance


def moments_of_features(seen: Features) -> dict[str, np.ndarray | None]:
    """The statistics of extracted images, as fields of a `Reference`."""
    spatial = seen.spatial
    return {
        "mu": seen.statistics.mean,
        "sigma": seen.statistics.covariance,
        "mu_s": spatial.mean if spatial else None,
        "sigma_s": spatial.covariance if spatial else None,
    }
