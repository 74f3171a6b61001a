"""The effect of a network's precision on FID."""

from collections.abc import Iterator

import numpy as np

from fiducial.evaluation.data.images import Images
from fiducial.evaluation.features.extraction import Features
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.making import moments_of
from fiducial.evaluation.metrics.gaussians import frechet_distance
from fiducial.evaluation.metrics.inputs import Inputs

PROBE = 512  # images that are evaluated in float32 as well


def effect_of_dtype(images: Images, inputs: Inputs, theirs: Features | None, exact: Extractor) -> str:
    """A sentence on what is seen on the first images of either side; statistics of a reference stay as they are.

    Args:
        theirs: of the reference's images, where it is made of those alone.
        exact: the extractor in float32.
    """
    reference, settings, count = inputs.reference, inputs.settings, min(PROBE, images.count)

    def exactly(of: Images) -> Iterator[np.ndarray]:
        for batch in of.batches(settings.batch_size, 0, min(PROBE, of.count)):
            features, _ = exact.run(batch)
            yield features.cpu().numpy()

    lower, higher, against = moments_of([inputs.own.rows[:count]]), moments_of(exactly(images)), ""
    if reference.kind == "images":
        lower += moments_of([theirs.rows[:PROBE]])
        higher += moments_of(exactly(reference.images))
        against = f" against the first {min(PROBE, reference.images.count):,} of the reference"
    else:
        lower, higher = ((*moments, reference.mu, reference.sigma) for moments in (lower, higher))
    seen, wanted = frechet_distance(*lower), frechet_distance(*higher)
    return (
        f"In {settings.dtype}, FID of the first {count:,} samples{against} is {seen:.4f}, and {wanted:.4f} in float32: "
        f"a difference of {seen - wanted:+.2g}."
    )
