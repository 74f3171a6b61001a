"""Files that several processes use: no process ever sees half of one. And where what is fetched is kept."""

import errno
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fiducial import life
from fiducial.cache import hold
from fiducial.console import UserError, progress_bar, say, warn
from fiducial.folders import make_folder
from fiducial.leftovers import in_the_making, remove_leftovers
from fiducial.opening import NO_FILE, NotAFile, no_file, open_new, open_regular, open_to_write, read_text, require_place

SILENCE_SECONDS = 60.0  # that a server may be silent
TRIES = 5  # in a row that bring nothing, before a download is given up
CHUNK = 1 << 20
MARK_BYTES = 1 << 16
CLASSES_BESIDE = ".classes.json"  # after the whole name of a checkpoint: what its classes are called
OFFLINE = "FIDUCIAL_OFFLINE"  # in the environment: nothing is downloaded
ZIPPED = (".npz", ".pt")  # endings of files that are zip archives, whose end stands at their end
BUSY = (408, 429, 500, 502, 503, 504)  # answers of a server that may be well again soon
LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)  # asking again is no help
MIRROR = "FIDUCIAL_MIRROR"  # http://host/folder: asked for the same paths, in the place of the files' own hosts

_tidied: set[Path] = set()  # folders


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then put it in its place, so that `path` is never seen half-written.

    A link, or a pipe, that stands there is replaced as a file is. What killed processes have left in the folder is removed, the
    first time that this process writes there.

    Raises:
        IsADirectoryError: before anything is written, if there is a folder at `path`.
        OSError: if it cannot be written.
    """
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, "it is a folder, where a file is to be written", str(path))
    if path.parent not in _tidied:
        _tidied.add(path.parent)
        remove_leftovers(path.parent)
    beside = in_the_making(path)
    try:
        open_new(beside).close()
        write(beside)
        with open(beside, "rb") as file:
            os.fsync(file.fileno())  # or a power cut may leave the new name with nothing in it
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def file_sha256(path: Path, most: int | None = None) -> str:
    """SHA-256 of a file, in hexadecimal; `most` and errors as of `open_regular`. Gives a sign of life for each chunk."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with open_regular(path, most) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
            life.sign()
    return digest.hexdigest()


def default_cache() -> Path:
    """Where everything that Fiducial keeps is, unless `--cache-dir` says where.

    Raises:
        UserError: if this user has no home.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fiducial"
    except RuntimeError as error:
        raise UserError("there is no home directory; say by --cache-dir or XDG_CACHE_HOME where files are kept") from error


def mirrored(url: str) -> str:
    """Where `url` is fetched from: there, or from the mirror that the environment names.

    Raises:
        UserError: if that is no address.
    """
    mirror = os.environ.get(MIRROR, "")
    if not mirror:
        return url
    if not mirror.startswith(("http://", "https://")):
        raise UserError(f"{MIRROR}={mirror}: must begin with http:// or https://, and is asked for paths such as those of {url}")
    return mirror.rstrip("/") + urllib.parse.urlsplit(url).path


def download(url: str, path: Path, sha256: str | None = None) -> Path:
    """Fetch `url`, or what a mirror has of it, to `path`, unless it is there; return `path`.

    What a cut connection or a killed process leaves stands in `path.partial` and is continued, if the server still has the
    same file. `path` appears only when all of it has come. Processes that want the same file wait for the one that fetches it.

    Args:
        sha256: what its SHA-256 begins with, where that is known.

    Raises:
        UserError: if it cannot be had, with what to do.
    """
    from filelock import FileLock

    if not (reason := no_file(path)):
        hold(path, used=False)
        return path
    if reason != NO_FILE:
        raise UserError(f"{path}: {reason}; move it away, and it is fetched from {url}")
    if os.environ.get(OFFLINE):
        raise UserError(f"{path} is not there, and nothing is downloaded now; fetch it from {url}")
    source = mirrored(url)
    partial, lock = (path.with_name(path.name + ending) for ending in (".partial", ".lock"))
    try:
        for beside in (lock, partial, _mark(partial)):
            require_place(beside)
    except NotAFile as error:
        raise UserError(f"{error.filename}: {error}; move it away, and {path.name} is fetched") from error
    try:
        make_folder(path.parent)
        with FileLock(lock):
            if not path.is_file():
                _fetch(source, partial)
                if sha256 and not (found := file_sha256(partial)).startswith(sha256):
                    partial.unlink()
                    raise ValueError(f"what came has the SHA-256 {found[: len(sha256)]}, not {sha256}")
                if path.suffix in ZIPPED and not zipfile.is_zipfile(partial):
                    with open(partial, "rb") as file:
                        begin = file.read(20)
                    partial.unlink()
                    raise ValueError(f"what came is no {path.suffix} file, and begins with {begin!r}, as a proxy's page may")
                os.replace(partial, path)
        lock.unlink(missing_ok=True)
    except (OSError, ValueError, http.client.HTTPException) as error:  # urllib's errors are of the first kind
        reason = " ".join(str(getattr(error, "reason", error)).split())[:200] or type(error).__name__
        what = "it" if source == url else url
        raise UserError(
            f"{source} cannot be fetched ({reason}); fetch {what} where there is internet and put it at {path}"
        ) from error
    hold(path, used=False)
    return path


def fetch_each(wanted: dict[str, Callable[[], Path]]) -> list[str]:
    """Call each of `wanted` and print the file or folder that it gives, with its size. Failures are printed as well.

    Returns:
        the names of those that failed.
    """
    failed = []
    for name, fetch in wanted.items():
        try:
            path = fetch()
        except UserError as error:
            warn(f"{name}: {error}")
            failed.append(name)
        else:
            files = path.rglob("*") if path.is_dir() else [path]
            megabytes = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
            say(f"{name}: {path} ({megabytes:,.1f} MB)")
    return failed


@contextmanager
def downloading_nothing() -> Iterator[None]:
    """In here this process downloads nothing, by `download` or the hub's client; to be entered before that is loaded."""
    before = {name: os.environ.get(name) for name in (OFFLINE, "HF_HUB_OFFLINE")}
    os.environ.update(dict.fromkeys(before, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _fetch(url: str, partial: Path) -> None:
    """Fill `partial` to the end, in as many attempts as it takes while each brings something or few in a row bring nothing."""
    failures = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            return _attempt(url, partial)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code not in BUSY:
                raise
            if getattr(error, "errno", None) in LOCAL:
                raise
            if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError) and not before:
                raise  # there is no such host, or no network
            grown = partial.exists() and partial.stat().st_size > before
            failures = 0 if grown else failures + 1
            if failures >= TRIES:
                raise
            time.sleep(min(2.0**failures, 30.0))


def _mark(partial: Path) -> Path:
    """The file with the server's tag of the version of which `partial` is a part."""
    return partial.with_name(partial.name + ".etag")


def _attempt(url: str, partial: Path) -> None:
    """One request, from where `partial` ends if the server has the same file as then."""
    mark = _mark(partial)
    have, version = 0, ""
    with suppress(OSError):
        have, version = partial.stat().st_size, read_text(mark, MARK_BYTES)
    request = urllib.request.Request(url, headers={"User-Agent": "fiducial", "Accept-Encoding": "identity"})
    if have and version:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)
    try:
        answer = urllib.request.urlopen(request, timeout=SILENCE_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":  # all of it was here already
            return mark.unlink()
        partial.unlink()
        raise ConnectionError("the server has no such part") from error
    with answer:
        if answer.status != 206:
            have = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            partial.unlink()
            raise ConnectionError(f"asked for the bytes from {have}, got {answer.headers.get('Content-Range')}")
        length = answer.headers.get("Content-Length")
        whole = have + int(length) if length else None
        if whole is None and answer.headers.get("Transfer-Encoding", "").lower() != "chunked":
            raise ValueError("the server does not say how long the file is, so half of it could not be told from all")
        etag = answer.headers.get("ETag") or ""
        if not have:
            partial.unlink(missing_ok=True)  # or, killed now, it would count as a part of this version
        with open_new(mark) as file:
            file.write((etag if etag.startswith('"') else answer.headers.get("Last-Modified") or "").encode())
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if have else os.O_TRUNC)
        with open(open_to_write(partial, flags), "ab") as file, progress_bar(whole, partial.stem, unit="B", initial=have) as bar:
            while chunk := answer.read1(CHUNK):  # as it comes, so that none of it is lost
                file.write(chunk)
                bar.update(len(chunk))
                life.sign()
            file.flush()
            os.fsync(file.fileno())
    if whole is not None and (came := partial.stat().st_size) != whole:
        raise ConnectionError(f"{came:,} of {whole:,} bytes came")
    mark.unlink()
