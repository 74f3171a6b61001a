"""Files kept between runs, by kind; holding those in use, and removing those that are not.

CACHE/KEY/                     features of a set of images: see `fiducial.evaluation.features.extraction`
CACHE/compiled-KIND/           what torch's compiler made for one kind of processor
CACHE/checkpoints, references  published files, downloaded
CACHE/verified/KEY.json        what a kind of device makes of a network, against fp32: small, and never removed

A process that reads or has made an entry holds a shared lock on one of its files until it ends, wherever it runs; the system
lets go of it, however the process ends. Only what can be locked against all others is removed. What is in the making has
another name, and is never looked at.
"""

import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fiducial.leftovers import in_the_making
from fiducial.opening import read_text

CHECKPOINTS, REFERENCES, VERIFIED = "checkpoints", "references", "verified"  # folders of a cache
FEATURES_MARK, COMPILED_MARK = "about.json", "used"  # the files of an entry that are locked
FEATURES, KERNELS, PUBLISHED = "features", "compiled kernels", "published files"
KINDS = {FEATURES: "is computed anew when it is needed", KERNELS: "is compiled anew", PUBLISHED: "is downloaded anew"}
KEY, COMPILED = re.compile(r"[0-9a-f]{32}"), re.compile(r"compiled-[0-9a-f]{16}")
OURS = '"format": "fiducial-features-'  # in the mark of an entry of features: a folder that somebody calls so is theirs
# Files that are downloaded; whatever else is in their folders is somebody's own.
DOWNLOADED = re.compile(
    r"DiT-XL-2-\d+x\d+\.pt|SiT-XL-2-256\.pt|repa-last\.pt|weights-inception-[\w-]+\.pth|dinov2_\w+\.pth|"
    r"alexnet-owt-\w+\.pth|vgg16-\w+\.pth|lpips-v[\d.]+-\w+\.pth|"
    r"(adm|imf)-[\w-]+\.npz|jit_in\d+_stats\.npz|(edm2|fd-loss)-[\w-]+\.pkl|timm-[\w.-]+\.safetensors"
)
MARK_BYTES = 1 << 20

_held: dict[tuple[int, int], tuple[int, Path]] = {}  # open files of this process and their names, by device and inode


@dataclass(frozen=True)
class Entry:
    """`mark` is the file that is locked, `size` in bytes on the disk, `used` when it was made or last used, by the clock."""

    kind: str
    path: Path
    mark: Path
    size: int
    used: float


def hold(mark: Path, used: bool = True) -> bool:
    """Have no other process remove the entry that `mark` is of, until this one ends; False if it is not there.

    Args:
        used: note that the entry was used now, by the file's time.
    """
    try:
        file = os.open(mark, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # it is being removed
        os.close(file)
        return False
    except OSError:  # a file system without locks, where nothing is removed
        os.close(file)
        return True
    status = os.fstat(file)
    if not _is_there(mark, status):
        os.close(file)
        return False
    if used:
        with suppress(OSError):  # somebody else's
            os.utime(mark)
    held, _ = _held.pop((status.st_dev, status.st_ino), (None, None))
    if held is not None:
        os.close(held)
    _held[status.st_dev, status.st_ino] = file, mark
    return True


def release(cache: Path) -> None:
    """Let go of what this process holds in a cache that it has removed."""
    for found, (file, mark) in list(_held.items()):
        if cache in mark.parents:
            os.close(file)
            del _held[found]


def hold_kernels(folder: Path) -> None:
    """The same for a folder of compiled kernels, whose mark is made where it is not there."""
    with suppress(OSError):
        os.close(os.open(folder / COMPILED_MARK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666))
    hold(folder / COMPILED_MARK)


def entries(cache: Path) -> Iterator[Entry]:
    """Everything that is whole in a cache, links left aside."""
    for path in _in(cache):
        if path.is_symlink() or not path.is_dir():
            continue
        if KEY.fullmatch(path.name) and _is_ours(path / FEATURES_MARK):
            yield _entry(FEATURES, path, path / FEATURES_MARK)
        elif COMPILED.fullmatch(path.name):
            yield _entry(KERNELS, path, path / COMPILED_MARK)
        elif path.name in (CHECKPOINTS, REFERENCES):
            yield from (_entry(PUBLISHED, file, file) for file in _in(path) if DOWNLOADED.fullmatch(file.name) and file.is_file())


def sizes(cache: Path) -> dict[str, tuple[int, int]]:
    """Number and bytes of the entries of each kind."""
    found = dict.fromkeys(KINDS, (0, 0))
    for entry in entries(cache):
        count, size = found[entry.kind]
        found[entry.kind] = count + 1, size + entry.size
    return found


def chosen(found: Iterable[Entry], older_than: float | None, keep: int | None) -> list[Entry]:
    """The entries to be removed: those not used for `older_than` seconds, and the longest unused beyond `keep` bytes."""
    ordered = sorted(found, key=lambda entry: entry.used)
    limit = None if older_than is None else time.time() - older_than
    going = [entry for entry in ordered if limit is not None and entry.used < limit]
    staying = [entry for entry in ordered if entry not in going]
    excess = sum(entry.size for entry in staying) - (keep if keep is not None else float("inf"))
    for entry in staying:
        if excess <= 0:
            break
        going.append(entry)
        excess -= entry.size
    return going


def remove(entry: Entry, really: bool = True) -> str | None:
    """Remove an entry, unless a process has it; return why it stays, or None.

    Args:
        really: or only find out whether it would be removed.
    """
    mark = None
    try:
        with suppress(FileNotFoundError):  # kernels of before there were marks
            mark = os.open(entry.mark, (os.O_RDWR if os.access(entry.mark, os.W_OK) else os.O_RDONLY) | os.O_NONBLOCK)
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if really:
            aside = in_the_making(entry.path)
            os.rename(entry.path, aside)  # in one step, so that nobody finds half of it
            shutil.rmtree(aside) if aside.is_dir() and not aside.is_symlink() else aside.unlink()
    except BlockingIOError:
        return "a process has it in use"
    except OSError as error:
        return error.strerror or str(error)
    finally:
        if mark is not None:
            os.close(mark)
    return None


def _in(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _is_ours(mark: Path) -> bool:
    try:
        return OURS in read_text(mark, MARK_BYTES, errors="replace")
    except OSError:
        return False


def _entry(kind: str, path: Path, mark: Path) -> Entry:
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    statuses = [status for file in files if (status := _status(file))]
    times = [status.st_mtime for file in (mark, path) if (status := _status(file))]
    if kind == PUBLISHED:
        times += [status.st_atime for status in statuses]
    return Entry(kind, path, mark, sum(status.st_blocks * 512 for status in statuses), max(times, default=0.0))


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def _is_there(path: Path, status: os.stat_result) -> bool:
    """Whether a file bears its name still, and is one."""
    try:
        return stat.S_ISREG(status.st_mode) and os.path.samestat(path.stat(), status)
    except OSError:
        return False
