"""The files of a run: PNGs, each whole or absent, and the manifest.

SAMPLE_DIR/RUN/000000.png ...            by index; from 100,000 on in folders of 100,000, from-0000100000/100000.png
SAMPLE_DIR/RUN/manifest.json             what the run is, and its history
SAMPLE_DIR/RUN/ended.json                why the last session ended early, if it did
SAMPLE_DIR/RUN/records.bin, records/     what each image must look like: see `records`
SAMPLE_DIR/RUN/lock                      while someone is drawing
SAMPLE_DIR/RUN.npz                       arr_0 (N, H, W, 3) uint8, arr_1 (N,) int64 labels: see `archive`
"""

import io
import json
import os
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from distributed import UserError, open_new, open_regular, open_to_write, read_text, write_whole
from distributed.classes import names_sha256
from sampling import archive, records
from sampling.config import LIMITS, fingerprint
from sampling.plan import parse_labels

MANIFEST, ONLINE = "manifest.json", "online.json"
MANIFEST_KIND = "fiducial-run-"
MANIFEST_FORMAT = f"{MANIFEST_KIND}2"
MANIFEST_BYTES = 1 << 28
ENDED, RESERVE = "ended.json", ".reserve"
RESERVED = 1 << 16  # bytes kept free for `ended.json`
FAN_OUT = 100_000  # images a folder: more make every listing, deletion and copy of it slow
PNG_COMPRESSION = 1  # zlib's fastest: larger files by a tenth or so, written in under half the time
WRITER_THREADS = 4
BLOCKS_WAITING = 3


def png_path(folder: Path, index: int) -> Path:
    """Where an image's PNG stands; sorting by path is sorting by index, up to ten digits."""
    name = f"{index:06d}.png"
    first = index // FAN_OUT * FAN_OUT
    return folder / f"from-{first:010d}" / name if first else folder / name


def most_png_bytes(image_size: int) -> int:
    """Bytes that the PNG of an image may have, also when others have saved it anew."""
    return 2 * archive.image_bytes(image_size) + (1 << 20)


def png_bytes(pixels: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=PNG_COMPRESSION)
    return buffer.getvalue()


def write_png(path: Path, content: bytes) -> None:
    """Puts a PNG in its place in one step. What a killed process left beside it is replaced when it is drawn again."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        try:
            file = open_new(beside)
        except FileNotFoundError:
            if path.parent.name.startswith("from-"):
                path.parent.mkdir(exist_ok=True)
            file = open_new(beside)
        with file:
            file.write(content)
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def read_png(path: Path, image_size: int) -> bytes | None:
    """The pixels of a PNG of ours, (image_size, image_size, 3) uint8 in C order; None if it is missing or not whole."""
    try:
        with open_regular(path, most_png_bytes(image_size)) as file, Image.open(file) as image:
            return image.tobytes() if image.size == (image_size, image_size) and image.mode == "RGB" else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # all of which Pillow raises
        return None


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
        """Queues the images `indices` of a block, pixels (len(indices), H, W, 3) uint8; `heed` is called while there is no room.

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


def read_manifest(folder: Path) -> dict | None:
    """The manifest in `folder`, or None if there is none. Nothing in it is used as a path.

    Raises:
        UserError: if it is not one of ours, or was changed by hand into what cannot be.
    """
    path = folder / MANIFEST
    try:
        return load_manifest(path) if path.exists() else None
    except (OSError, ValueError) as error:
        reason = str(error)
    raise UserError(
        f"{path} is not a whole manifest of format {MANIFEST_FORMAT} ({reason}); move it away, or choose another --run-name"
    )


def load_manifest(path: Path) -> dict:
    """The manifest in the file `path`.

    Raises:
        OSError: if it cannot be read.
        ValueError: with the reason, if it is not one of ours, or was changed by hand into what cannot be.
    """
    try:
        manifest = json.loads(read_text(path, MANIFEST_BYTES))
        if manifest["format"] != MANIFEST_FORMAT:
            raise ValueError(f"its format is {str(manifest['format'])[:40]!r}")
        _check_manifest(manifest)
        return manifest
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _check_manifest(manifest: dict) -> None:
    count, sessions, merged = (manifest[name] for name in ("num_fid_samples", "sessions", "merged"))
    if not isinstance(sessions, list):
        raise ValueError("its sessions are no list")
    if type(count) is not int or not 1 <= count <= LIMITS["num_fid_samples"]:
        raise ValueError(f"num_fid_samples is {str(count)[:40]}")
    if manifest["fingerprint"] != fingerprint(dict(manifest["identity"])):
        raise ValueError("its identity is not that of its fingerprint")
    for session in sessions:
        if type(session["world_size"]) is not int or not 1 <= session["world_size"] <= LIMITS["world_size"]:
            raise ValueError(f"a session's world_size is {str(session['world_size'])[:40]}")
        if type(session["images_before"]) is not int:
            raise ValueError(f"a session's images_before is {str(session['images_before'])[:40]}")
    if type(merged) is not int or not 0 <= merged <= len(sessions):
        raise ValueError(f"merged is {str(merged)[:40]}")
    if (ranks := sum(session["world_size"] for session in sessions[merged:])) > LIMITS["world_size"]:
        raise ValueError(f"its sessions had {ranks:,} ranks")
    identity, npz = manifest["identity"], manifest["npz"]
    if type(size := identity["per_proc_batch_size"]) is not int or not 1 <= size <= LIMITS["per_proc_batch_size"]:
        raise ValueError(f"per_proc_batch_size is {str(size)[:40]}")
    for name, least, most in (("image_size", 1, 1 << 14), ("num_classes", 1, 1 << 20), ("global_seed", 0, 1 << 64)):
        if type(value := identity[name]) is not int or not least <= value < most:
            raise ValueError(f"{name} is {str(value)[:40]}")
    parse_labels(identity["labels"], identity["num_classes"])
    if (classes := manifest.get("class_names")) is not None:  # runs of before names were recorded have none
        names = classes["names"]
        if not isinstance(names, list) or not all(isinstance(text, str) for text in (classes["source"], *names)):
            raise ValueError("its class_names are no text")
        if len(names) != identity["num_classes"] or classes["sha256"] != names_sha256(names):
            raise ValueError("its class_names are not those of their hash")
    if npz is not None and (npz["file"] != Path(npz["file"]).name or {type(npz["count"]), type(npz["bytes"])} != {int}):
        raise ValueError(f"its npz is {str(npz)[:80]}")


def write_manifest(folder: Path, manifest: dict) -> None:
    write_whole(folder / MANIFEST, lambda beside: beside.write_text(json.dumps(manifest, indent=2) + "\n"))


def unmerged(manifest: dict) -> dict[int, int]:
    """The sessions whose records may not be in the table yet: their numbers, from 1, and how many ranks each had."""
    sessions = [session["world_size"] for session in manifest["sessions"]]
    return {number: ranks for number, ranks in enumerate(sessions, start=1) if number > manifest["merged"]}


def read_ended(folder: Path) -> dict | None:
    """Why the last session ended early, or None if it did not or nobody could say."""
    try:
        ended = json.loads(read_text(folder / ENDED, RESERVED))
        return {name: ended[name] for name in ("kind", "message", "rank", "host", "exit_code", "time")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
