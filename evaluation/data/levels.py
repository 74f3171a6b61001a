"""Whether pixels are levels of 0 to 255, or look like values of 0 to 1, or of -1 to 1, that were made uint8 as they are."""

from collections.abc import Iterable, Set
from dataclasses import dataclass

import numpy as np

from fiducial import UserError

LOOKED_AT = 16  # images whose levels are looked at; more, where some of those look like a cast
CASTS = frozenset({0, 1, 255})  # levels that values of 0 to 1 become, or of -1 to 1 by way of int8


@dataclass(frozen=True)
class Levels:
    """The levels `found` in the first `count` images of a set, of which `casts` look like a cast, each by itself."""

    found: frozenset[int]
    casts: int
    count: int


def look(batches: Iterable[np.ndarray]) -> Levels:
    """The levels of (B, H, W, 3) uint8 batches, as far as it takes: to the first without an image that looks like a cast."""
    found, casts, count = set(), 0, 0
    for batch in batches:
        of_each = [levels_in(image) for image in batch]
        casts_here = sum(looks_cast(levels) for levels in of_each)
        found, casts, count = found.union(*of_each), casts + casts_here, count + len(batch)
        if not (casts_here or found <= CASTS):
            break
    return Levels(frozenset(found), casts, count)


def levels_in(pixels: np.ndarray) -> set[int]:
    """The levels that uint8 pixels of any shape have."""
    return set(np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist())


def looks_cast(levels: Set[int]) -> bool:
    """Whether pixels of these levels were values of 0 to 1, or -1 to 1. Those that are black and white alone have no 1."""
    return levels <= CASTS and (1 in levels or 255 not in levels)


def require(levels: Set[int], which: str) -> None:
    """Raise UserError if all pixels of images, which are called so, have such levels."""
    if looks_cast(levels):
        raise UserError(
            f"{which} have no levels but 0, 1 and 255: they are values of -1 to 1 made uint8; save those times 127.5 plus 127.5"
            if 255 in levels
            else f"{which} have no pixel above level 1 of 255: they are black, or values of 0 to 1 made uint8; "
            "multiply those by 255 first"
        )
