"""The files in a folder, in one order."""

import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from fiducial import UserError, life, shown
from fiducial.evaluation.data.image_files import is_hidden

MOST_NAMES = 100  # of one folder, as links give it


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Paths sorted folder by folder, the same for a folder and for a zip of it."""
    return tuple(sorted(names, key=lambda name: PurePosixPath(name).parts))


def files_in(folder: Path) -> Iterator[str]:
    """The files in a folder and its subfolders, as paths relative to it; links are followed, but never in a circle.

    However deep it is: subfolders wait in a list, each with the folders that it lies in, as nested pairs.

    Raises:
        UserError: if a folder in it cannot be read, or links lead to one from so many that it would be read for ever.
    """
    waiting: list[tuple[str, tuple]] = [("", ())]
    reached: Counter[tuple[int, int]] = Counter()
    while waiting:
        inner, above = waiting.pop()
        path = os.path.join(folder, inner)
        try:
            own, entries = os.stat(path), list(os.scandir(path))
        except OSError as error:
            if is_hidden(inner):  # of which nothing is read
                continue
            reason = error.strerror
            if error.errno == errno.ENAMETOOLONG:
                reason = f"it is too deep: its path has {len(os.fsencode(path)):,} bytes"
            raise UserError(f"{shown(Path(path))} cannot be read ({reason})") from error
        reached[(place := (own.st_dev, own.st_ino))] += 1
        if reached[place] > MOST_NAMES and is_hidden(inner):
            continue
        if reached[place] > MOST_NAMES:
            raise UserError(f"{shown(Path(path))}: links lead to this folder from more than {MOST_NAMES} others; remove some")
        chain = above
        while chain and not os.path.samestat(chain[0], own):
            chain = chain[1]
        life.sign()
        for entry in entries if not chain else ():
            if entry.is_dir():
                waiting.append((f"{inner}{entry.name}/", (own, above)))
            else:  # also a pipe, or a link to nothing, which is an error later where it is called as an image is
                yield inner + entry.name
