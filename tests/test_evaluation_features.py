"""What holds for every extractor: the features of an image are its own, to the bit."""

import numpy as np
import pytest
import torch

from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.features.load import load_extractor
from fiducial.precision import plain_float32
from scripts.stand_ins import pictures

IMAGES = pictures(70, 1)


def in_batches(extractor: Extractor, images: np.ndarray, batch_size: int) -> list[torch.Tensor]:
    """Features and, where there are any, spatial features of all images."""
    with torch.inference_mode(), plain_float32():
        outputs = [extractor.run(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
    return [torch.cat(parts) for parts in zip(*outputs, strict=True) if parts[0] is not None]


@pytest.mark.parametrize(("name", "count"), [("digits", 70), ("inception", 9)])
def test_features_are_the_same_bits_in_any_batch(name, count, inception_weights, alone):
    extractor = load_extractor(name, {"inception": inception_weights}, alone)
    expected = in_batches(extractor, IMAGES[:count], count)
    assert [len(output) for output in expected] == [count] * (2 if name == "inception" else 1)
    for batch_size in (1, 7, 64):
        found = in_batches(extractor, IMAGES[:count], batch_size)
        assert all(map(torch.equal, found, expected)), batch_size


def test_without_filling_up_the_bits_would_differ(alone):
    """Matrix products of one row and of many are rounded in different ways, which is why chunks are filled up."""
    extractor = load_extractor("digits", None, alone)
    images = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    with torch.inference_mode():
        whole, alone_each = extractor.apply(images)[0], torch.cat([extractor.apply(image[None])[0] for image in images])
    assert not torch.equal(whole, alone_each)
    torch.testing.assert_close(whole, alone_each)
