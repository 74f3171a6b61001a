"""The manifest of a run: what the run is, and its history. Here it is read, checked and written, and nowhere else.

A run that keeps its images has RUN/manifest.json, one that keeps features alone (`--evaluate-online`) RUN-online/online.json.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeVar

from fiducial import UserError, is_decodable, quoted, read_json, write_whole
from fiducial.classes import names_sha256
from fiducial.sampling.identity import Identity, fingerprint
from fiducial.sampling.options.config import LIMITS
from fiducial.sampling.plan import parse_labels
from fiducial.sampling.store import disk, records
from fiducial.sampling.store.folder import MANIFEST, ONLINE
from fiducial.sampling.store.parts import OF_EVERY_RUN, OF_FILES, in_json, require_parts

MANIFEST_KIND = "fiducial-run-"
MANIFEST_FORMAT, ONLINE_FORMAT = f"{MANIFEST_KIND}2", "fiducial-online-1"
RECORDS_FORMAT = 2  # of which each row bears the run's mark
MANIFEST_BYTES = 1 << 24
MOST_FILES = 100_000  # of records that are not merged yet, each looked for by its name
FILES = {MANIFEST_FORMAT: MANIFEST, ONLINE_FORMAT: ONLINE}  # where a manifest of each format stands
Part = TypeVar("Part")


@dataclass
class Session:
    """One time that a run was worked on; none of it changes what is drawn. What is None is not known, or not yet."""

    world_size: int
    images_before: int
    started: str | None = None
    hosts: list[str] | None = None
    png: bool | None = None
    device: str | None = None
    hardware: dict | None = None  # of rank 0, beside the device's name
    mixed: str | None = None  # what was other on some rank, or in a session before
    threads: int | None = None
    python: str | None = None
    packages: dict[str, str] | None = None
    fiducial: dict | None = None
    images_drawn: int | None = None
    seconds: float | None = None
    peak_memory: int | None = None  # bytes, of the rank that held most
    copies_restored: int | None = None
    images_redrawn: int | None = None
    events: list | None = None
    finished: str | None = None
    ended: dict | None = None  # why it did not finish
    rest: dict = field(default_factory=dict)  # what another version has recorded


@dataclass(frozen=True)
class Npz:
    """The npz of a run when it was last finished."""

    file: str
    count: int
    bytes: int
    pixels_sha256: str | None = None
    rest: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Names:
    """Names of a run's classes, and where they were found."""

    sha256: str
    source: str
    names: list[str]
    count: int | None = None
    rest: dict = field(default_factory=dict)


@dataclass
class Manifest:
    """A run's identity, files and sessions. It changes while its run is drawn, by the one process that holds the run's lock."""

    format: str
    identity: Identity
    num_fid_samples: int
    sessions: list[Session] = field(default_factory=list)
    records_format: int | None = None  # None: of before records bore a mark, or there are none
    merged: int = 0  # sessions whose records are in the table
    npz: Npz | None = None
    paths: dict[str, str] | None = None
    class_names: Names | None = None
    options: dict | None = None
    probe: dict | None = None
    grid: list[float] | None = None  # where its sampler stops on its path, from 1, noise, to 0, the image
    published: dict | None = None  # the row of its preset, as `options.rows` tells it
    rest: dict = field(default_factory=dict)

    @classmethod
    def begun(cls, made: str, identity: Identity, count: int) -> "Manifest":
        """Of a run of the format `made` that has no session yet."""
        return cls(made, identity, count, records_format=RECORDS_FORMAT if made == MANIFEST_FORMAT else None)

    @property
    def fingerprint(self) -> str:
        return self.identity.fingerprint

    @property
    def mark(self) -> int:
        """The mark by which the rows of the run's records are told from another run's."""
        return int(self.fingerprint[:8], 16) if self.records_format == RECORDS_FORMAT else 0

    @property
    def unmerged(self) -> dict[int, int]:
        """The sessions whose records may not be in the table yet: their numbers, from 1, and how many ranks each had."""
        ranks = {number: session.world_size for number, session in enumerate(self.sessions, start=1)}
        return {number: ranks[number] for number in ranks if number > self.merged}

    def to_json(self) -> dict:
        """As it stands on the disk."""
        of_files = {"merged": self.merged, "npz": self.npz and _told(self.npz)} if self.format == MANIFEST_FORMAT else {}
        known = {
            "format": self.format,
            "records_format": self.records_format,
            "sessions": [_told(session) for session in self.sessions],
            **of_files,
            "fingerprint": self.fingerprint,
            "identity": dict(self.identity.values),
            "num_fid_samples": self.num_fid_samples,
            "paths": self.paths,
            "class_names": self.class_names and _told(self.class_names),
            "options": self.options,
            "probe": self.probe,
            "grid": self.grid,
            "published": self.published,
        }
        return {name: value for name, value in known.items() if value is not None or name in of_files} | self.rest

    @classmethod
    def from_json(cls, content: dict) -> "Manifest":
        """The same from what `load` has checked."""
        made = _of_json(cls, content | {"identity": Identity(content["identity"])}, unless={"fingerprint"})
        made.sessions = [_of_json(Session, session) for session in content["sessions"]]
        made.npz = content.get("npz") and _of_json(Npz, content["npz"])
        made.class_names = content.get("class_names") and _of_json(Names, content["class_names"])
        return made


ORDER = (  # of what stands in a session, as it came to be known
    *("started", "images_before", "world_size", "hosts", "png", "device", "hardware", "mixed"),
    *("threads", "python", "packages", "fiducial", "images_drawn", "seconds", "peak_memory"),
    *("copies_restored", "images_redrawn", "events", "finished", "ended"),
)


def _told(part: Session | Npz | Names) -> dict:
    """A part as it stands in JSON: what is known of it."""
    names = ORDER if isinstance(part, Session) else [own.name for own in fields(part) if own.name != "rest"]
    return {name: getattr(part, name) for name in names if getattr(part, name) is not None} | part.rest


def _of_json(kind: type[Part], content: Mapping, unless: set[str] = frozenset()) -> Part:
    """A part from what stands in JSON; what this version does not know goes to its `rest`."""
    known = {own.name for own in fields(kind)} - {"rest"}
    rest = {name: value for name, value in content.items() if name not in known | set(unless)}
    return kind(**{name: value for name, value in content.items() if name in known}, rest=rest)


def read(folder: Path, made: str = MANIFEST_FORMAT) -> Manifest | None:
    """The manifest of that format in `folder`, or None if there is none. Nothing in it is used as a path.

    Raises:
        UserError: if it is not one of ours, or was changed by hand into what cannot be.
    """
    path = folder / FILES[made]
    try:
        return load(path, made) if path.exists() else None
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    if made == ONLINE_FORMAT:
        raise UserError(f"{path} is not whole ({reason}); move {folder} away, or choose another --run-name")
    raise UserError(f"{path} is not a whole manifest of format {made} ({reason}); move it away, or choose another --run-name")


def reread(folder: Path, made: str = MANIFEST_FORMAT) -> Manifest:
    """The manifest of the run that is being drawn in `folder`; UserError if it is not there any more, too."""
    if (manifest := read(folder, made)) is None:
        raise UserError(disk.gone(folder / FILES[made]))
    return manifest


def load(path: Path, made: str = MANIFEST_FORMAT) -> Manifest:
    """The manifest of the format `made` in the file `path`.

    Raises:
        OSError: if it cannot be read.
        ValueError: with the reason, if it is not one of ours, or was changed by hand into what cannot be.
    """
    content = read_json(path, MANIFEST_BYTES)
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    if "format" not in content:
        raise ValueError("it has no format")
    if content["format"] != made:
        raise ValueError(f"its format is {quoted(content['format'])}")
    with_files = made == MANIFEST_FORMAT
    require_parts(content, OF_EVERY_RUN | OF_FILES if with_files else OF_EVERY_RUN)
    _check_run(content)
    if with_files:
        _check_files(content)
    return Manifest.from_json(content)


def write(folder: Path, manifest: Manifest) -> None:
    """Write what `read` reads. Where that would be too much for it, sessions lose what is told of them at length.

    Raises:
        UserError: if even that is not enough.
    """
    path, content = folder / FILES[manifest.format], manifest.to_json()
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


def _check_run(manifest: dict) -> None:
    """Check the parts that every run has, with images or without."""
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
    """Raise ValueError if a number is beyond what it can be."""
    if not least <= (value := content[name]) <= most:
        raise ValueError(f"{whose}{name} is {in_json(value)}, not {least:,} to {most:,}")


def _check_files(manifest: dict) -> None:
    """Check the parts of a run whose images are in files."""
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


def mixed_up(folder: Path, manifest: Manifest) -> str:
    """A sentence if the records in `folder` are of another run than its manifest; else empty.

    The images' hash is compared only if the last session finished: one that ended early may have drawn some of them anew, which
    without --exact need not give the same bytes.
    """
    table, sessions, npz = records.table_path(folder), manifest.sessions, manifest.npz
    if records.are_of_another_run(folder, manifest.num_fid_samples, manifest.unmerged, manifest.mark):
        return f"{table} is of another run than {folder / MANIFEST}"
    finished = npz and sessions and sessions[-1].finished is not None
    if finished and records.done(folder, npz.count, {}, manifest.mark).all():
        _, recorded = records.summary(folder, npz.count, manifest.mark)
        if recorded != (npz.pixels_sha256 or recorded):
            return f"{table} records other images than {folder / MANIFEST} has the pixels_sha256 of"
    return ""
