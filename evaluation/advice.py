"""What to do with files that hold images or statistics in forms that are not read."""

import re
from collections.abc import Mapping
from pathlib import Path

from distributed import open_regular
from evaluation.image_files import kind_of
from evaluation.runs import MANIFEST

LOOKED_INTO = 512  # bytes of a file
FILES = 20  # of a folder, that are looked into
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
    """A sentence's end on how images of this shape become (N, H, W, 3); empty where that is not known."""
    if len(shape) == 3:
        return "; save numpy.stack([images] * 3, axis=3) of grey images"
    if len(shape) == 4 and shape[1] == 3:
        return "; save images.transpose(0, 2, 3, 1)"
    return "; save images[..., :3]" if len(shape) == 4 and shape[3] == 4 else ""


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
