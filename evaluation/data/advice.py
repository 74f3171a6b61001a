"""Remedies for files that hold images or statistics in forms that are not read."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fiducial import open_regular
from fiducial.evaluation.data.image_files import kind_of
from fiducial.evaluation.data.runs import MANIFEST

LOOKED_INTO = 512  # bytes of a file
FILES = 20  # of a folder, that are looked into
OVERSHOT = 0.25  # by which a network's or a filter's values go beyond their range
NORMALISED = 8.0  # values of images by their mean and deviation are smaller
PICKLE = (
    "is a pickle, as EDM2's references are, and pickles are not read, for they can run anything; if you trust it: python -c "
    "\"import numpy, pickle; s = pickle.load(open('IN.pkl', 'rb'))['fid']; numpy.savez('OUT.npz', mu=s['mu'], sigma=s['sigma'])\""
)
ARRAY = "is a single array; numpy.savez('OUT.npz', numpy.load('IN.npy')) makes an npz of images (N, H, W, 3) uint8"
TAR = "is a tar archive; unpack it (tar -xf) and give the folder"
PACKED = "is a compressed file; unpack it and give what is in it"
# By what files begin with; a tar archive says what it is at its 257th byte.
ADVICE = {
    rb"\x80[\x02-\x05]": PICKLE,
    rb"\x93NUMPY": ARRAY,
    rb".{257}ustar": TAR,
    rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!": PACKED,
    rb"\x89HDF": "is an HDF5 file; write its images as PNG, or as an npz with arr_0 (N, H, W, 3) uint8",
}
UNFINISHED = "is of a run that is not finished, which the command that began it goes on with"
BY_ENDING = {".pkl": PICKLE, ".pickle": PICKLE, ".part": UNFINISHED}


def advice_on(path: Path) -> str | None:
    """A sentence's end on what a file is and what to do with it; None where nothing is known of it."""
    try:
        with open_regular(path) as file:
            beginning = file.read(LOOKED_INTO)
    except OSError:
        return None
    if found := next((text for pattern, text in ADVICE.items() if re.match(pattern, beginning, re.DOTALL)), None):
        return found
    if kind_of(beginning):
        return "is a single image; give a folder or a zip of images"
    return BY_ENDING.get(path.suffix.lower())


def on_layout(shape: tuple[int, ...]) -> str:
    """How images of this shape become (N, H, W, 3), as an expression in numpy; `images` where that is so, or not known."""
    if len(shape) == 3:
        return "numpy.stack([images] * 3, axis=3)"
    if len(shape) == 4 and shape[3] != 3 and shape[1] == 3:
        return "images.transpose(0, 2, 3, 1)"
    return "images[..., :3]" if len(shape) == 4 and shape[3] == 4 else "images"


def on_array(shape: tuple[int, ...], first: np.ndarray) -> str:
    """A sentence's end on how an array of this shape, of which the `first` values are given, becomes uint8 (N, H, W, 3)."""
    images = on_layout(shape)
    if first.dtype == np.uint8 or first.dtype.kind not in "biuf" or not first.size:
        return "" if images == "images" else f"; save {images}{' of grey images' * (len(shape) == 3)}"
    return on_values(first.dtype.kind, float(first.min()), float(first.max()), images)


def on_values(kind: str, low: float, high: float, images: str = "images", cast: str = "astype('uint8')") -> str:
    """A sentence's end on how numbers between these become levels of 0 to 255.

    Args:
        kind: of their dtype, as numpy has it.
        images: what they are called, in an expression.
        cast: the method that makes them uint8.
    """
    found = f"; its first values are {low:.4g} to {high:.4g}"
    if kind == "b":
        return f"; save {images}.{cast} * 255"
    if kind != "f":
        if low >= -1 and high <= 1:
            return f"{found}, so that no levels are left: save them times 255, or from -1 to 1 plus 1 times 127.5, as floats were"
        if low >= 0 and high <= 255:
            return f"{found}: save {images}.{cast}"
        if low >= 0 and high <= 65535:
            return f"{found}, as those of 16 bits: save ({images} / 257).round().{cast}"
        return f"{found}, and levels are 0 to 255"
    if not (np.isfinite(low) and np.isfinite(high)):
        return "; its first values hold NaN or infinity"
    if low >= -OVERSHOT and high <= 1 + OVERSHOT:
        return f"{found}: save ({images} * 255).round().clip(0, 255).{cast}"
    if low >= -1 - OVERSHOT and high <= 1 + OVERSHOT:
        return f"{found}: save (({images} + 1) * 127.5).round().clip(0, 255).{cast}"
    if low >= -OVERSHOT * 255 and NORMALISED < high <= (1 + OVERSHOT) * 255:
        return f"{found}: save {images}.round().clip(0, 255).{cast}"
    return f"{found}, which is none of 0 to 1, -1 to 1 and 0 to 255: undo the normalisation first"


def on_missing(path: Path) -> str:
    """A sentence's end on what is there in the place of a missing npz; empty if that is nothing known."""
    part = path.with_name(f"{path.name}.part")
    return f"; {part.name} {UNFINISHED}" if path.suffix == ".npz" and part.is_file() else ""


def in_words(kinds: Mapping[str, int]) -> str | None:
    """Kinds of files with their numbers, the most first; None if there are none."""
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))) or None


def held_instead(folder: Path, not_read: str | None) -> str:
    """A sentence's end on what a folder without images holds; empty where that says nothing."""
    if not_read:
        return f"; what is there is not read ({not_read}): convert it to PNG"
    packed = folder.with_name(f"{folder.name}.npz")
    if (folder / MANIFEST).is_file() and packed.is_file():
        return f"; the images of this run are in {packed}"
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError:
        return ""
    return next((f"; {path.name} {advice}" for path in files[:FILES] if (advice := advice_on(path))), "")
