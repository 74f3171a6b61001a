"""Verdicts on a comparison: what is better, which run is the best, what many comparisons cost, and what can be an axis."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fiducial.evaluation.metrics import METRICS
from fiducial.evaluation.results.compare import Comparison, Difference, Row
from fiducial.evaluation.results.wording import between, number

LEVEL = 0.05
FIRST_AXIS = "cfg_scale"
DECIDED = "decided"


@dataclass(frozen=True)
class Axis:
    """A numeric setting that runs differ by: its name, and for each series of runs their place on it, ascending."""

    name: str
    series: dict[str, list[tuple[float, Row]]]


def judged(one: Difference, name: str) -> str:
    """The verdict on a difference in the metric `name`: better or worse where it is decided, else why it is not."""
    if one.verdict != DECIDED:
        return one.verdict
    return "better" if (one.difference < 0) == METRICS[name].less_is_better else "worse"


def verdicts(comparison: Comparison) -> dict[tuple[str, str], str]:
    """The verdict on each difference, by its run's name and the metric's key."""
    names = {key: cell.name for row in comparison.rows for key, cell in row.cells.items()}
    return {(one.row, one.key): judged(one, names[one.key]) for one in comparison.differences}


def best(comparison: Comparison, key: str) -> Row:
    """The run with the best value of a metric; of equal ones the first."""
    rows = [row for row in comparison.rows if key in row.cells]
    sign = 1 if METRICS[rows[0].cells[key].name].less_is_better else -1
    return min(rows, key=lambda row: sign * row.cells[key].value)


def answer(comparison: Comparison, key: str) -> str:
    """A sentence on one metric: which run is best, and whether it is told apart from the base, or the others from it."""
    found, base = best(comparison, key), comparison.rows[0]
    cell = found.cells[key]
    interval = between(cell.low, cell.high, cell.unit)
    which = "Lowest" if METRICS[cell.name].less_is_better else "Highest"
    value = number(cell.value, cell.unit, cell.low, cell.high) + (f" ({interval})" if interval else "")
    said, known = f"{which} {cell.label}: {found.title}, {value}", verdicts(comparison)
    if len(comparison.rows) == 1:
        return f"{said}."
    if found is not base:
        verdict = known.get((found.name, key), "not compared")
        return f"{said}: {verdict if verdict != 'better' else 'better (decided)'} against the base, {base.title}."
    others = [row.title for row in comparison.rows[1:] if key in row.cells and known[row.name, key] != "worse"]
    told = f"not told apart from {', '.join(others)}" if others else "each other run is worse (decided)"
    return f"{said}, the base: {told}."


def after_holm(comparison: Comparison) -> set[tuple[str, str]]:
    """The differences, by run and key, that stay decided with 5 % for all of them together, by Holm's step-down procedure."""
    found = []
    for one in comparison.differences:
        if one.error and one.low is not None:
            found.append((math.erfc(abs(one.difference) / one.error / math.sqrt(2)), (one.row, one.key)))
    kept = set()
    for place, (chance, which) in enumerate(sorted(found)):
        if chance > LEVEL / (len(found) - place):
            break
        kept.add(which)
    return kept


def on_many(comparison: Comparison) -> str:
    """A word on how many comparisons are made; empty where it is one."""
    count = sum(one.low is not None for one in comparison.differences)
    if count < 2:
        return ""
    decided, kept = sum(one.verdict == DECIDED for one in comparison.differences), len(after_holm(comparison))
    return (
        f"{count} differences are judged, each at 95 %: if no two runs differed, some {LEVEL * count:.1f} of them would be "
        f"decided by chance. {decided} are decided; {kept} of those still are at 5 % for all of them together (Holm)."
    )


def axis(comparison: Comparison) -> Axis | None:
    """The numeric setting to plot against: guidance's scale where it varies, else the only one that does; None without any."""
    varying = {name for row in comparison.rows for name in row.varies}
    rows = [row for row in comparison.rows if row.varies]
    numeric = {name for name in varying if all(_number(row.varies.get(name)) is not None for row in rows)}
    name = FIRST_AXIS if FIRST_AXIS in numeric else next(iter(numeric), None)
    if name is None or len(rows) < len(comparison.rows) or (name != FIRST_AXIS and len(varying) > 1):
        return None
    series: dict[str, list[tuple[float, Row]]] = {}
    for row in rows:
        series.setdefault(_others(row.varies, name), []).append((_number(row.varies[name]), row))
    if max(map(len, series.values())) < 2:
        return None
    return Axis(name, {called: sorted(points, key=lambda point: point[0]) for called, points in series.items()})


def _others(varies: Mapping[str, object], but: str) -> str:
    return ", ".join(f"{name} {value}" for name, value in varies.items() if name != but)


def _number(value: object) -> float | None:
    """A setting as a number, also one that is written as text, such as steps."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None
