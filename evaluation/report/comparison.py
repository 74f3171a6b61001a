"""The page of results side by side."""

import html
from collections.abc import Iterable, Sequence

from fiducial.evaluation.report.document import INTERVALS, document, figure_html, notes_html
from fiducial.evaluation.report.plots import Bar, dots_figure, svg
from fiducial.evaluation.report.tables import AXES, axes_rows
from fiducial.evaluation.results.compare import Comparison, Row
from fiducial.evaluation.results.wording import between, signed

VERDICTS = (
    "Decided: the 95 % interval of the difference excludes 0. Runs that share seed, labels and noise are compared sample by "
    "sample, and their intervals are narrower by what moves both alike; others are taken as independent, so that errors add in "
    "quadrature. Where two runs do not differ at all, one in twenty numbers is decided by chance."
)


def comparison_page(comparison: Comparison) -> str:
    """Results side by side: a plot and a column a metric, then what the differences decide."""
    plots = [
        figure_html(svg(dots_figure(_bars_of(comparison, key), _axis(comparison, key)), f"metric-{position}", f"{label} by run"))
        for position, (key, label) in enumerate(comparison.labels.items())
    ]
    files = "".join(
        f"<tr><th>{html.escape(row.title)}</th><td>{'<br>'.join(map(html.escape, row.files))}</td></tr>"
        for row in comparison.rows
    )
    basis = "".join(
        f"<tr><th>{html.escape(name.replace('_', ' '))}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in comparison.basis.items()
        if value is not None
    )
    body = [
        notes_html(f"Left out: {why}." for why in comparison.left_out),
        f'<div class="plots">{"".join(plots)}</div>',
        f'<p class="remarks">{html.escape(INTERVALS)} The line is the first run.</p>',
        f"<h2>Numbers</h2>{_runs_html(comparison)}",
        *(_axes_html(row) if row.axes else _spread_html(row) for row in comparison.rows if len(row.files) > 1),
        _differences_html(comparison),
        f'<h2>What they share</h2><table class="facts">{basis}</table>',
        f'<h2>Results</h2><table class="facts">{files}</table>',
    ]
    title = f"{sum(len(row.files) for row in comparison.rows)} runs compared"
    name = " · ".join(row.title for row in comparison.rows)
    return document(title, name, "\n".join(body), comparison.created, True, comparison.fiducial)


def _bars_of(comparison: Comparison, key: str) -> list[Bar]:
    return [
        Bar(row.name, row.cells[key].value, row.cells[key].low, row.cells[key].high)
        for row in comparison.rows
        if key in row.cells
    ]


def _axis(comparison: Comparison, key: str) -> str:
    """A metric's label with its unit."""
    cell = next(row.cells[key] for row in comparison.rows if key in row.cells)
    return f"{cell.label}, {cell.unit}" if cell.unit else cell.label


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


def _table_html(head: Sequence[str], rows: Iterable[str]) -> str:
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f'<table class="runs"><thead><tr>{names}</tr></thead>{"".join(rows)}</table>'


def _runs_html(comparison: Comparison) -> str:
    rows = []
    for row in comparison.rows:
        found = [(label, row.cells.get(key)) for key, label in comparison.labels.items()]
        cells = [(label, *c.shown()) if c else (label, "", "") for label, c in found]
        rows.append(_row_html(row.title, cells))
    return _table_html(["run", *comparison.labels.values()], rows)


def _spread_html(row: Row) -> str:
    """Of runs that differ by their seeds, whether they differ by as much as their intervals say."""
    rows = [
        _row_html(
            cell.label,
            [("seen", cell.written(cell.seen), ""), ("promised", cell.written(cell.promised), "")],
        )
        for cell in row.cells.values()
    ]
    return (
        f"<h2>Between the seeds of {html.escape(row.name)}</h2>{_table_html(('metric', 'seen', 'promised'), rows)}"
        f'<p class="remarks">Standard deviations: of the {len(row.files)} values, and as the intervals of each promise it.</p>'
    )


def _axes_html(row: Row) -> str:
    """Of runs of several checkpoints, how their numbers vary over draws and over trainings."""
    rows = [
        _row_html(label, [(name, text, "") for name, text in zip(AXES[1:], texts, strict=True)])
        for label, *texts in axes_rows(row)
    ]
    return (
        f"<h2>Between the checkpoints of {html.escape(row.name)}</h2>{_table_html(AXES, rows)}"
        f'<p class="remarks">95 % intervals of the mean of {len(row.checkpoints)} checkpoints, each counting the same: over '
        "draws from these, and over trainings, by Student's t. Spreads are standard deviations: of one draw, and of one training "
        "without what draws add.</p>"
    )


def _differences_html(comparison: Comparison) -> str:
    parts, how = [], {one.row: one.sentence for one in comparison.how}
    for row in comparison.rows[1:]:
        rows = [
            _row_html(
                one.label,
                [
                    ("difference", signed(one.difference, one.unit, one.low, one.high), ""),
                    ("95 % interval", between(one.low, one.high, one.unit), one.gain),
                    ("relative", "" if one.relative is None else f"{100 * one.relative:+.1f} %", ""),
                    ("verdict", f'<span class="{one.verdict.replace(" ", "-")}">{one.verdict}</span>', one.note),
                ],
            )
            for one in comparison.differences
            if one.row == row.name
        ]
        head = ("metric", "difference", "95 % interval", "relative", "verdict")
        title = f"{html.escape(row.title)} less {html.escape(comparison.rows[0].title)}"
        said = f'<p class="remarks">Taken {html.escape(how[row.name])}.</p>'
        parts.append(f"<h2>{title}</h2>{_table_html(head, rows)}{said}")
    if parts:
        parts.append(f'<p class="remarks">{html.escape(VERDICTS)}</p>')
    return "".join(parts)
