"""Compilation of networks by several processes: where kernels are kept, who compiles first, and in how many threads."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fiducial import Group, default_cache
from fiducial.ranks.cores import own_cores

COMPILING_SECONDS = 1800  # at most, on a busy machine; it cannot say how far it has come
MOST_THREADS = 32  # of the compiler, by torch's own choice


def kernels_folder(name: str) -> Path:
    """Where torch is to keep compiled kernels: in the user's cache; where several nodes draw, on each, since that cache may be on
    a network's disk, whose locks and small files are slow.

    Raises:
        OSError: if that place on the node is not this user's alone.
    """
    if _count("WORLD_SIZE") <= _count("LOCAL_WORLD_SIZE"):
        return default_cache() / name
    own = Path(tempfile.gettempdir()) / f"fiducial-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    found = own.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{own} is not this user's alone")
    return own / name


def compiler_threads() -> int:
    """How many the compiler of this process may have: its part of the cores."""
    return max(1, min(MOST_THREADS, len(own_cores()) // _count("LOCAL_WORLD_SIZE")))


def _count(name: str) -> int:
    return int(os.environ.get(name) or "1")


@contextmanager
def compiling(group: Group) -> Iterator[None]:
    """In here a rank may compile for long. On GPUs the first of a node does so before its others, which find its kernels then; on
    a CPU, where constants are compiled in, they would find next to nothing.
    """
    in_turn = group.device.type != "cpu"
    with group.allowing(COMPILING_SECONDS):
        if in_turn and group.local_rank:
            group.once_per_node(["compiled"], str)
        try:
            yield
        finally:
            if in_turn and not group.local_rank:
                group.once_per_node(["compiled"], str)
