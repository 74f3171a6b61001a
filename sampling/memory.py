"""Memory of the device: what was used at most, and how many images fit."""

import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

SHARE = 0.8  # of what is free, so that what varies from batch to batch still fits
MOST = 256  # images: beyond these a batch is no faster, and a killed run loses more


def peak(device: torch.device) -> int:
    """The most bytes that this process has held at once: of the GPU's memory, or of the host's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else 1024 * kilobytes


def room(device: torch.device) -> int:
    """Bytes that this process may take: what is free of its GPU, or its part of the host's memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return _available() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _available() -> int:
    """Bytes of the host's memory that can be had without swapping; where nobody tells, half of all."""
    with suppress(OSError, StopIteration):
        return _field(Path("/proc/meminfo"), "MemAvailable")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def used_by(work: Callable[[], object], device: torch.device) -> int:
    """Bytes that `work` held at most above what was held before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    status = Path("/proc/self/status")
    if not status.exists():  # not Linux
        before = peak(device)
        work()
        return peak(device) - before
    before = _field(status, "VmRSS")
    work()
    return max(0, _field(status, "VmHWM") - before)


def _field(file: Path, name: str) -> int:
    """Bytes, from a line such as `VmRSS:   1024 kB`."""
    return next(1024 * int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(name))


def largest_batch(used: Callable[[int], int], free: int, most: int = MOST) -> int:
    """The most images whose memory fits into `free` bytes, up to `most`; at least 1.

    Sizes are doubled from 1 on, each only if what the last two needed, continued as a line, says that it fits; between the last
    that was tried and twice that, the line decides. So nothing is tried that is likely to fail.

    Args:
        used: bytes that a batch of so many images takes, measured by trying; raises MemoryError if there is too little.
    """
    limit, size, slope, last = int(SHARE * free), 1, 0.0, 0
    while size <= most:
        try:
            now = used(size)
        except MemoryError:
            return max(1, size // 2)
        if now > limit:
            return max(1, size // 2)
        slope = (now - last) / (size - size // 2) if last else now
        last = now
        if last + slope * size > limit:
            return max(size, min(most, size + int((limit - last) / max(slope, 1.0))))
        size *= 2
    return most
