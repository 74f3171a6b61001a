"""Measured beside published: whether the two differ by more than their intervals, and in what they were made differently."""

import math
from dataclasses import dataclass
from pathlib import Path

from fiducial.evaluation.data.published import PUBLISHED
from fiducial.evaluation.data.runs import Row, Run
from fiducial.evaluation.features import DEFAULT
from fiducial.evaluation.metrics.intervals import NORMAL
from fiducial.evaluation.results.parts import Number
from fiducial.evaluation.results.wording import number, signed

WITHIN, BEYOND, OPEN = "within both intervals", "beyond both intervals", "not compared"
ROUNDINGS = {"dit": "half up", "repa": "truncated", "half-even": "half to even", "none": "none"}
SHOWN = 40  # characters of a value


@dataclass(frozen=True)
class Line:
    """One metric: `allowed` is by how much two such draws may differ, at 95 %, the rounding of the published number added."""

    key: str
    label: str
    measured: float
    published: str
    difference: float
    allowed: float | None
    verdict: str
    from_memory: bool


@dataclass(frozen=True)
class Against:
    """A result beside the row that its run was drawn after. `deviations` are sentences on what was made otherwise."""

    name: str
    source: str
    lines: tuple[Line, ...]
    deviations: tuple[str, ...]
    notes: tuple[str, ...]


def against(
    run: Run | None, metrics: dict[str, Number], reference: dict | None, samples: dict, extractor: str, settings: dict
) -> Against | None:
    """Set the numbers of a result beside the row of its run's preset; None where there is none.

    Args:
        reference, samples, settings: as the result records them.
        extractor: its name; over another's features than Inception's nothing is compared.
    """
    if run is None or (row := run.published) is None:
        return None
    comparable = extractor == DEFAULT
    lines = tuple(_line(key, one, row) for key, one in metrics.items() if comparable and one.name in row.numbers)
    deviations = [
        *_of_labels(row, run, reference),
        *_of_making(row, run, samples, settings, extractor),
        *map(_of_option, row.differing),
    ]
    return Against(row.name, row.source, lines, tuple(deviations), tuple(row.notes))


def _line(key: str, one: Number, row: Row) -> Line:
    """Both are draws: their errors add in quadrature, the published one's by its own number of images."""
    said = row.numbers[one.name]
    gap, allowed, verdict = one.value - float(said), None, OPEN
    if one.error is not None and one.n == row.count:
        allowed = NORMAL * math.sqrt(2) * one.error + rounding_of(said)
        verdict = WITHIN if abs(gap) <= allowed else BEYOND
    return Line(key, one.label, one.value, said, gap, allowed, verdict, one.name in row.from_memory)


def rounding_of(text: str) -> float:
    """Half of the last digit that a number is given to."""
    return 0.5 * 10.0 ** -len(text.partition(".")[2])


def _of_labels(row: Row, run: Run, reference: dict | None) -> list[str]:
    """Labels and reference, which go together in what people publish."""
    labels, named = str(run.identity.get("labels"))[:SHOWN], _named(reference)
    if labels == row.labels and named == row.reference:
        return []
    if labels == row.labels:
        return [f"this row is against {row.reference}; yours is against {named}"]
    if named == row.reference:
        return [f"this row has {row.labels} labels; yours are {labels}"]
    return [f"this row has {row.labels} labels against {row.reference}; yours are {labels} against {named}"]


def _named(reference: dict | None) -> str:
    """The reference of a result by the name under which it is published, or by its file's."""
    if reference is None:
        return "no reference"
    found = next((name for name, one in PUBLISHED.items() if one.url == reference.get("url")), None)
    path = Path(str(reference.get("path")))
    return found or next((name for name in PUBLISHED if name == path.stem), path.name)


def _of_making(row: Row, run: Run, samples: dict, settings: dict, extractor: str) -> list[str]:
    found, rounding, count = [], run.identity.get("rounding"), samples["count"]
    if count != row.count:
        found.append(f"this row is of {row.count:,} images; yours are {count:,}, and the numbers depend on that")
    if rounding != row.rounding:
        ours, theirs = (ROUNDINGS.get(str(one), str(one)) for one in (rounding, row.rounding))
        found.append(f"this row's pixels are rounded by the rule: {theirs}; yours: {ours}")
    if extractor != DEFAULT:
        found.append(f"this row is over Inception's features; yours are {extractor}'s, so no number is compared")
    elif settings.get("protocol") != row.evaluator:
        found.append(f"this row was evaluated by {row.evaluator}; yours by --protocol {settings.get('protocol')}")
    return found


def _of_option(differing: list) -> str:
    """An option that the row's preset has and the run has otherwise: cfg, sampler, steps and the like."""
    name, theirs, ours = differing
    said = f"--{str(name).replace('_', '-')}"
    has = f"no {said}" if theirs is None else f"{said} {_shown(theirs)}"
    yours = f"no {said}" if ours is None else _shown(ours) if theirs is not None else f"{said} {_shown(ours)}"
    return f"this row has {has}; yours has {yours}"


def _shown(value: object) -> str:
    return (",".join(map(str, value)) if isinstance(value, list) else str(value))[:SHOWN]


def in_words(line: Line) -> tuple[str, str, str, str]:
    """Measured, published, difference and verdict as they are printed."""
    half = line.allowed or 0.0
    measured = number(line.measured, "", line.measured - half, line.measured + half)
    allowed = "" if line.allowed is None else f" (two draws differ by up to {number(half, '', -half, half)})"
    said = f"{line.published}{', from memory' if line.from_memory else ''}"
    return measured, said, f"{signed(line.difference, '', -half, half)}{allowed}", line.verdict
