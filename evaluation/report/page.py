"""The page of a result: the answer and its setting first, then metrics, plots, samples, and all that it depends on."""

import html
from collections.abc import Mapping
from pathlib import Path

from fiducial import printable
from fiducial.evaluation.data.runs import Run
from fiducial.evaluation.metrics import METRICS, Need
from fiducial.evaluation.report.document import (
    INTERVALS,
    commands_html,
    document,
    facts_html,
    figure_html,
    notes_html,
    table_html,
)
from fiducial.evaluation.report.gallery import class_name, gallery_html, names_html, pairs_html
from fiducial.evaluation.report.plots import Bar, Plot, bars_figure, curve_figure, pair_figure, svg
from fiducial.evaluation.results.parts import Number
from fiducial.evaluation.results.published import Against, Line, in_words
from fiducial.evaluation.results.result import Result
from fiducial.evaluation.results.summary import commands, facts, sentence, title
from fiducial.evaluation.results.wording import between, counted, number

BARS, COLUMN = 30, 10  # classes that are shown, and how many below each other
GROUPS = ("Distance to the reference: less is better", "Fidelity and diversity: more is better", "Copies of training images")


def report_page(result: Result) -> str:
    """Everything that a result holds."""
    metrics = result.metrics.values()
    first = next(iter(metrics), None)
    everywhere = [text for text in first.deviations if all(text in m.deviations for m in metrics)] if first else []
    lines = []
    if any(m.low is not None for m in metrics):
        lines.append(f"{INTERVALS} Here, {result.settings.get('intervals', 'samples are drawn independently')}.")
    lines += [f"Deviation of every number: {text}." for text in everywhere]
    lines += [f"Left out: {why}." for why in result.left_out.values()]
    parts = [
        _head_html(result),
        notes_html(result.warnings),
        f"<h2>Numbers</h2>{_numbers_html(result, everywhere)}",
        f'<p class="remarks">{"<br>".join(map(html.escape, lines))}</p>',
        _published_html(result.published),
        _plots_html(result),
        f"<h2>Samples{' beside real images' if result.real.rows else ''}</h2>",
        gallery_html(result.grid, result.class_names, result.real),
        _classes_html(result),
        pairs_html(result.memorisation),
        _run_html(result.run),
        _facts_html(result),
        names_html(result.class_names),
    ]
    name = printable(Path(result.samples["path"]).name)
    return document(title(result), name, "\n".join(filter(None, parts)), result.created, result.fiducial)


def _head_html(result: Result) -> str:
    """All that a reviewer asks at first, in one screen."""
    beside = {one.key: one for one in result.published.lines} if result.published else {}
    tiles = "".join(_tile_html(one, beside.get(key)) for key, one in result.metrics.items() if not METRICS[one.name].follows)
    key = "".join(f"<div><dt>{name}</dt><dd>{html.escape(text)}</dd></div>" for name, text in facts(result).items())
    parts = [f'<div class="tiles">{tiles}</div>']
    if (found := result.published) and found.deviations:
        count = len(found.deviations)
        said = f"Made otherwise than the published row {found.name} in {count} point{'s' if count > 1 else ''}, listed below."
        parts.append(f'<p class="remarks">{html.escape(said)}</p>')
    return "".join([*parts, f'<dl class="key">{key}</dl>', commands_html(commands(result))])


def _tile_html(one: Number, line: Line | None) -> str:
    interval = f"<span>{between(one.low, one.high, one.unit)}</span>" if one.low is not None else "<span>no interval</span>"
    published = f"<span>published {html.escape(line.published)}: {html.escape(line.verdict)}</span>" if line else ""
    value = number(one.value, one.unit, one.low, one.high)
    return f'<div class="tile"><small>{html.escape(_arrowed(one))}</small><b>{value}</b>{interval}{published}</div>'


def _arrowed(one: Number) -> str:
    """The label with an arrow to where better values are."""
    return f"{one.label} {'↓' if METRICS[one.name].less_is_better else '↑'}"


def _numbers_html(result: Result, everywhere: list[str]) -> str:
    """A table a group."""
    groups: dict[str, list[Number]] = {name: [] for name in GROUPS}
    for one in result.metrics.values():
        row = METRICS[one.name]
        groups[GROUPS[0 if row.less_is_better else 2 if row.needs is Need.TRAINING else 1]].append(one)
    head = ("metric", "value", "95 % interval", "N", "reference", "what it is")
    tables = []
    for name, found in groups.items():
        rows = (
            f"<tr><th>{html.escape(m.label)}</th><td class=value>{m.shown()}</td>"
            f"<td class=interval>{between(m.low, m.high, m.unit)}</td>"
            f"<td class=count>{m.n:,}</td><td class=count>{counted(m.reference_n)}</td>"
            f"<td class=definition>{html.escape(m.definition)}"
            + "".join(f"<br><em>deviation:</em> {html.escape(text)}" for text in m.deviations if text not in everywhere)
            + "</td></tr>"
            for m in found
        )
        tables += [f"<h3>{name}</h3>{table_html('numbers', head, rows)}"] if found else []
    return "".join(tables)


def _published_html(found: Against | None) -> str:
    """Measured beside published, and what was made otherwise."""
    if not found:
        return ""
    rows = [
        f"<tr><th>{html.escape(one.label)}</th>" + "".join(f"<td>{html.escape(text)}</td>" for text in in_words(one)) + "</tr>"
        for one in found.lines
    ]
    head = ("metric", "measured", "published", "difference", "verdict")
    table = table_html("facts", head, rows) if rows else "<p>No number of it is compared.</p>"
    said = [f"Row {found.name}, of {found.source}. Both are taken for draws of the same model, with the error of this one."]
    said += [f"Differs: {text}." for text in found.deviations] + [f"Note: {text}." for text in found.notes]
    return f'<h2>Beside the published row</h2>{table}<p class="remarks">{"<br>".join(map(html.escape, said))}</p>'


def plots_of(result: Result) -> dict[str, Plot]:
    """FID against N, the metrics that come in pairs, and FID by class, by their names."""
    by_name = {metric.name: metric for metric in result.metrics.values()}
    found = {}
    infinity = next((metric for metric in by_name.values() if METRICS[metric.name].curve), None)
    if result.curve and infinity:
        fid, interval = infinity.label.replace("-infinity", ""), between(infinity.low, infinity.high)
        at_infinity = number(infinity.value, "", infinity.low, infinity.high) + (f" ({interval})" if interval else "")
        caption = (
            f"Fewer samples bias {fid} upwards, by a multiple of 1 / N. The line goes through N, N/2 and N/3, and meets "
            f"infinitely many samples at {at_infinity}; N/4 shows how far the bias is from straight."
        )
        found["curve"] = Plot(curve_figure(result.curve, fid), f"{fid} against N", caption)
    for y in by_name:
        if (x := METRICS[y].against) in by_name:
            bars = [Bar(by_name[name].label, by_name[name].value, by_name[name].low, by_name[name].high) for name in (x, y)]
            of_x, of_y = (f"{bar.name} {number(bar.value, '', bar.low, bar.high)}" for bar in bars)
            found[f"{x}-{y}"] = Plot(pair_figure(*bars), f"{of_y} against {of_x}", f"{of_y} against {of_x}.")
    bars, label = worst_classes(result), fid_of(result)
    most = max((bar.high or bar.value for bar in bars), default=0)
    for start in range(0, len(bars), COLUMN):
        named = f"{label} by class, {start + 1} to {min(start + COLUMN, len(bars))} from the worst"
        found[f"classes-{start // COLUMN + 1}"] = Plot(bars_figure(bars[start : start + COLUMN], label, most), named)
    return found


def _plots_html(result: Result) -> str:
    plots = {name: plot for name, plot in plots_of(result).items() if not name.startswith("classes")}
    return f"<h2>Plots</h2>{_figures_html(plots)}" if plots else ""


def _figures_html(plots: Mapping[str, Plot]) -> str:
    figures = "".join(figure_html(svg(one.figure, name, one.title), one.caption) for name, one in plots.items())
    return f'<div class="plots">{figures}</div>'


def fid_of(result: Result) -> str:
    """The label of the Fréchet distance."""
    found = next((m.label for m in result.metrics.values() if METRICS[m.name].needs is Need.MOMENTS), "FID")
    return found.replace("-infinity", "")


def worst_classes(result: Result) -> list[Bar]:
    """The classes with the largest distances, the worst first, by their names."""
    return [
        Bar(class_name(score.label, result.class_names), score.distance.value, score.distance.low, score.distance.high)
        for score in _worst(result)
    ]


def _worst(result: Result) -> list:
    return sorted(result.classes, key=lambda score: -score.distance.value)[:BARS]


def _classes_html(result: Result) -> str:
    if not result.classes:
        return ""
    worst, label = _worst(result), fid_of(result)
    least, most = (bound(score.n for score in result.classes) for bound in (min, max))
    images = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    caption = (
        f"Within each class, of {images} samples each. So few bias {label} upwards: compare these bars with each other, "
        "not with the number of all samples."
    )
    if left_out := len(result.classes) - len(worst):
        caption += f" The {len(worst)} worst; {left_out:,} better classes are left out."
    if any(score.distance.low is None for score in worst):
        caption += " A class without an interval has too few samples for one."
    plots = {name: plot for name, plot in plots_of(result).items() if name.startswith("classes")}
    there = {label for rows in (result.grid.rows, result.grid.classes) for label, _ in rows}
    links = ", ".join(
        f'<a href="#class-{score.label}">{html.escape(class_name(score.label, result.class_names))}</a>'
        for score in worst
        if score.label in there
    )
    seen = f'<p class="remarks">Their pictures: {links}</p>' if links else ""
    return f'<h2>{label} by class</h2>{_figures_html(plots)}<p class="remarks">{html.escape(caption)}</p>{seen}'


def _run_html(run: Run | None) -> str:
    """How fast the samples were drawn; a row a session, if there were several."""
    if not run or not run.sessions:
        return ""
    rows = [
        f"<tr><td>{s['images']:,} images</td><td>{s['seconds']:,.1f} s</td><td>{_rate(s['images'], s['seconds'])}</td>"
        f"<td>{s['ranks']:,} {'rank' if s['ranks'] == 1 else 'ranks'} of {html.escape(str(s['device']))}</td></tr>"
        for s in run.sessions
    ]
    images, seconds = (sum(session[name] for session in run.sessions) for name in ("images", "seconds"))
    total = f"<tr><th>{images:,} images</th><th>{seconds:,.1f} s</th><th>{_rate(images, seconds)}</th><th>all</th></tr>"
    if len(rows) > 1:
        rows.append(total)
    return f'<h2>Drawing</h2>{table_html("sessions", (), rows)}<p class="remarks">Without loading and compiling.</p>'


def _rate(images: float, seconds: float) -> str:
    return f"{images / seconds:,.1f} images/s" if seconds > 0 else ""


def _facts_html(result: Result) -> str:
    """The sentence for a paper, and below it every key and hash, folded up."""
    run = result.run
    parts = {
        "samples": result.samples,
        "reference": result.reference or {},
        "training images": result.training or {},
        "extractor": result.extractor,
        "settings": result.settings,
        "run": {"fingerprint": run.fingerprint, **run.files, **run.identity} if run else {},
        "packages": result.packages,
    }
    return facts_html(parts, sentence(result))
