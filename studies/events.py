"""A run for TensorBoard while it is drawn: images a second, images that are there, memory, and a sheet of samples."""

from pathlib import Path

import numpy as np

from fiducial import tensorboard
from fiducial.sampling.store.progress import Progress


class Events:
    """A `Hearer` that writes scalars at the number of images that are there; to be made on rank 0."""

    def __init__(self, folder: Path):
        self._writer = tensorboard.writer(folder)

    def progress(self, now: Progress) -> None:
        """Add a point of each curve. Rates are not known before the first block, nor when all is drawn."""
        self._writer.add_scalar("run/images", now.images, now.images)
        self._writer.add_scalar("run/memory in GB", max(rank.memory for rank in now.ranks) / 1e9, now.images)
        if now.rate is not None:
            self._writer.add_scalar("run/images per second", now.rate, now.images)
        self._writer.flush()

    def pictures(self, sheet: np.ndarray, images: int) -> None:
        self._writer.add_image("run/newest", sheet, images, dataformats="HWC")
        self._writer.flush()
