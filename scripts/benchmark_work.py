"""Inputs and clocks of every benchmark of scripts/benchmark.py."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

IMAGE_SIZE = 256
Measured = dict[str, float]


@dataclass(frozen=True)
class Work:
    """Inputs of a contestant: a folder with `a/` and `b/` full of PNGs and `weights.pth`, and how much to do."""

    folder: Path
    images: int
    samples: int
    reference: int
    model: str = ""
    steps: int = 0
    device: str = "cpu"
    image_size: int = IMAGE_SIZE
    options: tuple[str, ...] = ()

    @property
    def weights(self) -> str:
        return str(self.folder / "weights.pth")


def seconds(work: Callable[[], object]) -> Measured:
    started = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - started}


def memory_above(work: Callable[[], Measured]) -> Measured:
    """Add the peak of resident memory during `work` above the level before it, in GB, where Linux tells."""
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    except OSError:
        return work()

    def kilobytes(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    before = kilobytes("VmRSS")
    measured = work()
    return measured | {"peak_gb": (kilobytes("VmHWM") - before) / 1e6}
