"""Results and comparisons as tables for a terminal."""

import itertools
import shutil
from collections.abc import Collection, Iterable, Mapping

from fiducial import printable
from fiducial.evaluation.report.delivery import warnings_left
from fiducial.evaluation.results.compare import Comparison, Difference, How, Row
from fiducial.evaluation.results.judging import DECIDED, answer, on_many, verdicts
from fiducial.evaluation.results.published import Against, in_words
from fiducial.evaluation.results.result import Result
from fiducial.evaluation.results.summary import sentence
from fiducial.evaluation.results.wording import between, counted, signed

WIDTH = 130  # of the table where nothing says how wide the terminal is


def result_table(result: Result, said: Collection[str] = ()) -> str:
    """The numbers; what is missing and warnings below, but for those that were `said` there before."""
    rows = [("metric", "value", "95 % interval", "N", "reference")]
    rows += [
        (m.label, m.shown(), between(m.low, m.high, m.unit), f"{m.n:,}", counted(m.reference_n)) for m in result.metrics.values()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [f"{row[0]:<{widths[0]}}" + "".join(f"  {row[i]:>{widths[i]}}" for i in range(1, 5)) for row in rows]
    below = published_lines(result.published) if result.published else []
    notes = [f"left out: {why}" for why in result.left_out.values()] + warnings_left(result.warnings, said)
    return "\n".join(map(printable, [lines[0], "-" * len(lines[0]), *lines[1:], *below, *notes, sentence(result)]))


def published_lines(found: Against) -> list[str]:
    """Measured beside published, and what was made otherwise."""
    lines = [f"beside the published row {found.name} ({found.source}):"]
    rows = [in_words(one) for one in found.lines]
    wide = max((len(one.label) for one in found.lines), default=0)
    for one, (measured, published, difference, verdict) in zip(found.lines, rows, strict=True):
        lines.append(f"  {one.label:<{wide}}  {measured} beside {published}: {difference}, {verdict}")
    lines += ["  no number of it is compared"] if not rows else []
    return lines + [f"  differs: {text}" for text in found.deviations] + [f"  note: {text}" for text in found.notes]


def comparison_table(comparison: Comparison) -> str:
    """The answer, values with their intervals below, differences, the spread between seeds."""
    known, how = verdicts(comparison), {one.row: one for one in comparison.how}
    parts = ["\n".join(printable(answer(comparison, key)) for key in comparison.labels)]
    parts += _values_text(comparison, shutil.get_terminal_size((WIDTH, 24)).columns)
    parts += [
        _differences_text(found, known, how[name])
        for name, found in itertools.groupby(comparison.differences, lambda one: one.row)
    ]
    parts += [on_many(comparison)] if on_many(comparison) else []
    parts += [_axes_text(row) if row.axes else _spread_text(row) for row in comparison.rows if len(row.files) > 1]
    parts += ["\n".join(f"left out: {why}" for why in comparison.left_out)] if comparison.left_out else []
    return "\n\n".join(parts)


def _values_text(comparison: Comparison, width: int) -> list[str]:
    """One table, a row a run, in as many parts below each other as the terminal's width takes."""
    names = [row.title for row in comparison.rows]
    first = max(map(len, names))
    parts, columns = [], []
    for key, label in comparison.labels.items():
        cells = [row.cells.get(key) for row in comparison.rows]
        texts = [c.shown() if c else ("", "") for c in cells]
        wide = max(len(label), *(len(text) for pair in texts for text in pair))
        if columns and first + sum(2 + other for other, _, _ in columns) + 2 + wide > width:
            parts, columns = [*parts, columns], []
        columns.append((wide, label, texts))
    return [_part_text(names, first, part) for part in [*parts, columns]]


def _part_text(names: list[str], first: int, columns: list[tuple[int, str, list[tuple[str, str]]]]) -> str:
    lines = [" " * first + "".join(f"  {label:>{wide}}" for wide, label, _ in columns)]
    lines.append("-" * len(lines[0]))
    for row, name in enumerate(names):
        for line in (0, 1):
            start = f"{'' if line else name:<{first}}"
            lines.append((start + "".join(f"  {texts[row][line]:>{wide}}" for wide, _, texts in columns)).rstrip())
    return "\n".join(map(printable, lines))


def _spread_text(row: Row) -> str:
    lines = [f"{row.title}: standard deviation between the seeds, and as their intervals promise it"]
    wide = max(len(cell.label) for cell in row.cells.values())
    for cell in row.cells.values():
        lines.append(f"  {cell.label:<{wide}}  {cell.written(cell.seen):>8}  {cell.written(cell.promised):>8}".rstrip())
    return "\n".join(map(printable, lines))


def axes_rows(row: Row) -> list[tuple[str, ...]]:
    """Of each number of a row of several checkpoints: label, mean, interval and spread over draws, the same over trainings."""
    found = []
    for key, axes in row.axes.items():
        cell = row.cells[key]
        over_draws = (between(axes.sampling_low, axes.sampling_high, cell.unit), cell.written(axes.sampling_spread))
        over_trainings = (between(axes.low, axes.high, cell.unit), cell.written(axes.spread))
        found.append((cell.label, cell.written(axes.mean), *over_draws, *over_trainings))
    return found


AXES = ("metric", "mean", "over draws", "spread", "over trainings", "spread")


def _axes_text(row: Row) -> str:
    rows = [AXES, *axes_rows(row)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{row.title}: 95 % intervals of the mean over draws from these checkpoints, and over trainings; standard deviations"
    ]
    for label, *texts in rows:
        cells = "".join(f"  {text:>{wide}}" for text, wide in zip(texts, widths[1:], strict=True))
        lines.append(f"  {label:<{widths[0]}}{cells}".rstrip())
    return "\n".join(map(printable, lines))


def _differences_text(found: Iterable[Difference], known: Mapping[tuple[str, str], str], how: How) -> str:
    """Differences from the base; a decided one says whether it is for the better."""
    found = list(found)
    said = [known[one.row, one.key] for one in found]
    said = [f"{one.verdict}: {word}" if one.verdict == DECIDED else word for one, word in zip(found, said, strict=True)]
    rows = [
        (d.label, signed(d.difference, d.unit, d.low, d.high), between(d.low, d.high, d.unit), word)
        for d, word in zip(found, said, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{found[0].row} less {found[0].against}: difference, 95 % interval", f"  {how.sentence}"]
    for (label, gap, interval, verdict), one in zip(rows, found, strict=True):
        note = f": {one.note}" if one.note else ""
        gain = f" ({one.gain})" if one.gain else ""
        lines.append(f"  {label:<{widths[0]}}  {gap:>{widths[1]}}  {interval:>{widths[2]}}  {verdict}{gain}{note}")
    return "\n".join(map(printable, lines))
