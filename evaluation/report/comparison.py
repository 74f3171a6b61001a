"""The page of results side by side: the answer first, then numbers, plots, pictures, differences, and seeds."""

import html
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from fiducial.evaluation.metrics import METRICS
from fiducial.evaluation.report.document import (
    INTERVALS,
    commands_html,
    document,
    figure_html,
    folded_html,
    notes_html,
    table_html,
)
from fiducial.evaluation.report.gallery import image_html
from fiducial.evaluation.report.plots import MARKERS, Bar, Plot, dots_figure, lines_figure, svg
from fiducial.evaluation.report.tables import AXES, axes_rows
from fiducial.evaluation.results.compare import Comparison, Row
from fiducial.evaluation.results.judging import Axis, after_holm, answer, axis, best, on_many, verdicts
from fiducial.evaluation.results.wording import between, signed

VERDICTS = (
    "Better or worse: the 95 % interval of the difference excludes 0. Runs that share seed, labels and noise are compared sample "
    "by sample, and their intervals are narrower by what moves both alike; others are taken as independent, so that errors add "
    "in quadrature."
)
BEST = "Of each column the best is bold; the first run is the base, and --base RUN takes another."
HOLM = "also at 5 % for all together"
Pictures = Mapping[str, Mapping[int, np.ndarray]]  # by a row's name: small pictures (h, w, 3) by index


def comparison_page(comparison: Comparison, pictures: Pictures | None = None) -> str:
    """Results side by side. `pictures` are of the same indices of each run, where they are at hand."""
    plots = "".join(figure_html(svg(one.figure, name, one.title)) for name, one in plots_of(comparison).items())
    keys = list(comparison.labels)
    answers = "".join(f"<li>{html.escape(answer(comparison, key))}</li>" for key in keys[1:])
    many = on_many(comparison)
    body = [
        f'<ul class="remarks">{answers}</ul>' if answers else "",
        f'<p class="remarks">{html.escape(many)}</p>' if many else "",
        notes_html(f"Left out: {why}." for why in comparison.left_out),
        f"<h2>Numbers</h2>{_runs_html(comparison)}",
        f'<p class="remarks">{html.escape(f"{BEST} {INTERVALS}")}</p>',
        f'<h2>Plots</h2><div class="plots">{plots}</div>',
        _pictures_html(comparison, pictures or {}),
        _differences_html(comparison),
        *(_axes_html(row) if row.axes else _spread_html(row) for row in comparison.rows if len(row.files) > 1),
        _facts_html(comparison),
        commands_html({"compare": comparison.fiducial["command"]} if comparison.fiducial.get("command") else {}),
    ]
    title = answer(comparison, keys[0]).rstrip(".")
    name = f"{sum(len(row.files) for row in comparison.rows)} runs compared: {' · '.join(row.title for row in comparison.rows)}"
    return document(title, name, "\n".join(filter(None, body)), comparison.created, comparison.fiducial)


def plots_of(comparison: Comparison) -> dict[str, Plot]:
    """A plot a metric, by names: against the setting that varies, or a row a run."""
    found, along = {}, axis(comparison)
    if along and len(along.series) > len(MARKERS):
        along = None
    for position, (key, label) in enumerate(comparison.labels.items()):
        named = _axis(comparison, key)
        if along and all(key in row.cells for row in comparison.rows):
            figure, title = lines_figure(_series(along, key), along.name, named), f"{label} against {along.name}"
        else:
            figure, title = dots_figure(_bars_of(comparison, key), named), f"{label} by run"
        metric = next(row.cells[key].name for row in comparison.rows if key in row.cells)
        found[f"metric-{position + 1}-{metric}"] = Plot(figure, title)
    return found


def _series(along: Axis, key: str) -> dict[str, list[tuple[float, Bar]]]:
    return {called: [(place, _bar(row, key)) for place, row in points] for called, points in along.series.items()}


def _bar(row: Row, key: str) -> Bar:
    return Bar(row.name, row.cells[key].value, row.cells[key].low, row.cells[key].high)


def _bars_of(comparison: Comparison, key: str) -> list[Bar]:
    return [_bar(row, key) for row in comparison.rows if key in row.cells]


def _axis(comparison: Comparison, key: str) -> str:
    """A metric's label with its unit, and an arrow to where better values are."""
    cell = next(row.cells[key] for row in comparison.rows if key in row.cells)
    arrow = "↓" if METRICS[cell.name].less_is_better else "↑"
    return f"{cell.label} {arrow}, {cell.unit}" if cell.unit else f"{cell.label} {arrow}"


def _row_html(name: str, cells: Iterable[tuple[str, str, str]]) -> str:
    """A named row; each cell has what it is called where there is no head of the table, its HTML, and small text below it."""
    return (
        f"<tr><th>{html.escape(name)}</th>"
        + "".join(
            f'<td data-name="{html.escape(called)}">{shown}{f"<small>{html.escape(below)}</small>" if below else ""}</td>'
            if shown
            else "<td></td>"
            for called, shown, below in cells
        )
        + "</tr>"
    )


def _runs_html(comparison: Comparison) -> str:
    """A row a run; the best value of each metric is bold, the others are better or worse than the base."""
    winners, known = {key: best(comparison, key) for key in comparison.labels}, verdicts(comparison)
    rows = []
    for row in comparison.rows:
        cells = []
        for key, label in comparison.labels.items():
            if (cell := row.cells.get(key)) is None:
                cells.append((label, "", ""))
                continue
            value, interval = cell.shown()
            verdict = known.get((row.name, key), "")
            marked = f'<span class="best">{value}</span>' if winners[key] is row else value
            if verdict in ("better", "worse"):
                marked += f' <span class="{verdict}">{verdict}</span>'
            cells.append((label, marked, interval))
        rows.append(_row_html(row.title, cells))
    return table_html("runs", ["run", *(_axis(comparison, key) for key in comparison.labels)], rows)


def _pictures_html(comparison: Comparison, pictures: Pictures) -> str:
    """The same indices of each run, a row a run."""
    rows = [
        f"<tr><th>{html.escape(row.title)}</th><td><div>{''.join(_picture_html(*one) for one in pictures[row.name].items())}"
        "</div></td></tr>"
        for row in comparison.rows
        if pictures.get(row.name)
    ]
    if not rows:
        return ""
    indices = ", ".join(map(str, next(iter(pictures.values()))))
    without = [row.title for row in comparison.rows if not pictures.get(row.name)]
    said = f"Images {indices} of each run."
    said += f" Without an npz beside their result: {', '.join(without)}." if without else ""
    return f'<h2>The same indices</h2>{table_html("same", (), rows)}<p class="remarks">{html.escape(said)}</p>'


def _picture_html(index: int, pixels: np.ndarray) -> str:
    return image_html(Image.fromarray(pixels), f"sample {index}")


def _differences_html(comparison: Comparison) -> str:
    """The differences from the base, each with its verdict."""
    parts, known, holm = [], verdicts(comparison), after_holm(comparison)
    how = {one.row: one.sentence for one in comparison.how}
    for row in comparison.rows[1:]:
        rows = [
            _row_html(
                one.label,
                [
                    ("difference", signed(one.difference, one.unit, one.low, one.high), ""),
                    ("95 % interval", between(one.low, one.high, one.unit), one.gain),
                    ("relative", "" if one.relative is None else f"{100 * one.relative:+.1f} %", ""),
                    ("verdict", _verdict_html(known[row.name, one.key]), _below(one.note, (row.name, one.key) in holm)),
                ],
            )
            for one in comparison.differences
            if one.row == row.name
        ]
        head = ("metric", "difference", "95 % interval", "relative", "verdict")
        parts.append(f"<h2>{html.escape(row.title)} less {html.escape(comparison.rows[0].title)}</h2>")
        parts.append(table_html("runs", head, rows))
        parts.append(f'<p class="remarks">Taken {html.escape(how[row.name])}.</p>')
    if parts:
        parts.append(f'<p class="remarks">{html.escape(VERDICTS)}</p>')
    return "".join(parts)


def _verdict_html(verdict: str) -> str:
    return f'<span class="{verdict.replace(" ", "-")}">{verdict}</span>'


def _below(note: str, kept: bool) -> str:
    return "; ".join(filter(None, (HOLM if kept else "", note)))


def _spread_html(row: Row) -> str:
    """Of runs that differ by their seeds, whether they differ by as much as their intervals say."""
    rows = [
        _row_html(
            cell.label,
            [("seen", cell.written(cell.seen), ""), ("promised", cell.written(cell.promised), "")],
        )
        for cell in row.cells.values()
    ]
    said = f"Standard deviations: of the {len(row.files)} values, and as the intervals of each promise it."
    table = table_html("seeds", ("metric", "seen", "promised"), rows)
    return folded_html(f"Between the seeds of {row.name}", f'{table}<p class="remarks">{said}</p>')


def _axes_html(row: Row) -> str:
    """Of runs of several checkpoints, how their numbers vary over draws and over trainings."""
    rows = [
        _row_html(label, [(name, text, "") for name, text in zip(AXES[1:], texts, strict=True)])
        for label, *texts in axes_rows(row)
    ]
    said = (
        f"95 % intervals of the mean of {len(row.checkpoints)} checkpoints, each counting the same: over draws from these, "
        "and over trainings, by Student's t. Spreads are standard deviations: of one draw, and of one training without what "
        "draws add."
    )
    title = f"<h2>Between the checkpoints of {html.escape(row.name)}</h2>"
    return f'{title}{table_html("runs", AXES, rows)}<p class="remarks">{html.escape(said)}</p>'


def _facts_html(comparison: Comparison) -> str:
    """Where the results are, and all that they share, folded up."""
    basis = [
        f"<tr><th>{html.escape(name.replace('_', ' '))}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in comparison.basis.items()
        if value is not None
    ]
    files = [
        f"<tr><th>{html.escape(row.title)}</th><td>{'<br>'.join(map(html.escape, row.files))}</td></tr>"
        for row in comparison.rows
    ]
    shared = folded_html(f"What they share: {len(basis)} values and hashes", table_html("facts", (), basis))
    return f"<h2>Results</h2>{table_html('facts', (), files)}{shared}"
