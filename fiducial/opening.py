"""Opening files that others may have made: at once or not at all, no further than they reach, and never written through a link.

A pipe or a device in the place of a file would be waited for, or read, for ever; a link in the place of one that is to be
written would have something else overwritten. Folders on the way to a file may be links, and so may a file that is only read.
"""

import errno
import io
import os
import stat
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

AT_ONCE = os.O_NONBLOCK | os.O_NOCTTY  # a pipe without another end is not waited for; regular files are not touched by it
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link",
}
NO_FILE = "no such file"


class NotAFile(OSError):
    """A path that is not the file that it should be, but a folder, a pipe, a link where none may be, or too large."""

    def __init__(self, path: Path, reason: str):
        super().__init__(errno.EINVAL, reason, str(path))

    def __str__(self) -> str:
        return self.strerror


def open_regular(path: Path, most: int | None = None) -> BinaryIO:
    """A regular file, or a link to one, opened for reading.

    Args:
        most: bytes that it may have.

    Raises:
        NotAFile: if it is something else, or larger.
        OSError: if it is not there, or cannot be read.
    """
    return open(path, "rb", opener=partial(_open, most=most))


def _open(path: str, flags: int, most: int | None = None) -> int:
    links = not flags & os.O_NOFOLLOW
    try:
        file = os.open(path, flags | AT_ONCE, 0o666)
    except OSError as error:
        raise _explained(error, path, links) from error
    try:
        _check(os.fstat(file), path, most)
    except BaseException:
        os.close(file)
        raise
    return file


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """All of a file; errors as of `open_regular`."""
    with open_regular(path, most) as file:
        if most is None:
            return file.read()
        if len(content := file.read(most + 1)) > most:  # it has grown since
            raise _too_large(path, len(content), most)
        return content


def read_text(path: Path, most: int | None = None, encoding: str = "utf-8", errors: str = "strict") -> str:
    """All of a text file, with line ends as Python has them; errors as of `open_regular`, and UnicodeDecodeError."""
    return io.TextIOWrapper(io.BytesIO(read_bytes(path, most)), encoding, errors).read()


def open_to_write(path: Path, flags: int) -> int:
    """A descriptor of a regular file, for writing to what is there.

    Args:
        flags: as `os.open` takes them; with O_CREAT the file is made where there is none.

    Raises:
        NotAFile: if it is something else, or a link.
        OSError: if it cannot be opened.
    """
    return _open(path, flags | os.O_NOFOLLOW)


def open_new(path: Path) -> BinaryIO:
    """An empty file for writing, made in the place of whatever file, pipe or link was there, which is removed.

    Raises:
        OSError: if it cannot be made, as where there is a folder.
    """
    return open(path, "wb", opener=_make)


def _make(path: str, _: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL  # the last also refuses links
    try:
        return os.open(path, flags, 0o666)
    except FileExistsError:
        os.unlink(path)
        return os.open(path, flags, 0o666)


def require_file(path: Path, most: int | None = None) -> None:
    """Raise what `open_regular` would, for libraries that open files by their names."""
    try:
        _check(os.stat(path), path, most)
    except OSError as error:
        raise _explained(error, path, links=True) from error


def require_place(path: Path) -> None:
    """Raise NotAFile if there is something at `path` that may not be written to, such as a link."""
    with suppress(FileNotFoundError, NotADirectoryError):
        _check(os.lstat(path), path)


def no_file(path: Path, if_missing: str = NO_FILE) -> str:
    """Why `path` cannot be read as a file, in words, `if_missing` where nothing is there; empty if it can."""
    try:
        require_file(path)
    except FileNotFoundError:
        return if_missing
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _check(found: os.stat_result, path: Path, most: int | None = None) -> None:
    if not stat.S_ISREG(found.st_mode):
        links = ", and nothing is written through links" if stat.S_ISLNK(found.st_mode) else ""
        raise NotAFile(path, f"it is {KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}, not a file{links}")
    if most is not None and found.st_size > most:
        raise _too_large(path, found.st_size, most)


def _too_large(path: Path, size: int, most: int) -> NotAFile:
    return NotAFile(path, f"it has {size:,} bytes, more than the {most:,} that such a file can have")


def _explained(error: OSError, path: Path, links: bool) -> OSError:
    """The error of `_check` for a path that the system itself refused to open for what it is; else the same error."""
    try:
        _check(os.stat(path) if links else os.lstat(path), path)
    except NotAFile as reason:
        return reason
    except OSError:
        pass
    return error
