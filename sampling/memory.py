"""Memory of the device: what was used at most, and how many images fit."""

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch

from fiducial.memory import give_back_freed_memory

SHARE = 0.8  # of what is free, so that what varies from batch to batch still fits
MOST = {"cpu": 32, "cuda": 256}  # images: beyond these a batch is no faster, and a killed run loses more


def peak(device: torch.device) -> int:
    """The most bytes that this process has held at once: of the GPU's memory, or of the host's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else 1024 * kilobytes


def release(device: torch.device) -> None:
    """Gives back what was freed and kept for later."""
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
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return (_available() - (processes - 1) * weights) // processes


def _available() -> int:
    """Bytes of the host's memory that can be had without swapping, within the limits of a container or job."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # where nobody tells
    with suppress(OSError, StopIteration):
        available = _field(Path("/proc/meminfo"), "MemAvailable")
    return min([available, *_left_by_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _left_by_groups(membership: Path, root: Path) -> Iterator[int]:
    """What each control group that this process is in, and each that holds one of them, still lets it take."""
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


def used_by(work: Callable[[], object], before: int, device: torch.device) -> int:
    """Bytes that `work` held at most above `before`, what was held when nothing had been drawn."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    release(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    work()
    highest = peak(device)
    with suppress(OSError, StopIteration):
        highest = _field(Path("/proc/self/status"), "VmHWM")
    return max(0, highest - before)


def _field(file: Path, name: str) -> int:
    """Bytes, from a line such as `VmRSS:   1024 kB`."""
    return next(1024 * int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(name))


def largest_batch(used: Callable[[int], int], free: int, most: int, may_fail: bool) -> int:
    """The most images whose memory fits into `free` bytes, up to `most`; 0 if not even one does.

    Sizes are doubled from 1 on, each only if what the last two needed, continued as a line, says that it fits; between the last
    that was tried and twice that, the line decides. So nothing is tried that is likely to fail.

    Args:
        used: bytes that a batch of so many images takes, measured by trying; raises MemoryError if there is too little.
        may_fail: too little memory is an error there and not the end of the process, so two images are tried in any case.
    """
    limit, size, last = int(SHARE * free), 1, 0
    while size <= most:
        try:
            now = used(size)
        except MemoryError:
            return size // 2
        if now > limit:
            return size // 2
        slope = (now - last) / (size - size // 2)  # from one image to two it may be less, where much is needed for any number
        last = now
        if last + slope * size > limit and not (may_fail and size == 1):
            return min(most, size + int((limit - last) / max(slope, 1.0)))
        size *= 2
    return most
