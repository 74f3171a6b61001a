"""Pictures of a few images beside their reconstructions: of some evenly spaced, and of the worst."""

from collections.abc import Sequence

import numpy as np

from fiducial.evaluation.data.images import Images
from fiducial.evaluation.reconstruction.measuring import Reconstruct
from fiducial.evaluation.reconstruction.result import Shown, Worst
from fiducial.evaluation.results.grid import evenly, thumbnail
from fiducial.evaluation.results.wording import number

SHOWN = 6  # of each kind
LARGEST = 256  # pixels a side; larger pictures are reduced
GAINS = (16, 8, 4, 2, 1)  # by which differences may be multiplied
CLIPPED = 0.001  # of all differences that are shown, which may be brighter than white


def shown_images(
    images: Images, reconstruct: Reconstruct, worst: Sequence[Worst], label: str
) -> dict[str, tuple[int, tuple[Shown, ...]]]:
    """Pictures by what they are, with the gain of their differences, which is one for all.

    Images are reconstructed once more, one by one, so that none had to be kept.

    Args:
        label: of the metric by which images are the worst.
    """
    some = [Worst(int(index), None, None, None, None) for index in evenly(np.arange(images.count), SHOWN)]
    kinds = {"Evenly spaced": some, f"The worst by {label}": list(worst[:SHOWN])}
    originals = images.pick([one.index for found in kinds.values() for one in found])
    pairs = {index: (image, _levels(reconstruct(image[None], np.array([index]))[0])) for index, image in originals.items()}
    gain = _gain([np.abs(ours.astype(np.int16) - theirs) for ours, theirs in pairs.values()])
    return {
        name: (gain, tuple(_shown(*pairs[one.index], gain, caption(one, images)) for one in found))
        for name, found in kinds.items()
    }


def caption(one: Worst, images: Images) -> str:
    """The index and the file of an image, and its values."""
    name = images.names[one.index] if images.names else None
    values = {"PSNR": (one.psnr, "dB"), "SSIM": (one.ssim, ""), "LPIPS": (one.lpips, "")}
    said = [f"{label} {number(value, unit)}" for label, (value, unit) in values.items() if value is not None]
    return ", ".join([f"{one.index:,}" + (f" {name}" if name else ""), *said])


def _levels(image: np.ndarray) -> np.ndarray:
    """uint8 of an image that may be floats."""
    return image if image.dtype == np.uint8 else np.rint(image).astype(np.uint8)


def _gain(differences: list[np.ndarray]) -> int:
    """The largest one with which few differences are beyond white."""
    together = np.concatenate([one.ravel() for one in differences])
    return next((gain for gain in GAINS if np.mean(together * gain > 255) <= CLIPPED), GAINS[-1])


def _shown(original: np.ndarray, reconstruction: np.ndarray, gain: int, text: str) -> Shown:
    difference = np.abs(original.astype(np.int16) - reconstruction) * gain
    pictures = (original, reconstruction, difference.clip(0, 255).astype(np.uint8))
    return Shown(text, *(thumbnail(picture, LARGEST) for picture in pictures))
