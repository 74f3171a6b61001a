"""Writing images beside the model, in threads."""

import os
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fiducial import open_to_write
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store import records
from fiducial.sampling.store.png import png_bytes, png_path, write_png

WRITER_THREADS = 4
BLOCKS_WAITING = 3


class BlockWriter:
    """Writes images beside the model, in a pool of threads: into the npz, as PNG, and then their rows into the records.

    Leaving the context waits for all of them, also after an exception, because they are drawn.

    Args:
        npz: where the images have their places.
        on_written: called from a thread with the rows of each block, once they are on the disk.
    """

    def __init__(
        self,
        folder: Path,
        npz: Path,
        image_size: int,
        with_png: bool,
        recorder: records.Recorder,
        on_written: Callable[[np.ndarray], object],
    ):
        self._folder, self._image_size, self._with_png = folder, image_size, with_png
        self._recorder, self._on_written = recorder, on_written
        self._npz = open_to_write(npz, os.O_WRONLY)
        self._images = ThreadPoolExecutor(WRITER_THREADS, thread_name_prefix="images")
        self._blocks = ThreadPoolExecutor(1, thread_name_prefix="records")
        self._room = threading.Semaphore(BLOCKS_WAITING)
        self._failure: BaseException | None = None

    def __enter__(self) -> "BlockWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        self._blocks.shutdown(wait=True)
        self._images.shutdown(wait=True)
        os.close(self._npz)
        if kind is None and self._failure is not None:
            raise self._failure

    def submit(self, indices: np.ndarray, pixels: np.ndarray, heed: Callable[[], object]) -> None:
        """Queue the images `indices` of a block, pixels (len(indices), H, W, 3) uint8; `heed` is called while there is no room.

        Raises:
            Exception: what an earlier write raised.
        """
        while not self._room.acquire(timeout=1.0):
            heed()
        if self._failure is not None:
            raise self._failure
        images = [self._images.submit(self._write, index, image) for index, image in zip(indices.tolist(), pixels, strict=True)]
        self._blocks.submit(self._record, images).add_done_callback(self._finished)

    def _write(self, index: int, pixels: np.ndarray) -> np.ndarray:
        pixels = np.ascontiguousarray(pixels)
        content, png = memoryview(pixels).cast("B"), (0, 0)
        try:
            archive.write_pixels(self._npz, index, content, self._image_size)
            if self._with_png:
                encoded = png_bytes(pixels)
                write_png(png_path(self._folder, index), encoded)
                png = (zlib.crc32(encoded), len(encoded))
        except OSError as error:
            error.add_note(f"while writing image {index}")
            raise
        return records.row(index, content, zlib.crc32(content), png)

    def _record(self, images: list[Future]) -> None:
        rows = np.concatenate([image.result() for image in images])
        if not self._with_png:
            os.fdatasync(self._npz)  # the only copy
        self._recorder.add(rows)
        self._on_written(rows)

    def _finished(self, block: Future) -> None:
        if (failure := block.exception()) is not None and self._failure is None:
            self._failure = failure
        self._room.release()
