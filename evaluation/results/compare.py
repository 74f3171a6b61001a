"""Results side by side: runs of several seeds as one, differences with their intervals, and what those decide."""

import itertools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import numpy as np

from fiducial import UserError, about, printable
from fiducial.evaluation.metrics import METRICS
from fiducial.evaluation.metrics.intervals import NORMAL, estimate
from fiducial.evaluation.reconstruction import reading as reconstructions
from fiducial.evaluation.results.pairing import SEED, Pairs
from fiducial.evaluation.results.reading import Known, Value
from fiducial.evaluation.results.training import CHECKPOINT, Axes, axes_of, difference_of_trainings
from fiducial.evaluation.results.wording import between, number

FORMAT = "fiducial-comparison-1"
GROUPS = {"checkpoint": CHECKPOINT}  # what results can be grouped by, and the field of a run's identity
RETRAINING = 0.013  # arXiv 2606.20536: smaller relative gaps of FID come from training the same model anew
DIFFERING = 3  # fields that a name gives at most
LONGEST_NAME = 60  # characters
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

    `varies` are the settings that differ between the rows, by their names; empty where a run's are not known. Grouped by
    checkpoint, the runs that differ by that and their seeds alone: `checkpoints` of which `axes`, by the same keys, say how the
    numbers vary from one to the next, and from seed to seed.
    """

    name: str
    files: tuple[str, ...]
    seeds: tuple[Value, ...]
    cells: dict[str, Cell]
    varies: dict[str, Value] = field(default_factory=dict)
    checkpoints: tuple[Value, ...] = ()
    axes: dict[str, Axes] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its name, with the seeds of several runs; more than six are counted."""
        if self.checkpoints:
            some = f"{len(self.checkpoints)} checkpoint{'s' if len(self.checkpoints) > 1 else ''}"
            return f"{self.name} ({some}, {len(self.files)} run{'s' if len(self.files) > 1 else ''})"
        if len(self.files) == 1:
            return self.name
        seeds = f"seeds {', '.join(map(str, self.seeds))}" if len(self.seeds) <= 6 else f"{len(self.seeds)} seeds"
        return f"{self.name} ({seeds})"


@dataclass(frozen=True)
class Difference:
    """`row` less `against` in one metric; `relative` is over the latter's value.

    `verdict`: decided if the 95 % interval excludes 0, else undecided; without interval if there is none. `paired` is whether the
    error is that of runs that are compared sample by sample; `apart` is the error as of independent runs.
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
    paired: bool = False
    apart: float | None = None

    @property
    def gain(self) -> str:
        """How much narrower its interval is for being paired, in words; empty where it is not."""
        if not (self.paired and self.apart and self.error is not None):
            return ""
        part = 1 - self.error / self.apart
        return f"{abs(100 * part):.0f} % {'narrower' if part >= 0 else 'wider'}"


@dataclass(frozen=True)
class How:
    """How the differences between a row and the first were found: `paired`, or not and `why`."""

    row: str
    against: str
    paired: bool
    why: str

    @property
    def sentence(self) -> str:
        if self.paired:
            return f"paired sample by sample, for {self.why}"
        return f"as of independent runs, for {self.why}"


@dataclass(frozen=True)
class Comparison:
    """`basis` is what all of them share, by name; `left_out` says what was named and not taken, and why; `how` has an entry for
    each row but the first."""

    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    basis: dict[str, Value]
    created: str
    left_out: tuple[str, ...] = ()
    how: tuple[How, ...] = ()
    fiducial: dict[str, str | None] = field(default_factory=about)

    @property
    def labels(self) -> dict[str, str]:
        """The metrics' labels by key, in the order that they came in."""
        return {key: cell.label for row in self.rows for key, cell in row.cells.items()}

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"


def compare(results: list[Known], left_out: Iterable[str] = (), group_by: str | None = None) -> Comparison:
    """Compare all with the first.

    Args:
        left_out: sentences for whoever reads it.
        group_by: one of `GROUPS`, by which runs may differ that count as one.

    Raises:
        UserError: in one sentence, if they are fewer than two, cannot be compared, or are the same.
    """
    if len(results) < 2:
        raise UserError(f"{results[0].path}: compare needs at least two results")
    _check(results)
    pools = _pools(results, group_by)
    if group_by and not any(len(set(_values(pool, CHECKPOINT))) > 1 for pool in pools):
        raise UserError(f"--group-by {group_by}: no two of these runs differ by their checkpoint and their seed alone")
    pairs, varying = Pairs(), _varying([pool[0].identity for pool in pools], group_by)
    rows = tuple(
        _row(name, pool, varies) if group_by is None else _grouped_row(name, pool, varies, pairs)
        for name, pool, varies in zip(_names(pools, varying), pools, varying, strict=True)
    )
    if nothing := [row for row in rows if not row.cells]:
        which = "seeds" if group_by is None else f"seeds and {group_by}s"
        raise UserError(
            f"{nothing[0].files[0]} and {nothing[0].files[1]}, which differ by their {which}, have no metric in common"
        )
    differences, how = [], []
    for row, pool in zip(rows[1:], pools[1:], strict=True):
        two = (row, rows[0], pool, pools[0])
        found, told = _between_pools(*two, pairs) if group_by is None else _between_groups(*two)
        differences += found
        how.append(told)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Comparison(rows, tuple(differences), _shared(results), created, tuple(left_out), tuple(how))


def _pools(results: list[Known], group_by: str | None) -> list[list[Known]]:
    """The runs that differ by their seeds alone, or by what they are grouped by as well."""
    without = (SEED,) if group_by is None else (SEED, GROUPS[group_by])
    pools: dict[str, list[Known]] = {}
    for position, result in enumerate(results):
        pools.setdefault(_but(result, without) or str(position), []).append(result)
    return list(pools.values())


def _row(name: str, pool: list[Known], varies: dict[str, Value]) -> Row:
    return Row(name, tuple(printable(str(one.path)) for one in pool), _values(pool, SEED), pooled(pool), varies)


def _grouped_row(name: str, pool: list[Known], varies: dict[str, Value], pairs: Pairs) -> Row:
    """Of several checkpoints: each counts as much as the others, and intervals are over them where they are two at least."""
    checkpoints = _by_checkpoint(pool)
    axes = axes_of(checkpoints, pairs)
    cells = {}
    for key, cell in pooled(pool).items():
        one = axes[key]
        bounds = (one.low, one.high) if one.low is not None else (one.sampling_low, one.sampling_high)
        cells[key] = Cell(cell.name, cell.label, one.mean, one.error if one.low is not None else one.sampling_error, *bounds)
    files, seeds = tuple(printable(str(one.path)) for one in pool), tuple(dict.fromkeys(_values(pool, SEED)))
    return Row(name, files, seeds, cells, varies, tuple(dict.fromkeys(_values(pool, CHECKPOINT))), axes)


def _by_checkpoint(pool: list[Known]) -> dict[str, list[Known]]:
    """The runs of each checkpoint, by its hash; those of which it is not known count as of one."""
    found: dict[str, list[Known]] = {}
    for one in pool:
        found.setdefault(json.dumps((one.identity or {}).get(CHECKPOINT)), []).append(one)
    return found


def _between_pools(row: Row, against: Row, pool: list[Known], others: list[Known], pairs: Pairs) -> tuple[list[Difference], How]:
    """All differences of a row from the first, paired where the runs belong together."""
    shared = "are of the same originals" if pool[0].of_reconstruction else "share seed, labels, noise and N"
    try:
        errors, why = pairs.errors(pool, others), f"both {shared}"
    except ValueError as error:
        errors, why = {}, printable(str(error))
    found = [difference(row, against, key, errors.get(key)) for key in against.cells if key in row.cells]
    return found, How(row.name, against.name, bool(errors), why)


def _between_groups(row: Row, against: Row, pool: list[Known], others: list[Known]) -> tuple[list[Difference], How]:
    """All differences of a row of several checkpoints from the first, over their trainings."""
    ours, theirs, found = _by_checkpoint(pool), _by_checkpoint(others), []
    same = ours.keys() == theirs.keys()
    for key in against.cells:
        if key in row.cells:
            error, quantile = difference_of_trainings(key, ours, theirs)
            found.append(_difference(row, against, key, error, quantile, same and error is not None))
    why = "both are of the same checkpoints" if same else "they are of different checkpoints"
    return found, How(row.name, against.name, same, why)


def difference(row: Row, against: Row, key: str, paired: float | None = None) -> Difference:
    """Of one metric that both have.

    Args:
        paired: the standard error as of runs that belong together sample by sample. Without, they are taken to be independent, so
            that their errors add in quadrature.
    """
    ours, theirs = row.cells[key], against.cells[key]
    apart = None if None in (ours.error, theirs.error) else float(np.hypot(ours.error, theirs.error))
    if apart is None or not paired:
        return _difference(row, against, key, apart)
    return _difference(row, against, key, paired, paired=True, apart=apart)


def _difference(
    row: Row,
    against: Row,
    key: str,
    error: float | None,
    quantile: float = NORMAL,
    paired: bool = False,
    apart: float | None = None,
) -> Difference:
    ours, theirs = row.cells[key], against.cells[key]
    gap = ours.value - theirs.value
    relative = gap / abs(theirs.value) if theirs.value else None
    verdict, note = "without interval", ""
    unit = "points" if ours.unit == "%" else ours.unit
    found = estimate(gap, error, quantile=quantile)
    if found.low is not None:
        verdict = "decided" if found.low > 0 or found.high < 0 else "undecided"
    if verdict == "decided" and METRICS[ours.name].of_distributions and relative is not None and abs(relative) < RETRAINING:
        note = f"a gap under {100 * RETRAINING:.1f} %, which training the same model anew moves FID by as well (arXiv 2606.20536)"
    interval = (found.low, found.high)
    return Difference(
        row.name, against.name, key, ours.label, gap, error, *interval, relative, verdict, note, unit, paired, apart
    )


def pooled(pool: list[Known]) -> dict[str, Cell]:
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
    if one.of_reconstruction != other.of_reconstruction:
        return f"{one.path} and {other.path} cannot be compared: one is of reconstructions, and the other of samples"
    may_lack = reconstructions.OPTIONAL if one.of_reconstruction else OF_TRAINING
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


def _but(result: Known, without: tuple[str, ...]) -> str | None:
    """A key that is equal for runs that differ by these fields alone; None if it has no configuration with a seed."""
    if not result.identity or SEED not in result.identity:
        return None
    return json.dumps({field: value for field, value in result.identity.items() if field not in without}, sort_keys=True)


def _values(pool: list[Known], field: str) -> tuple[Value, ...]:
    """Of a field of the runs' identities, where they have it."""
    return tuple(one.identity[field] for one in pool if one.identity and field in one.identity)


def _varying(identities: list[dict[str, Value] | None], group_by: str | None) -> list[dict[str, Value]]:
    """The settings of each that differ between those that are known."""
    known = [identity for identity in identities if identity]
    without = (SEED, GROUPS.get(group_by))
    fields = dict.fromkeys(field for identity in known for field in identity if field not in without)
    differing = [field for field in fields if len({json.dumps(identity.get(field)) for identity in known}) > 1]
    return [{field: identity.get(field) for field in differing} if identity else {} for identity in identities]


def _names(pools: list[list[Known]], varying: list[dict[str, Value]]) -> list[str]:
    """Names by what differs between their configurations, or if that is nothing, too much, or not known, their files' names."""
    if len(pools) == 1:
        return ["all runs"]
    identities = [pool[0].identity for pool in pools]
    known = [identity for identity in identities if identity]
    differing = list(next(filter(None, varying), {}))
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
