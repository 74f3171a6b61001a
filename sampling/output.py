"""The files of a run: PNGs, each whole or absent; the manifest; the npz, packed in constant memory.

SAMPLE_DIR/RUN/000000.png ...     by index
SAMPLE_DIR/RUN/manifest.json      what the run is, and its history
SAMPLE_DIR/RUN.npz                arr_0 (N, H, W, 3) uint8, arr_1 (N,) int64 labels
"""

import json
import os
import re
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from distributed import UserError, write_whole

MANIFEST = "manifest.json"
MANIFEST_FORMAT = "fiducial-run-1"
PNG_NAME = re.compile(r"[0-9]{6,}\.png")
PNG_COMPRESSION = 1  # zlib's fastest: larger files by a tenth or so, written in under half the time
WRITER_THREADS = 4
PACK_CHUNK = 128


def png_path(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def existing(folder: Path, count: int) -> np.ndarray:
    """Which of the first `count` indices have their PNG, (count,) bool. PNGs appear whole, so a name is enough."""
    done = np.zeros(count, dtype=bool)
    for entry in os.scandir(folder):
        if not PNG_NAME.fullmatch(entry.name):
            continue
        index = int(entry.name.removesuffix(".png"))
        if index < count and entry.name == png_path(folder, index).name:
            done[index] = True
    return done


def remove_leftovers(folder: Path) -> None:
    """Deletes what a killed run was in the middle of writing. For before any rank writes."""
    for path in [*folder.glob(".*.tmp"), *folder.parent.glob(f".{folder.name}.npz.*.tmp")]:
        path.unlink(missing_ok=True)


class PngWriter:
    """A pool of threads that writes PNGs beside the model. Leaving the context waits for all of them.

    Args:
        on_written: called with no argument after each image, from the pool's threads.
        room: how many images may wait; `submit` blocks beyond that.
    """

    def __init__(self, folder: Path, on_written: Callable[[], None], room: int):
        self._folder, self._on_written = folder, on_written
        self._pool = ThreadPoolExecutor(WRITER_THREADS, thread_name_prefix="png")
        self._room = threading.Semaphore(room)
        self._failure: BaseException | None = None

    def __enter__(self) -> "PngWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None and self._failure is not None:
            raise self._failure

    def submit(self, index: int, pixels: np.ndarray) -> None:
        """Queues image `index`, (H, W, 3) uint8. Raises what an earlier write raised."""
        if self._failure is not None:
            raise self._failure
        self._room.acquire()
        self._pool.submit(self._write, index, pixels).add_done_callback(self._written)

    def _write(self, index: int, pixels: np.ndarray) -> None:
        image = Image.fromarray(pixels)
        path = png_path(self._folder, index)
        write_whole(path, lambda beside: image.save(beside, format="PNG", compress_level=PNG_COMPRESSION))
        self._on_written()

    def _written(self, future: Future) -> None:
        self._room.release()
        if not future.cancelled() and (failure := future.exception()) is not None:
            self._failure = failure


def read_manifest(folder: Path) -> dict | None:
    """The manifest in `folder`, or None if there is none.

    Raises:
        UserError: if it is not one of ours.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text())
        kinds = {"identity": dict, "num_fid_samples": int, "sessions": list, "npz": dict | None}
        if manifest["format"] == MANIFEST_FORMAT and all(isinstance(manifest[name], kind) for name, kind in kinds.items()):
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} is not a manifest of format {MANIFEST_FORMAT}; move it away, or choose another --run-name")


def write_manifest(folder: Path, manifest: dict) -> None:
    write_whole(folder / MANIFEST, lambda beside: beside.write_text(json.dumps(manifest, indent=2) + "\n"))


def pack_npz(folder: Path, path: Path, labels: np.ndarray, image_size: int, on_packed: Callable[[int], object]) -> None:
    """Packs the first `len(labels)` PNGs of `folder` into `path`, in index order, in memory that does not grow with N.

    The result is an uncompressed zip of two C-ordered arrays with fixed time stamps: equal images give equal bytes.

    Raises:
        UserError: naming the PNG that is missing or damaged.
    """
    shape = (len(labels), image_size, image_size, 3)

    def write(beside: Path) -> None:
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive, ThreadPoolExecutor(WRITER_THREADS) as pool:
            with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
                for start in range(0, len(labels), PACK_CHUNK):
                    indices = range(start, min(start + PACK_CHUNK, len(labels)))
                    for pixels in pool.map(lambda index: read_png(png_path(folder, index), image_size), indices):
                        member.write(pixels)
                    on_packed(len(indices))
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, labels.astype(np.int64))

    write_whole(path, write)


def read_png(path: Path, image_size: int) -> bytes:
    """The pixels of one PNG of ours, (image_size, image_size, 3) uint8 in C order.

    Raises:
        UserError: if it is missing, damaged or of another size.
    """
    try:
        with Image.open(path) as image:
            if image.size != (image_size, image_size) or image.mode != "RGB":
                raise UserError(
                    f"{path} is {image.size[0]} x {image.size[1]} {image.mode}, not one of this run's images; remove it"
                )
            return image.tobytes()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # all of which Pillow raises
        raise UserError(f"{path} cannot be read ({error}); delete it and run the same command again to redraw it") from error
