"""The outcome of a sweep: a table in the terminal, a page, and the same as CSV, LaTeX rows and plots."""

import html
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fiducial import about, printable
from fiducial.evaluation.metrics import METRICS
from fiducial.evaluation.report import Others
from fiducial.evaluation.report.delivery import deliver
from fiducial.evaluation.report.document import INTERVALS, document, figure_html, table_html
from fiducial.evaluation.report.paper import csv_text, escaped, latex_cell, latex_head, tabular
from fiducial.evaluation.report.plots import svg
from fiducial.evaluation.results.compare import Cell
from fiducial.evaluation.results.wording import between, signed
from fiducial.studies.sweeps.deciding import LEVEL, cells_of, key_of
from fiducial.studies.sweeps.plots import plots_of
from fiducial.studies.sweeps.state import Sweep

HEAD = ("round", "run", "images", "metric", "label", "value", "error", "low", "high", "unit", "state", "less_best")
BIAS = (
    "Fewer images bias FID upwards, for all configurations nearly but not quite alike: compare numbers within a round, not from "
    "one round to another. A configuration with an empty marker was dropped in that round."
)


@dataclass(frozen=True)
class Line:
    """A configuration in a round: its cell of the metric that decides, and what became of it."""

    key: str
    name: str
    count: int
    cell: Cell
    state: str
    gap: dict | None


def lines_of(sweep: Sweep, place: int) -> list[Line]:
    """The configurations of a round, the best first."""
    one = sweep.rounds[place]
    cells, found = cells_of(sweep.pools(one["count"], one["values"])), []
    for key in one["values"]:
        cell = cells[key][key_of(cells[key], sweep.spec.metric)]
        state = "best" if key == one["best"] else f"dropped in round {place + 1}" if key in one["dropped"] else "in"
        found.append(Line(key, sweep.configurations[key].name, one["count"], cell, state, one["gaps"].get(key)))
    sign = 1 if METRICS[sweep.spec.metric].less_is_better else -1
    return sorted(found, key=lambda line: (line.state != "best", sign * line.cell.value))


def round_table(sweep: Sweep) -> list[str]:
    """The last round, in lines for a terminal."""
    lines = lines_of(sweep, len(sweep.rounds) - 1)
    rows = [("configuration", "images", lines[0].cell.label, "95 % interval", "state", "less the best")]
    rows += [(one.name, f"{one.count:,}", *one.cell.shown(), one.state, _gap(one)) for one in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    texts = ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [f"round {len(sweep.rounds)} of {len(sweep.spec.sizes)} at most:", *map(printable, texts)]


def _gap(one: Line) -> str:
    """How far it is from the best, with the interval that decides."""
    if not one.gap:
        return ""
    low, high = one.gap["low"], one.gap["high"]
    text = signed(one.gap["difference"], one.cell.unit, low, high)
    return f"{text} ({between(low, high, one.cell.unit)})" if low is not None else text


def answer(sweep: Sweep) -> str:
    """Which configuration is best, and whether it is told apart from the others that are left."""
    lines = lines_of(sweep, len(sweep.rounds) - 1)
    best, which = lines[0], "Lowest" if METRICS[sweep.spec.metric].less_is_better else "Highest"
    value, interval = best.cell.shown()
    said = f"{which} {best.cell.label}: {best.name}, {value}{f' ({interval})' if interval else ''}"
    close = [one.name for one in lines[1:] if not one.gap["worse"]]
    if close:
        return f"{said}; not told apart from {' nor '.join(close)}."
    return f"{said}; every other one is decided to be worse." if len(sweep.configurations) > 1 else f"{said}."


def share(sweep: Sweep) -> str:
    """How many images that took."""
    full = len(sweep.configurations) * len(sweep.spec.seeds) * sweep.spec.count
    return f"{sweep.drawn():,} images were drawn, {100 * sweep.drawn() / full:.0f} % of the {full:,} of the full grid."


def promise(sweep: Sweep) -> str:
    """The risk of dropping, in a sentence."""
    rounds = len(sweep.spec.sizes) - 1
    return (
        f"The chance that the configuration that is best in truth was dropped is at most {100 * LEVEL:.0f} % over all "
        f"{len(sweep.configurations)} configurations and {rounds} rounds that drop (Bonferroni: {sweep.quantile:.2f} standard "
        "errors of the difference, paired sample by sample)."
    )


def write_report(sweep: Sweep, latex: Path | None, csv: Path | None, plots: Path | None) -> None:
    """Write the page, and what else is asked for, and print the answer.

    Raises:
        UserError: if one cannot be written.
    """
    files = {sweep.folder / "sweep.html": lambda: page(sweep)}
    files |= Others(latex, csv, plots).files(lambda: latex_rows(sweep), lambda: csv_rows(sweep), lambda: plots_of(sweep))
    deliver("\n".join(map(printable, (answer(sweep), share(sweep)))), files)


def page(sweep: Sweep) -> str:
    """Everything that was found: the answer, plots, and a table a round."""
    plots = "".join(figure_html(svg(one.figure, name, one.title), one.title) for name, one in plots_of(sweep).items())
    remarks = [share(sweep), promise(sweep), BIAS]
    body = [f'<p class="remarks">{"<br>".join(map(html.escape, remarks))}</p>', f'<div class="plots">{plots}</div>']
    for place in reversed(range(len(sweep.rounds))):
        lines = lines_of(sweep, place)
        body.append(f"<h2>Round {place + 1}: {lines[0].count:,} images a run</h2>{_round_html(lines)}")
    body.append(f'<p class="remarks">{html.escape(INTERVALS)}</p>')
    name = f"{len(sweep.configurations)} configurations of {len(sweep.spec.seeds)} seeds: " + " · ".join(
        f"{option} {', '.join(values)}" for option, values in sweep.spec.over.items()
    )
    return document(answer(sweep), name, "\n".join(body), datetime.now(UTC).isoformat(timespec="seconds"), about())


def _round_html(lines: Iterable[Line]) -> str:
    rows, label = [], ""
    for one in lines:
        (value, interval), label = one.cell.shown(), one.cell.label
        kind = {"best": "best", "in": "undecided"}.get(one.state, "worse")
        rows.append(
            f'<tr><th>{html.escape(one.name)}</th><td data-name="{html.escape(label)}">{value}<small>{interval}</small></td>'
            f'<td data-name="state"><span class="{kind}">{one.state}</span></td>'
            f'<td data-name="less the best">{html.escape(_gap(one))}</td></tr>'
        )
    return table_html("runs", ("configuration", label, "state", "less the best, with the interval that decides"), rows)


def latex_rows(sweep: Sweep) -> str:
    """A row for each configuration that is left, of all images; the best bold."""
    last = sweep.rounds[-1]
    cells = cells_of(sweep.pools(last["count"], last["values"]))
    keys = list(cells[last["best"]])
    rows = [
        (
            escaped(sweep.configurations[key].name),
            [latex_cell(*found[k].shown(), key == last["best"] and found[k].name == sweep.spec.metric) for k in keys],
        )
        for key, found in cells.items()
    ]
    heads = [latex_head(cells[last["best"]][key].label, cells[last["best"]][key].name) for key in keys]
    return tabular([answer(sweep), share(sweep), promise(sweep)], heads, rows)


def csv_rows(sweep: Sweep) -> str:
    """A line for each round, configuration and metric; the gap is that of the metric that decides."""
    found = []
    for place, one in enumerate(sweep.rounds):
        cells = cells_of(sweep.pools(one["count"], one["values"]))
        for line in lines_of(sweep, place):
            for key, cell in cells[line.key].items():
                gap = (line.gap or {}) if cell == line.cell else {}
                numbers = (cell.value, cell.error, cell.low, cell.high, cell.unit, line.state)
                apart = (gap.get("difference"), gap.get("low"), gap.get("high"))
                found.append((place + 1, line.name, line.count, key, cell.label, *numbers, *apart))
    return csv_text((*HEAD, "less_best_low", "less_best_high"), found)
