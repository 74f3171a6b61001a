"""The manifest of a run: what it is, and its history."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

from fiducial import (
    UserError,
    is_decodable,
    quoted,
    read_json,
    write_whole,
)
from fiducial.classes import names_sha256
from fiducial.sampling.options.config import LIMITS, fingerprint
from fiducial.sampling.plan import parse_labels
from fiducial.sampling.store import disk, records
from fiducial.sampling.store.folder import MANIFEST
from fiducial.sampling.store.parts import OF_EVERY_RUN, OF_FILES, in_json, require_parts

MANIFEST_KIND = "fiducial-run-"
MANIFEST_FORMAT = f"{MANIFEST_KIND}2"
RECORDS_FORMAT = 2  # of which each row bears the run's mark
MANIFEST_BYTES = 1 << 24
MOST_FILES = 100_000  # of records that are not merged yet, each looked for by its name


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
