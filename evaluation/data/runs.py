"""The run that drew samples, by the manifest beside them: class names, configuration, time."""

import json
import math
import zipfile
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath

from fiducial import decode_json, read_json
from fiducial.evaluation.data.damage import DAMAGED_ARCHIVE

MANIFEST = "manifest.json"
LARGEST_MANIFEST = 1 << 24  # bytes
LONGEST_NAME = 200  # characters that are shown
LONGEST_COMMAND = 1 << 13  # bytes
FILES = ("ckpt", "weights", "vae", "source")  # a manifest's paths that a result has
NOT_AS_EXPECTED = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError)


@dataclass(frozen=True)
class ClassNames:
    """Names by label, and the hash by which the run knows them."""

    names: tuple[str, ...]
    sha256: str

    def __getitem__(self, label: int) -> str | None:
        """The name of a label; None for one beyond them, as is the null label."""
        return self.names[label] if label < len(self.names) else None


@dataclass(frozen=True)
class Row:
    """A published row: its numbers as texts, by the names of metrics, and how they came about. `settings` are the options that
    its preset stands for, `from_memory` the metrics whose numbers were not read in the source, and `differing` the options that
    the run has otherwise: name, the row's value and the run's.
    """

    name: str
    source: str
    numbers: dict[str, str]
    from_memory: list[str]
    labels: str
    reference: str
    rounding: str
    evaluator: str
    count: int
    settings: dict[str, str | int | float | bool | list | None]
    notes: list[str]
    differing: list[list[str | int | float | bool | list | None]]


@dataclass(frozen=True)
class Run:
    """A run as its samples' numbers depend on it: `identity` is all that determines its images, `seed` among it.

    `sessions` say how many images were drawn in how many seconds, on how many processes of which device; `published` is the row
    that it was drawn after, where its preset has one. `command` is the one that began it, and `files` are the names of its
    checkpoint (`ckpt`), which of its weights were taken (`weights`), the codec (`vae`), and the origin of a published
    checkpoint in words (`source`).
    """

    fingerprint: str
    identity: dict[str, str | int | float | bool | list | None]
    sessions: tuple[dict[str, str | int | float], ...]
    published: Row | None = None
    command: str | None = None
    files: dict[str, str] = field(default_factory=dict)


def find_names(samples: Path, pixels_sha256: str) -> ClassNames | None:
    """The names in RUN/manifest.json for RUN.npz or RUN, if it is the manifest of these very pixels; else None.

    Nobody vouches for what stands beside a file, so whatever is not as expected counts as absent.
    """
    return names_in(_manifest_of(samples, pixels_sha256))


def find_run(samples: Path, pixels_sha256: str) -> Run | None:
    """The run that drew these very pixels, by the same file and with the same care."""
    return as_run(_manifest_of(samples, pixels_sha256))


def known_pixels(samples: Path, count: int) -> str | None:
    """The hash of the pixels of a run's own npz of so many images, by the run's manifest; None where that need not be so.

    It is so if the run's last session, which has held all images against its records, finished, and nobody has touched the npz
    since: every change of a file or of its name moves the time that is compared.
    """
    manifest = _manifest_beside(samples)
    try:
        npz, found, told = manifest["npz"], samples.stat(), _path_beside(samples).stat()
        is_own = (npz["file"], npz["count"], npz["bytes"]) == (samples.name, count, found.st_size)
        is_finished = _is_text(manifest["sessions"][-1]["finished"])
        untouched = max(found.st_mtime_ns, found.st_ctime_ns) <= told.st_mtime_ns
        digest = npz["pixels_sha256"]
        return digest if is_own and is_finished and untouched and _is_text(digest) else None
    except (*NOT_AS_EXPECTED, IndexError):
        return None


def names_beside(samples: Path) -> ClassNames | None:
    """The names in that manifest, of whatever pixels it is."""
    return names_in(_manifest_beside(samples))


def count_of_run(path: Path) -> int | None:
    """How many images the run in this folder, or zip of one, is to have, by its manifest; None where there is none, or it does
    not say."""
    try:
        content = _zipped_manifest(path) if path.is_file() else read_json(path / MANIFEST, LARGEST_MANIFEST)
        count = content["num_fid_samples"]
        return count if type(count) is int and count > 0 else None
    except (*NOT_AS_EXPECTED, *DAMAGED_ARCHIVE):
        return None


def _zipped_manifest(path: Path) -> object:
    """The manifest of the outermost folder in a zip that has one."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if PurePosixPath(name).name == MANIFEST]
        with archive.open(min(names, key=lambda name: name.count("/"))) as member:
            return decode_json(member.read(LARGEST_MANIFEST))


def names_in(manifest: dict) -> ClassNames | None:
    """The class names that a manifest has."""
    try:
        known = manifest["class_names"]
        names, sha256 = known["names"], known["sha256"]
        if not isinstance(names, list) or not all(_is_text(name) for name in (*names, sha256)):
            return None
        return ClassNames(tuple(names), sha256)
    except NOT_AS_EXPECTED:
        return None


def as_run(manifest: dict) -> Run | None:
    """The run that a manifest is of."""
    try:
        identity, fingerprint = manifest["identity"], manifest["fingerprint"]
        plain = all(isinstance(value, str | int | float | bool | list | None) for value in identity.values())
        if not (plain and _is_text(fingerprint) and all(map(_is_text, identity)) and len(json.dumps(identity)) < 1 << 16):
            return None
        sessions = [
            {
                "images": int(session["images_drawn"]),
                "seconds": float(session["seconds"]),
                "ranks": int(session["world_size"]),
                "device": str(session["device"])[:LONGEST_NAME],
            }
            for session in manifest["sessions"]
            if session.get("images_drawn") and session.get("seconds")
        ]
        return Run(fingerprint, identity, tuple(sessions), _row_in(manifest), _command_in(manifest), _files_in(manifest))
    except NOT_AS_EXPECTED:
        return None


def _command_in(manifest: dict) -> str | None:
    """The command that began the run."""
    try:
        command = manifest["sessions"][0]["fiducial"]["command"]
        return command if isinstance(command, str) and 0 < len(command.encode()) < LONGEST_COMMAND else None
    except (*NOT_AS_EXPECTED, IndexError):
        return None


def _files_in(manifest: dict) -> dict[str, str]:
    """The names of the run's files, without their folders."""
    try:
        given = {name: manifest["paths"][name] for name in FILES if manifest["paths"].get(name)}
        return {name: text if name == "source" else PurePosixPath(text).name for name, text in given.items() if _is_text(text)}
    except NOT_AS_EXPECTED:
        return {}


def _row_in(manifest: dict) -> Row | None:
    """The published row that a manifest has; None if it is not whole."""
    try:
        given = manifest["published"]
        row = Row(**{own.name: given[own.name] for own in fields(Row)})
        texts = (row.name, row.source, row.labels, row.reference, row.rounding, row.evaluator, *row.notes, *row.from_memory)
        plain = all(isinstance(one, str | int | float | bool | list | None) for one in row.settings.values())
        finite = all(_is_text(name) and _is_text(number) and math.isfinite(float(number)) for name, number in row.numbers.items())
        differing = all(len(one) == 3 and _is_text(one[0]) and isinstance(one, list) for one in row.differing)
        is_whole = all(map(_is_text, texts)) and plain and finite and differing and type(row.count) is int
        return row if is_whole and len(json.dumps(given)) < 1 << 14 else None
    except NOT_AS_EXPECTED:
        return None


def _manifest_of(samples: Path, pixels_sha256: str) -> dict:
    """Empty if there is none of these pixels."""
    manifest = _manifest_beside(samples)
    try:
        return manifest if manifest["npz"]["pixels_sha256"] == pixels_sha256 else {}
    except NOT_AS_EXPECTED:
        return {}


def _manifest_beside(samples: Path) -> dict:
    """Empty if there is none."""
    try:
        manifest = read_json(_path_beside(samples), LARGEST_MANIFEST)
        return manifest if isinstance(manifest, dict) else {}
    except NOT_AS_EXPECTED:
        return {}


def _path_beside(samples: Path) -> Path:
    return samples.parent / samples.name.removesuffix(".npz") / MANIFEST


def _is_text(value: object) -> bool:
    """Whether it is short text that a file can hold; half a character raises ValueError."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and bool(value.encode())
