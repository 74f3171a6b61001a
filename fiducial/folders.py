"""Folders before they are made: whether anything can be written there, and under which names."""

import itertools
import os
import tempfile
from pathlib import Path

from fiducial.console import UserError


def nearest(folder: Path) -> Path:
    """The folder itself, or where it is to be made."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def make_folder(folder: Path) -> None:
    """Make a folder and what is missing on the way to it, however deep that is; OSError if it cannot be made."""
    missing = list(itertools.takewhile(lambda path: not path.exists(), folder.parents))
    for path in (*reversed(missing), folder):
        path.mkdir(exist_ok=True)


def unwritable(folder: Path, size: int = 0) -> str:
    """Why no file of `size` bytes can be written to a folder, or where it is to be made, in words; empty if one can.

    It is tried, and nothing is left of that.
    """
    try:
        with tempfile.TemporaryFile(dir=nearest(folder)) as file:
            file.write(bytes(size))
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def check_lengths(remedy: str, *paths: Path) -> None:
    """Raise UserError, ending with `remedy`, if a file system takes no names, or paths, that are so long in bytes."""
    for path in paths:
        try:
            there = nearest(path.parent)
        except OSError as error:
            raise UserError(f"{path.parent}: {error.strerror}; {remedy}") from error
        for text, most, what in (
            (path.name, os.statvfs(there).f_namemax, "a file's name"),
            (path, os.pathconf(there, "PC_PATH_MAX") - 1, "a path"),
        ):
            if (length := len(os.fsencode(text))) > most:
                raise UserError(f"{path.name[:60]}…: {what} would have {length:,} bytes, and {there} takes {most:,}; {remedy}")
