"""Results of `calc` read back from JSON, which may be anybody's: what is not as expected is one sentence, never believed."""

import json
from dataclasses import dataclass
from pathlib import Path

from fiducial import UserError, no_file, printable, read_json
from fiducial.evaluation.intervals import Estimate
from fiducial.evaluation.protocols import LABELS
from fiducial.evaluation.wording import RESULT_FORMAT

LARGEST = 1 << 24  # bytes of a file
LONGEST = 200  # characters of a text
FAMILY = RESULT_FORMAT.rstrip("0123456789")
TEXT, COUNT, SHA256 = (str,), (int,), (str, type(None))
Value = str | int | float | bool | list | None
BASIS = {  # what the numbers of two results have to share before they can be compared, and where it stands
    "extractor": (("extractor", "name"), TEXT),
    "weights SHA-256": (("extractor", "weights_sha256"), SHA256),
    "reference SHA-256": (("reference", "sha256"), SHA256),
    "protocol": (("settings", "protocol"), TEXT),
    "N": (("samples", "count"), COUNT),
    "image size": (("samples", "image_size"), (list,)),
    "training images SHA-256": (("training", "pixels_sha256"), SHA256),
    "precision_recall_distances": (("settings", "precision_recall_distances"), TEXT),
    "dtype": (("settings", "dtype"), TEXT),
    "kid_subset_size": (("settings", "kid_subset_size"), COUNT),
}
OPTIONAL = ("reference", "training")  # parts that a result may lack


@dataclass(frozen=True)
class Number:
    """One metric of a result: `name` is its metric's in `LABELS`, `label` what it is called with its extractor."""

    name: str
    label: str
    found: Estimate


@dataclass(frozen=True)
class Known:
    """A result as far as a comparison needs it. `identity` is all that determines the run's images; None where unknown."""

    path: Path
    numbers: dict[str, Number]
    basis: dict[str, Value]
    pixels_sha256: str
    identity: dict[str, Value] | None


def find_result(run: Path) -> Path:
    """The result of a run: a JSON file itself, or the one beside RUN.npz, RUN.html or the folder RUN.

    One that was scored without images, as RUN-online, goes by the name of RUN too.

    Raises:
        UserError: if there is none.
    """
    if run.suffix == ".json" and not run.is_dir():
        found = run
    else:
        whole = run if run.name else run.resolve()
        found = whole.with_name(whole.name.removesuffix(".npz").removesuffix(".html") + ".json")
        online = found.with_name(f"{found.stem}-online.json")  # of `sample_ddp.py --evaluate-online`
        if online.is_file() and not found.exists():
            return online
    if found.is_file():
        return found
    if found.exists():
        raise UserError(f"{found}: {no_file(found)}")
    if found == run or not run.exists():
        raise UserError(f"{run}: {no_file(run, 'no such file or folder')}")
    if not run.is_dir() and run.suffix != ".npz":
        raise UserError(f"{run} is no result of calc, and neither the npz nor the folder of a run")
    raise UserError(f"{run} has no result beside it: python -m evaluation calc {run} --ref REF --json {found} makes one")


def read_result(path: Path) -> Known:
    """What `calc` wrote there.

    Raises:
        UserError: if it is something else, or of an older format.
    """
    try:
        data = read_json(path, LARGEST)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON, as calc --json writes it: {error}") from error
    made = data.get("format") if isinstance(data, dict) else None
    if not (isinstance(made, str) and made.startswith(FAMILY)):
        raise UserError(f"{path} is no result of calc: its format is not {RESULT_FORMAT}")
    if made != RESULT_FORMAT:
        raise UserError(f"{path} is of the format {made[:LONGEST]}, and {RESULT_FORMAT} is read here: evaluate the samples again")
    metrics = _get(path, data, ("metrics",), (dict,))
    if not metrics:
        raise UserError(f"{path} is no result of calc: it has no metrics")
    basis = {field: _part(path, data, where, kinds) for field, (where, kinds) in BASIS.items()}
    size = basis["image size"]
    if not (len(size) == 2 and all(type(side) is int for side in size)):
        raise _unexpected(path, BASIS["image size"][0], size)
    numbers = {key: _number(path, data, key) for key in metrics}
    return Known(path, numbers, basis, _get(path, data, ("samples", "pixels_sha256"), TEXT), _identity(path, data))


def _number(path: Path, data: dict, key: str) -> Number:
    where = ("metrics", key)
    if not _is_text(key):
        raise _unexpected(path, ("metrics",), key)
    name, label = (_get(path, data, (*where, field), TEXT) for field in ("name", "label"))
    if name not in LABELS:
        raise _unexpected(path, (*where, "name"), name)
    value = _get(path, data, (*where, "value"), (int, float))
    error, low, high = (_get(path, data, (*where, field), (int, float, type(None))) for field in ("error", "low", "high"))
    if error is not None and error < 0:
        raise _unexpected(path, (*where, "error"), error)
    known = None not in (error, low, high)
    return Number(name, label, Estimate(value, error, low, high) if known else Estimate(value))


def _identity(path: Path, data: dict) -> dict[str, Value] | None:
    if data.get("run") is None:
        return None
    identity = _get(path, data, ("run", "identity"), (dict,))
    for field, value in identity.items():
        parts = value if isinstance(value, list) else [value]
        plain = all(isinstance(part, str | int | float | bool | None) for part in parts)
        if not (plain and _is_text(field) and _is_text(json.dumps(value))):
            raise _unexpected(path, ("run", "identity", field), value)
    return identity


def _part(path: Path, data: dict, where: tuple[str, ...], kinds: tuple[type, ...]) -> Value:
    """The same, or None for a part that a result may lack."""
    missing = where[0] in OPTIONAL and data.get(where[0]) is None
    return None if missing else _get(path, data, where, kinds)


def _get(path: Path, data: dict, where: tuple[str, ...], kinds: tuple[type, ...]) -> Value | dict:
    """What stands there; UserError if that is nothing, or of another kind. A number is finite, a text short."""
    value: object = data
    for field in where:
        if not isinstance(value, dict) or field not in value:
            raise UserError(f"{path} is no result of calc: it has no {printable('.'.join(where))[:LONGEST]}")
        value = value[field]
    fits = isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
    if fits and isinstance(value, int | float):
        fits = abs(value) < 1e300  # which NaN is not either
    if not fits or (isinstance(value, str) and not _is_text(value)):
        raise _unexpected(path, where, value)
    return value


def _is_text(value: str) -> bool:
    """Whether it is short, and no half characters are in it."""
    try:
        return 0 < len(value) <= LONGEST and bool(value.encode())
    except UnicodeEncodeError:
        return False


def _unexpected(path: Path, where: tuple[str, ...], value: object) -> UserError:
    shown = f"a {type(value).__name__}" if isinstance(value, dict | list) else ascii(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
    return UserError(f"{path} is no result of calc: its {printable('.'.join(where))[:LONGEST]} is {shown}")
