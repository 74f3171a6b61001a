"""Results side by side: runs of several seeds as one, differences with their intervals, and what those decide."""

import itertools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import numpy as np

from fiducial import UserError, about, printable
from fiducial.evaluation.metrics import METRICS
from fiducial.evaluation.metrics.intervals import Estimate, estimate
from fiducial.evaluation.reconstruction import reading as reconstructions
from fiducial.evaluation.results.reading import Known, Value
from fiducial.evaluation.results.wording import between, number

FORMAT = "fiducial-comparison-1"
SEED = "global_seed"  # in a run's identity
RETRAINING = 0.013  # arXiv 2606.20536: smaller relative gaps of FID come from training the same model anew
DIFFERING = 3  # fields that a name gives at most
LONGEST_NAME = 60  # characters
PAIRED = "paired, image by image"
OF_TRAINING = ("training images SHA-256",)  # without AuthPct a result lacks it


@dataclass(frozen=True)
class Cell:
    """One metric of a run or of several as one. `seen` is the standard deviation of their values, `promised` by their errors."""

    name: str
    label: str
    value: float
    error: float | None
    low: float | None
    high: float | None
    seen: float | None = None
    promised: float | None = None

    @property
    def unit(self) -> str:
        return METRICS[self.name].unit

    def written(self, value: float | None) -> str:
        """A value of this metric, to as many digits as the interval means; empty where there is none."""
        return "" if value is None else number(value, self.unit, self.low, self.high)

    def shown(self) -> tuple[str, str]:
        """The value and its interval as they are printed."""
        return self.written(self.value), between(self.low, self.high, self.unit)


@dataclass(frozen=True)
class Row:
    """A run, or the runs that differ by their seeds alone. `cells` by the metrics' keys in a result.

    `varies` are the settings that differ between the rows, by their names; empty where a run's are not known.
    """

    name: str
    files: tuple[str, ...]
    seeds: tuple[Value, ...]
    cells: dict[str, Cell]
    varies: dict[str, Value] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its name, with the seeds of several runs; more than six are counted."""
        if len(self.files) == 1:
            return self.name
        seeds = f"seeds {', '.join(map(str, self.seeds))}" if len(self.seeds) <= 6 else f"{len(self.seeds)} seeds"
        return f"{self.name} ({seeds})"


@dataclass(frozen=True)
class Difference:
    """`row` less `against` in one metric; `relative` is over the latter's value.

    `verdict`: decided if the 95 % interval excludes 0, else undecided; without interval if there is none.
    """

    row: str
    against: str
    key: str
    label: str
    difference: float
    error: float | None
    low: float | None
    high: float | None
    relative: float | None
    verdict: str
    note: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Comparison:
    """`basis` is what all of them share, by name; `left_out` says what was named and not taken, and why."""

    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    basis: dict[str, Value]
    created: str
    left_out: tuple[str, ...] = ()
    fiducial: dict[str, str | None] = field(default_factory=about)

    @property
    def labels(self) -> dict[str, str]:
        """The metrics' labels by key, in the order that they came in."""
        return {key: cell.label for row in self.rows for key, cell in row.cells.items()}

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"


def compare(results: list[Known], left_out: Iterable[str] = ()) -> Comparison:
    """Compare all with the first. `left_out` are sentences for whoever reads it.

    Raises:
        UserError: in one sentence, if they are fewer than two, cannot be compared, or are the same.
    """
    if len(results) < 2:
        raise UserError(f"{results[0].path}: compare needs at least two results")
    _check(results)
    pools: dict[str, list[Known]] = {}
    for position, result in enumerate(results):
        pools.setdefault(_but_seed(result) or str(position), []).append(result)
    varying = _varying([pool[0].identity for pool in pools.values()])
    rows = tuple(
        Row(name, tuple(printable(str(one.path)) for one in pool), _seeds(pool), _pooled(pool), varies)
        for name, pool, varies in zip(_names(list(pools.values())), pools.values(), varying, strict=True)
    )
    if nothing := [row for row in rows if not row.cells]:
        raise UserError(f"{nothing[0].files[0]} and {nothing[0].files[1]}, which differ by their seeds, have no metric in common")
    of_first, *of_others = pools.values()
    differences = tuple(
        difference(row, rows[0], key, errors.get(key))
        for row, errors in zip(rows[1:], (_paired(pool, of_first) for pool in of_others), strict=True)
        for key in rows[0].cells
        if key in row.cells
    )
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Comparison(rows, differences, _shared(results), created, tuple(left_out))


def _paired(pool: list[Known], others: list[Known]) -> dict[str, float]:
    """Standard errors of differences, by the numbers' keys, of two reconstructions of the same originals whose moves are at hand;
    nothing of others."""
    (one, *more), (other, *rest) = pool, others
    if more or rest or not (one.reconstruction and other.reconstruction):
        return {}
    try:
        return reconstructions.paired_errors((one.path, one.reconstruction), (other.path, other.reconstruction))
    except ValueError:
        return {}


def difference(row: Row, against: Row, key: str, paired: float | None = None) -> Difference:
    """Of one metric that both have.

    Args:
        paired: the standard error as of results that belong together image by image. Without, they are taken to be independent,
            so that their errors add in quadrature.
    """
    ours, theirs = row.cells[key], against.cells[key]
    gap = ours.value - theirs.value
    relative = gap / abs(theirs.value) if theirs.value else None
    error, verdict, note = None, "without interval", ""
    unit = "points" if ours.unit == "%" else ours.unit
    found = Estimate(gap)
    if ours.error is not None and theirs.error is not None:
        error = float(np.hypot(ours.error, theirs.error)) if paired is None else paired
        found = estimate(gap, error)
        note = "" if paired is None else PAIRED
    if found.low is not None:
        verdict = "decided" if found.low > 0 or found.high < 0 else "undecided"
    if verdict == "decided" and METRICS[ours.name].of_distributions and relative is not None and abs(relative) < RETRAINING:
        note = f"a gap under {100 * RETRAINING:.1f} %, which training the same model anew moves FID by as well (arXiv 2606.20536)"
    return Difference(row.name, against.name, key, ours.label, gap, error, found.low, found.high, relative, verdict, note, unit)


def _pooled(pool: list[Known]) -> dict[str, Cell]:
    """The mean of independent runs in each metric that all of them have, its error by those of each."""
    cells = {}
    for key, first in pool[0].numbers.items():
        if any(key not in one.numbers for one in pool):
            continue
        found = [one.numbers[key] for one in pool]
        if len(pool) == 1:
            one = found[0]
            cells[key] = Cell(first.name, first.label, one.value, one.error, one.low, one.high)
            continue
        values, errors = [one.value for one in found], [one.error for one in found]
        known = None not in errors
        squares = float(np.square(errors).sum()) if known else None
        error = squares**0.5 / len(pool) if known else None
        mean = estimate(float(np.mean(values)), error, *METRICS[first.name].bounds)
        seen, promised = float(np.std(values, ddof=1)), (squares / len(pool)) ** 0.5 if known else None
        cells[key] = Cell(first.name, first.label, mean.value, mean.error, mean.low, mean.high, seen, promised)
    return cells


def _shared(results: list[Known]) -> dict[str, Value]:
    """The facts that they share; of training images those of the results that have some."""
    basis = dict(results[0].basis)
    for other in results[1:]:
        basis.update({field: value for field, value in other.basis.items() if basis[field] is None})
    return basis


def _check(results: list[Known]) -> None:
    """Raise UserError for results that cannot stand side by side, or are of one run."""
    for one, other in itertools.combinations(results, 2):
        if why := unfit(one, other):
            raise UserError(why)


def unfit(one: Known, other: Known) -> str | None:
    """Why two results cannot stand side by side, in a sentence; None if they can."""
    if bool(one.reconstruction) != bool(other.reconstruction):
        return f"{one.path} and {other.path} cannot be compared: one is of reconstructions, and the other of samples"
    may_lack = reconstructions.OPTIONAL if one.reconstruction else OF_TRAINING
    for name, ours in one.basis.items():
        theirs = other.basis[name]
        unknown = name in may_lack and None in (ours, theirs)  # then only one of them has the metrics that it belongs to
        if ours != theirs and not unknown:
            return (
                f"{one.path} and {other.path} cannot be compared: {name} is {shown_value(name, ours)} in the one and "
                f"{shown_value(name, theirs)} in the other"
            )
    if one.pixels_sha256 == other.pixels_sha256:
        return f"{one.path} and {other.path} are results of the same images: name each run once"
    if one.identity and one.identity == other.identity:
        return f"{one.path} and {other.path} are of the same configuration and seed: name each run once"
    return None


def shown_value(field: str, value: Value) -> str:
    """A fact as a sentence or a name has it; hashes are cut short."""
    if value is None:
        return "none"
    if field == "image size":
        return f"{value[1]} x {value[0]}"
    if field.lower().replace("-", "").endswith("sha256"):
        return str(value)[:8]
    return printable(value) if isinstance(value, str) else json.dumps(value)


def _but_seed(result: Known) -> str | None:
    """A key that is equal for runs that differ by their seeds alone; None if it has no configuration with a seed."""
    if not result.identity or SEED not in result.identity:
        return None
    return json.dumps({field: value for field, value in result.identity.items() if field != SEED}, sort_keys=True)


def _seeds(pool: list[Known]) -> tuple[Value, ...]:
    return tuple(one.identity[SEED] for one in pool if one.identity and SEED in one.identity)


def _varying(identities: list[dict[str, Value] | None]) -> list[dict[str, Value]]:
    """The settings of each that differ between those that are known."""
    known = [identity for identity in identities if identity]
    fields = dict.fromkeys(field for identity in known for field in identity if field != SEED)
    differing = [field for field in fields if len({json.dumps(identity.get(field)) for identity in known}) > 1]
    return [{field: identity.get(field) for field in differing} if identity else {} for identity in identities]


def _names(pools: list[list[Known]]) -> list[str]:
    """Names by what differs between their configurations, or if that is nothing, too much, or not known, their files' names."""
    if len(pools) == 1:
        return ["all runs"]
    identities = [pool[0].identity for pool in pools]
    known = [identity for identity in identities if identity]
    differing = list(next(filter(None, _varying(identities)), {}))
    if len(known) > 1 and not differing:  # runs that could be taken together if they had seeds
        differing = [SEED]
    names = [
        ", ".join(f"{field} {shown_value(field, identity.get(field))}" for field in differing) if identity else ""
        for identity in identities
    ]
    if len(differing) > DIFFERING or len(set(names)) < len(names) or max(map(len, names)) > LONGEST_NAME:
        names = [""] * len(pools)
    return _distinct(name or _file_name(pool) for name, pool in zip(names, pools, strict=True))


def _file_name(pool: list[Known]) -> str:
    more = f" and {len(pool) - 1} more" if len(pool) > 1 else ""
    return printable(pool[0].path.stem) + more


def _distinct(names: Iterable[str]) -> list[str]:
    """The same; those that come again are numbered."""
    found: list[str] = []
    for name in names:
        others = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
        found.append(next(other for other in others if other not in found))
    return found
