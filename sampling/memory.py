"""Memory of the device: what was used at most, and what is free."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from fiducial.memory import give_back_freed_memory


def peak(device: torch.device) -> int:
    """The most bytes that this process has held at once: of the GPU's memory, or of the host's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else 1024 * kilobytes


def release(device: torch.device) -> None:
    """Give back what was freed and kept for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        give_back_freed_memory()


def held(device: torch.device) -> int:
    """The bytes that this process holds now; where nobody tells, the most that it has held."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    release(device)
    with suppress(OSError, StopIteration):
        return _field(Path("/proc/self/status"), "VmRSS")
    return peak(device)


def room(device: torch.device, weights: int) -> int:
    """Bytes that this process may take beside what it holds: what is free of its GPU, or its part of the host's memory.

    Args:
        weights: bytes that each other process of this host is still to take for its own networks.
    """
    release(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or "1")
    return (_available() - (processes - 1) * weights) // processes


def _available() -> int:
    """Bytes of the host's memory that can be had without swapping, within the limits of a container or job."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # where nobody tells
    with suppress(OSError, StopIteration):
        available = _field(Path("/proc/meminfo"), "MemAvailable")
    return min([available, *_left_by_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _left_by_groups(membership: Path, root: Path) -> Iterator[int]:
    """Bytes that each control group that this process is in, and each that holds one of them, still lets it take."""
    lines = []
    with suppress(OSError):
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    for _, controllers, path in lines:
        if controllers == "":  # version 2
            top, names = root, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        inner = top / path.lstrip("/")  # in a container the path may be the host's, which is not seen here
        for group in [inner, *inner.parents][: len(inner.relative_to(top).parts) + 1]:
            with suppress(OSError, ValueError):  # no limit is "max"
                limit, used = (int((group / name).read_text()) for name in names)
                yield max(0, limit - used)


def _field(file: Path, name: str) -> int:
    """Bytes, from a line such as `VmRSS:   1024 kB`."""
    return next(1024 * int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(name))
