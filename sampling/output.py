"""The files of a run: PNGs, each whole or absent, and the manifest.

SAMPLE_DIR/RUN/000000.png ...            by index; from 100,000 on in folders of 100,000, from-0000100000/100000.png
SAMPLE_DIR/RUN/manifest.json             what the run is, and its history
SAMPLE_DIR/RUN/ended.json                why the last session ended early, if it did
SAMPLE_DIR/RUN/records.bin, records/     what each image must look like: see `records`
SAMPLE_DIR/RUN/lock                      while someone is drawing
SAMPLE_DIR/RUN.npz                       arr_0 (N, H, W, 3) uint8, arr_1 (N,) int64 labels: see `archive`
"""

import io
import itertools
import json
import os
import re
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from fiducial import (
    UserError,
    in_the_making,
    is_decodable,
    open_new,
    open_regular,
    open_to_write,
    quoted,
    read_json,
    remove_leftovers,
    require_place,
    write_whole,
)
from fiducial.classes import names_sha256
from fiducial.sampling import archive, disk, records
from fiducial.sampling.config import LIMITS, fingerprint
from fiducial.sampling.parts import OF_EVERY_RUN, OF_FILES, in_json, require_parts
from fiducial.sampling.plan import parse_labels

MANIFEST, ONLINE = "manifest.json", "online.json"
MANIFEST_KIND = "fiducial-run-"
MANIFEST_FORMAT = f"{MANIFEST_KIND}2"
RECORDS_FORMAT = 2  # of which each row bears the run's mark
MANIFEST_BYTES = 1 << 24
ENDED, RESERVE = "ended.json", ".reserve"
RESERVED = 1 << 16  # bytes kept free for `ended.json`
LONGEST_MESSAGE = 1000  # characters of why a run ended, where that is said again
MOST_FILES = 100_000  # of records that are not merged yet, each looked for by its name
FAN_OUT = 100_000  # images a folder: more make every listing, deletion and copy of it slow
PNG_COMPRESSION = 1  # zlib's fastest: larger files by a tenth or so, written in under half the time
UNFINISHED = re.compile(r"\.[0-9]{6,}\.png\.tmp")  # as `write_png` calls it
WRITER_THREADS = 4
BLOCKS_WAITING = 3


def png_path(folder: Path, index: int) -> Path:
    """Where an image's PNG stands; sorting by path is sorting by index, up to ten digits."""
    name = f"{index:06d}.png"
    first = index // FAN_OUT * FAN_OUT
    return folder / f"from-{first:010d}" / name if first else folder / name


def longest_path(folder: Path) -> Path:
    """Longer than which none is of what is written in a run's folder, temporary files among it."""
    return folder / "from-0000000000" / in_the_making(Path(MANIFEST))


def most_png_bytes(image_size: int) -> int:
    """Bytes that the PNG of an image may have, also when others have saved it anew."""
    return 2 * archive.image_bytes(image_size) + (1 << 20)


def png_bytes(pixels: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=PNG_COMPRESSION)
    return buffer.getvalue()


def write_png(path: Path, content: bytes) -> None:
    """Puts a PNG in its place in one step. What a killed process left beside it is replaced when it is drawn again, or removed
    in the end."""
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
    except OSError as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, IsADirectoryError):
            require_place(path)
        raise


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes have left of PNGs and other files. For rank 0, which holds the folder, when no rank writes
    images any more."""
    remove_leftovers(folder)
    for place in (folder, *folder.glob("from-*")):
        for entry in os.scandir(place):
            if UNFINISHED.fullmatch(entry.name):
                os.unlink(entry)


def read_png(path: Path, image_size: int) -> bytes | None:
    """The pixels of a PNG of ours, (image_size, image_size, 3) uint8 in C order; None if it is missing or not whole."""
    try:
        with open_regular(path, most_png_bytes(image_size)) as file, Image.open(file, formats=("PNG",)) as image:
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
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise UserError(
        f"{path} is not a whole manifest of format {MANIFEST_FORMAT} ({reason}); move it away, or choose another --run-name"
    )


def reread_manifest(folder: Path) -> dict:
    """The manifest of the run that is being drawn in `folder`; UserError if it is not there any more, too."""
    if (manifest := read_manifest(folder)) is None:
        raise UserError(disk.gone(folder / MANIFEST))
    return manifest


def load_manifest(path: Path) -> dict:
    """The manifest in the file `path`.

    Raises:
        OSError: if it cannot be read.
        ValueError: with the reason, if it is not one of ours, or was changed by hand into what cannot be.
    """
    return load_run(path, MANIFEST_FORMAT, OF_EVERY_RUN | OF_FILES, _check_files)


def load_run(path: Path, made: str, parts: dict[str, str] = OF_EVERY_RUN, check: Callable[[dict], object] | None = None) -> dict:
    """What is told of a run in the file `path`, which is to be of the format `made`, to have these parts, and to pass `check`;
    errors as of that."""
    content = read_json(path, MANIFEST_BYTES)
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    if "format" not in content:
        raise ValueError("it has no format")
    if content["format"] != made:
        raise ValueError(f"its format is {quoted(content['format'])}")
    require_parts(content, parts)
    _check_run(content)
    if check:
        check(content)
    return content


def _check_run(manifest: dict) -> None:
    """What every run has, with images or without."""
    _require(manifest, "num_fid_samples", 1, LIMITS["num_fid_samples"])
    for number, session in enumerate(manifest["sessions"]):
        _require(session, "world_size", 1, LIMITS["world_size"], f"sessions[{number}].")
        _require(session, "images_before", 0, LIMITS["num_fid_samples"], f"sessions[{number}].")
    identity = manifest["identity"]
    if manifest["fingerprint"] != fingerprint(identity):
        raise ValueError("its identity is not that of its fingerprint")
    for name in ("per_proc_batch_size", "image_size", "num_classes"):
        _require(identity, name, 1, LIMITS[name], "identity.")
    _require(identity, "global_seed", 0, (1 << 64) - 1, "identity.")
    parse_labels(identity["labels"], identity["num_classes"])
    if (classes := manifest.get("class_names")) is not None:  # runs of before names were recorded have none
        names = classes["names"]
        if len(names) != identity["num_classes"] or classes["sha256"] != names_sha256(names):
            raise ValueError("its class_names are not those of their hash")


def _require(content: dict, name: str, least: int, most: int, whose: str = "") -> None:
    """Raises ValueError if a number is beyond what it can be."""
    if not least <= (value := content[name]) <= most:
        raise ValueError(f"{whose}{name} is {in_json(value)}, not {least:,} to {most:,}")


def _check_files(manifest: dict) -> None:
    """What a run has whose images are in files."""
    sessions, npz = manifest["sessions"], manifest["npz"]
    _require(manifest, "merged", 0, len(sessions))
    if (ranks := sum(session["world_size"] for session in sessions[manifest["merged"] :])) > MOST_FILES:
        raise ValueError(f"its sessions had {ranks:,} ranks")
    if npz is not None:
        if npz["file"] != Path(npz["file"]).name:
            raise ValueError(f"npz.file is {in_json(npz['file'])}, which is no name of a file")
        _require(npz, "count", 1, manifest["num_fid_samples"], "npz.")
    if manifest.get("records_format") not in (None, RECORDS_FORMAT):  # those of before have none
        raise ValueError(f"its records_format is {in_json(manifest['records_format'])}")


def new_manifest() -> dict:
    """Of a run that has no session yet."""
    return {"format": MANIFEST_FORMAT, "records_format": RECORDS_FORMAT, "sessions": [], "merged": 0, "npz": None}


def write_manifest(folder: Path, manifest: dict) -> None:
    write_run(folder / MANIFEST, manifest)


def write_run(path: Path, content: dict) -> None:
    """Writes what `load_run` reads. Where that would be too much for it, sessions lose what is told of them at length.

    Raises:
        UserError: if even that is not enough.
    """
    text, sessions = json.dumps(content, indent=2) + "\n", content["sessions"]
    for name, some in itertools.product(("events", "hosts"), (sessions[: len(sessions) // 2], sessions)):
        if _is_readable(text):
            break
        for session in some:
            session[name] = []
        text = json.dumps(content, indent=2) + "\n"
    if not _is_readable(text):
        raise UserError(f"{path} would have {len(text):,} bytes, which nobody reads again; fewer or shorter class names help")
    write_whole(path, lambda beside: beside.write_text(text))


def _is_readable(text: str) -> bool:
    return len(text) <= MANIFEST_BYTES and is_decodable(text)


def mark(manifest: dict) -> int:
    """What the rows of the run's records are told by."""
    return int(manifest["fingerprint"][:8], 16) if manifest.get("records_format") == RECORDS_FORMAT else 0


def mixed_up(folder: Path, manifest: dict) -> str:
    """What shows that the records in `folder` are of another run than its manifest, in words; empty if nothing does.

    The images' hash is compared only if the last session finished: one that ended early may have drawn some of them anew, which
    without --exact need not give the same bytes.
    """
    table, sessions, npz = records.table_path(folder), manifest["sessions"], manifest["npz"]
    if records.are_of_another_run(folder, manifest["num_fid_samples"], unmerged(manifest), mark(manifest)):
        return f"{table} is of another run than {folder / MANIFEST}"
    finished = npz and sessions and "finished" in sessions[-1]
    if finished and records.done(folder, npz["count"], {}, mark(manifest)).all():
        _, recorded = records.summary(folder, npz["count"], mark(manifest))
        if recorded != npz.get("pixels_sha256", recorded):
            return f"{table} records other images than {folder / MANIFEST} has the pixels_sha256 of"
    return ""


def unmerged(manifest: dict) -> dict[int, int]:
    """The sessions whose records may not be in the table yet: their numbers, from 1, and how many ranks each had."""
    sessions = [session["world_size"] for session in manifest["sessions"]]
    return {number: ranks for number, ranks in enumerate(sessions, start=1) if number > manifest["merged"]}


def read_ended(folder: Path) -> dict | None:
    """Why the last session ended early, or None if it did not or nobody could say."""
    try:
        ended = read_json(folder / ENDED, RESERVED)
        found = {name: ended[name] for name in ("kind", "message", "rank", "host", "exit_code", "time")}
        return found | {"message": str(found["message"])[:LONGEST_MESSAGE]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
