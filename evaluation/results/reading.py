"""Results of `calc` found and read back, which may be anybody's: what is not as expected is one sentence, never believed."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from fiducial import UserError, no_file, printable, read_json
from fiducial.evaluation.metrics import METRICS, OPTIONS
from fiducial.evaluation.reconstruction import reading as reconstructions
from fiducial.evaluation.reconstruction.result import FORMAT as RECONSTRUCTION_FORMAT
from fiducial.evaluation.reconstruction.result import Reconstruction
from fiducial.evaluation.results.form import Unexpected
from fiducial.evaluation.results.influences import ENDING
from fiducial.evaluation.results.parts import Influences, Number
from fiducial.evaluation.results.result import RESULT_FORMAT, Result

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
    **{name: (("settings", name), COUNT) for name in OPTIONS},
}
OPTIONAL = ("reference", "training")  # parts that a result may lack


@dataclass(frozen=True)
class Known:
    """A result as far as a comparison needs it. `identity` is all that determines the run's images; None where unknown.
    `of_reconstruction` is whether `fiducial reconstruct` wrote it."""

    path: Path
    numbers: dict[str, Number]
    basis: dict[str, Value]
    pixels_sha256: str
    identity: dict[str, Value] | None
    influences: Influences | None = None
    of_reconstruction: bool = False


def find_result(run: Path) -> Path:
    """The result of a run: a JSON file itself, or the one beside RUN.npz, RUN.html, the file of its influences or the folder RUN.

    One that was scored without images, as RUN-online, goes by the name of RUN too.

    Raises:
        UserError: if there is none.
    """
    if run.suffix == ".json" and not run.is_dir():
        found = run
    else:
        whole = run if run.name else run.resolve()
        found = whole.with_name(run_name(whole) + ".json")
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


def run_name(path: Path) -> str:
    """The name of the run that a path beside it, or its folder, is of."""
    return path.name.removesuffix(".npz").removesuffix(".html").removesuffix(ENDING)


def read_result(path: Path) -> Known:
    """The result that `calc` or `reconstruct` wrote there.

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
    if made == RECONSTRUCTION_FORMAT:
        return _known_reconstruction(path, data)
    if not (isinstance(made, str) and made.startswith(FAMILY)):
        raise UserError(f"{path} is no result of calc: its format is not {RESULT_FORMAT}")
    if made != RESULT_FORMAT:
        raise UserError(f"{path} is of the format {made[:LONGEST]}, and {RESULT_FORMAT} is read here: evaluate the samples again")
    try:
        result = Result.parse(data)
    except Unexpected as error:
        raise _unexpected(path, error.where, error.value, error.missing) from error
    return known(path, result)


def _known_reconstruction(path: Path, data: dict) -> Known:
    """A result of `fiducial reconstruct`; raises UserError if it is not as that writes it."""
    try:
        result = Reconstruction.parse(data)
        basis, identity = reconstructions.basis_of(result), reconstructions.identity_of(result)
        pixels = reconstructions.pixels_of(result)
        texts = [text for text in (pixels, *basis.values(), *identity.values()) if isinstance(text, str)]
        if odd := next((text for text in texts if not _is_text(text)), None):
            raise Unexpected(("codec",), odd)
        size = basis["image size"]
        if not (len(size) == 2 and all(type(side) is int for side in size)):
            raise Unexpected(("originals", "image_size"), size)
    except Unexpected as error:
        raise _unexpected(path, error.where, error.value, error.missing) from error
    if not result.metrics:
        raise UserError(f"{path} has no metrics")
    numbers = {key: _number(path, key, one) for key, one in result.metrics.items()}
    return Known(path, numbers, basis, pixels, identity, result.influences, of_reconstruction=True)


def known(path: Path, result: Result) -> Known:
    """A result as far as a comparison needs it, which was read from `path`.

    Raises:
        UserError: if that is not as `calc` writes it.
    """
    if not result.metrics:
        raise UserError(f"{path} is no result of calc: it has no metrics")
    basis = {field: _part(path, result, where, kinds) for field, (where, kinds) in BASIS.items()}
    size = basis["image size"]
    if not (len(size) == 2 and all(type(side) is int for side in size)):
        raise _unexpected(path, BASIS["image size"][0], size)
    pixels = _part(path, result, ("samples", "pixels_sha256"), TEXT)
    numbers = {key: _number(path, key, one) for key, one in result.metrics.items()}
    return Known(path, numbers, basis, pixels, _identity(path, result), result.influences)


def _number(path: Path, key: str, number: Number) -> Number:
    """One that is of a metric, and whose interval is whole or not there."""
    where = ("metrics", key)
    if not _is_text(key):
        raise _unexpected(path, ("metrics",), key)
    for field in ("name", "label"):
        if not _is_text(getattr(number, field)) or (field == "name" and number.name not in METRICS):
            raise _unexpected(path, (*where, field), getattr(number, field))
    if number.error is not None and number.error < 0:
        raise _unexpected(path, (*where, "error"), number.error)
    return number if None not in (number.error, number.low, number.high) else replace(number, error=None, low=None, high=None)


def _identity(path: Path, result: Result) -> dict[str, Value] | None:
    if result.run is None:
        return None
    for field, value in result.run.identity.items():
        parts = value if isinstance(value, list) else [value]
        plain = all(isinstance(part, str | int | float | bool | None) for part in parts)
        if not (plain and _is_text(field) and _is_text(json.dumps(value))):
            raise _unexpected(path, ("run", "identity", field), value)
    return result.run.identity


def _part(path: Path, result: Result, where: tuple[str, ...], kinds: tuple[type, ...]) -> Value:
    """The value there, None for a part that a result may lack; UserError if there is none, or one of another kind."""
    part, field = getattr(result, where[0]), where[1]
    if part is None and where[0] in OPTIONAL:
        return None
    if field not in part:
        raise _unexpected(path, where, None, missing=True)
    value = part[field]
    fits = isinstance(value, kinds) and not isinstance(value, bool)
    if not fits or (isinstance(value, str) and not _is_text(value)):
        raise _unexpected(path, where, value)
    return value


def _is_text(value: str) -> bool:
    """Whether it is short, and no half characters are in it."""
    try:
        return 0 < len(value) <= LONGEST and bool(value.encode())
    except UnicodeEncodeError:
        return False


def _unexpected(path: Path, where: tuple[str, ...], value: object, missing: bool = False) -> UserError:
    place = printable(".".join(where))[:LONGEST]
    if missing:
        return UserError(f"{path} is no result of calc: it has no {place}")
    shown = f"a {type(value).__name__}" if isinstance(value, dict | list) else ascii(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
    return UserError(f"{path} is no result of calc: its {place} is {shown}")
