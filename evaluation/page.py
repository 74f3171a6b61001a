"""Pages of one file each: the report of a result, and what other commands write in the same style.

Nothing is loaded from elsewhere, and whatever comes out of a file is escaped.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fiducial import described
from fiducial.evaluation.plots import Bar, bars_figure, curve_figure, dots_figure, pair_figure, svg
from fiducial.evaluation.wording import between, counted, number, signed

if TYPE_CHECKING:
    from PIL.Image import Image

    from fiducial.evaluation.compare import Comparison, Row
    from fiducial.evaluation.memorisation import Memorisation
    from fiducial.evaluation.report import Grid, Metric, Result
    from fiducial.evaluation.runs import ClassNames, Run

BARS = 30  # classes that are shown
PAIRS = (("recall", "precision"), ("coverage", "density"))  # the horizontal and the vertical axis
INTERVALS = (
    "95 % intervals hold what draws of as many samples from the same model give on average, the reference held fixed; a single "
    "other draw varies by 1.4 times as much. They do not cover training the model anew, which moves FID more (arXiv 2606.20536)."
)

VERDICTS = (
    "Decided: the 95 % interval of the difference excludes 0. The runs are taken as independent, also where they share a seed, "
    "so that errors add in quadrature. Where two runs do not differ at all, one in twenty numbers is decided by chance."
)


def document(
    title: str, name: str, body: str, created: str, wide: bool = False, fiducial: dict[str, str | None] | None = None
) -> str:
    """A whole page; `title` and `name` are text, `body` is HTML. `fiducial` says by which version, commit and command."""
    command = (fiducial or {}).get("command")
    return PAGE.format(
        title=html.escape(title),
        name=html.escape(name),
        style=STYLE,
        wide=' class="wide"' if wide else "",
        body=body,
        created=html.escape(created),
        fiducial=html.escape(described(fiducial) if fiducial else "Fiducial"),
        command=f"<pre>{html.escape(command)}</pre>" if command else "",
    )


def report_page(result: "Result") -> str:
    """Everything that a result holds."""
    first = next(iter(result.metrics.values()))
    everywhere = [text for text in first.deviations if all(text in m.deviations for m in result.metrics.values())]
    lines = [f"Protocol: {first.protocol}."]
    lines += [INTERVALS] if any(m.low is not None for m in result.metrics.values()) else []
    lines += [f"Deviation of every number: {text}." for text in everywhere]
    lines += [f"Left out: {why}." for why in result.left_out.values()]
    parts = [
        notes_html(result.warnings),
        _numbers_html(result.metrics.values(), everywhere),
        f'<p class="remarks">{"<br>".join(map(html.escape, lines))}</p>',
        _plots_html(result),
        f"<h2>Samples</h2>{grid_html(result.grid, result.class_names)}{names_html(result.class_names)}",
        _memorised_html(result.memorisation),
        _classes_html(result),
        _run_html(result.run),
        f'<h2>What the numbers hang on</h2><table class="facts">{_facts_html(result)}</table>',
    ]
    title = f"{first.label} {number(first.value, first.unit, first.low, first.high)}"
    name = Path(result.samples["path"]).name
    return document(title, name, "\n".join(filter(None, parts)), result.created, fiducial=result.fiducial)


def notes_html(notes: Iterable[str]) -> str:
    """Warnings, or nothing."""
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f'<ul class="warning">{items}</ul>' if items else ""


def _numbers_html(metrics: Iterable["Metric"], everywhere: list[str]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(m.label)}</th><td class=value>{m.shown()}</td>"
        f"<td class=interval>{between(m.low, m.high, m.unit)}</td>"
        f"<td class=count>{m.n:,}</td><td class=count>{counted(m.reference_n)}</td>"
        f"<td class=definition>{html.escape(m.definition)}"
        + "".join(f"<br><em>deviation:</em> {html.escape(text)}" for text in m.deviations if text not in everywhere)
        + "</td></tr>"
        for m in metrics
    )
    head = "".join(f"<th>{name}</th>" for name in ("metric", "value", "95 % interval", "N", "reference", "what it is"))
    return f'<table class="numbers"><thead><tr>{head}</tr></thead>{rows}</table>'


def figure_html(picture: str, caption: str = "") -> str:
    """An SVG with a sentence below it."""
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{picture}{below}</figure>"


def _plots_html(result: "Result") -> str:
    """FID against N, and the metrics that come in pairs."""
    by_name = {metric.name: metric for metric in result.metrics.values()}
    plots = []
    if result.curve and "fid-infinity" in by_name:
        infinity = by_name["fid-infinity"]
        fid, interval = infinity.label.replace("-infinity", ""), between(infinity.low, infinity.high)
        at_infinity = number(infinity.value, "", infinity.low, infinity.high) + (f" ({interval})" if interval else "")
        caption = (
            f"Fewer samples bias {fid} upwards, by a multiple of 1 / N. The line goes through N, N/2 and N/3, and meets "
            f"infinitely many samples at {at_infinity}; N/4 shows how far the bias is from straight."
        )
        plots.append(figure_html(svg(curve_figure(result.curve, fid), "curve", f"{fid} against N"), caption))
    for x, y in PAIRS:
        if x in by_name and y in by_name:
            bars = [Bar(by_name[name].label, by_name[name].value, by_name[name].low, by_name[name].high) for name in (x, y)]
            of_x, of_y = (f"{bar.name} {number(bar.value, '', bar.low, bar.high)}" for bar in bars)
            title = f"{of_y} against {of_x}"
            plots.append(figure_html(svg(pair_figure(*bars), f"{x}-{y}", title)))
    return f'<div class="plots">{"".join(plots)}</div>' if plots else ""


def worst_classes(result: "Result") -> list[Bar]:
    """The classes with the largest distances, the worst first, by their names."""
    scores = sorted(result.classes, key=lambda score: -score.distance.value)[:BARS]
    return [
        Bar(_class_name(score.label, result.class_names), score.distance.value, score.distance.low, score.distance.high)
        for score in scores
    ]


def _class_name(label: int, names: "ClassNames | None") -> str:
    """Its name; with its number where there is none, or one that says no more."""
    name = names and names[label]
    return name if name and name != str(label) else f"class {label}"


def _classes_html(result: "Result") -> str:
    if not result.classes:
        return ""
    bars = worst_classes(result)
    least, most = (bound(score.n for score in result.classes) for bound in (min, max))
    label = next((m.label for m in result.metrics.values() if m.name in ("fid", "fid-infinity")), "FID").replace("-infinity", "")
    images = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    caption = (
        f"Within each class, of {images} samples each. So few bias {label} upwards: compare these bars with each other, "
        "not with the number of all samples."
    )
    if left_out := len(result.classes) - len(bars):
        caption += f" The {len(bars)} worst; {left_out:,} better classes are left out."
    if any(bar.low is None for bar in bars):
        caption += " A class without an interval has too few samples for one."
    picture = svg(bars_figure(bars, label), "classes", f"{label} by class")
    return f'<h2>By class</h2><div class="plots">{figure_html(picture, caption)}</div>'


def _memorised_html(found: "Memorisation | None") -> str:
    """The samples that look most like a training image, above it."""
    if not found or not found.pictures:
        return ""
    strips = "".join(
        f"<figure>{_image_html(picture(ours), f'sample {pair.sample}')}"
        f"{_image_html(picture(theirs), f'training image {pair.training}')}"
        f"<figcaption>{pair.ratio:.3f}<small>{pair.sample:,}<br>{pair.training:,}</small></figcaption></figure>"
        for pair, (ours, theirs) in zip(found.pairs, found.pictures, strict=True)
    )
    return (
        f'<h2>Closest to the training images</h2><div class="strips">{strips}</div>'
        '<p class="remarks">Above the sample, below the training image nearest to it, then their distance over that '
        "training image's to its own nearest fellow (near 0 for a copy, below 1 where the sample does not count as authentic), "
        f"and the indices of both. Of {found.n:,} samples and {found.training_n:,} training images.</p>"
    )


def _run_html(run: "Run | None") -> str:
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
    return f'<h2>Drawing</h2><table class="sessions">{"".join(rows)}</table><p class="remarks">Without loading and compiling.</p>'


def _rate(images: float, seconds: float) -> str:
    return f"{images / seconds:,.1f} images/s" if seconds > 0 else ""


def _facts_html(result: "Result") -> str:
    run = result.run
    parts = {
        "samples": result.samples,
        "reference": result.reference or {},
        "training images": result.training or {},
        "extractor": result.extractor,
        "settings": result.settings,
        "run": {"fingerprint": run.fingerprint, **run.identity} if run else {},
        "packages": result.packages,
    }
    return "".join(
        f"<tr><th>{html.escape(f'{part} {name}'.replace('_', ' '))}</th><td>{html.escape(str(value))}</td></tr>"
        for part, values in parts.items()
        for name, value in values.items()
        if value is not None
    )


def comparison_page(comparison: "Comparison") -> str:
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
        *(_spread_html(row) for row in comparison.rows if len(row.files) > 1),
        _differences_html(comparison),
        f'<h2>What they share</h2><table class="facts">{basis}</table>',
        f'<h2>Results</h2><table class="facts">{files}</table>',
    ]
    title = f"{sum(len(row.files) for row in comparison.rows)} runs compared"
    name = " · ".join(row.title for row in comparison.rows)
    return document(title, name, "\n".join(body), comparison.created, True, comparison.fiducial)


def _bars_of(comparison: "Comparison", key: str) -> list[Bar]:
    return [
        Bar(row.name, row.cells[key].value, row.cells[key].low, row.cells[key].high)
        for row in comparison.rows
        if key in row.cells
    ]


def _axis(comparison: "Comparison", key: str) -> str:
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


def _runs_html(comparison: "Comparison") -> str:
    rows = []
    for row in comparison.rows:
        found = [(label, row.cells.get(key)) for key, label in comparison.labels.items()]
        cells = [(label, *c.shown()) if c else (label, "", "") for label, c in found]
        rows.append(_row_html(row.title, cells))
    return _table_html(["run", *comparison.labels.values()], rows)


def _spread_html(row: "Row") -> str:
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


def _differences_html(comparison: "Comparison") -> str:
    parts = []
    for row in comparison.rows[1:]:
        rows = [
            _row_html(
                one.label,
                [
                    ("difference", signed(one.difference, one.unit, one.low, one.high), ""),
                    ("95 % interval", between(one.low, one.high, one.unit), ""),
                    ("relative", "" if one.relative is None else f"{100 * one.relative:+.1f} %", ""),
                    ("verdict", f'<span class="{one.verdict.replace(" ", "-")}">{one.verdict}</span>', one.note),
                ],
            )
            for one in comparison.differences
            if one.row == row.name
        ]
        head = ("metric", "difference", "95 % interval", "relative", "verdict")
        parts.append(f"<h2>{html.escape(row.title)} less {html.escape(comparison.rows[0].title)}</h2>{_table_html(head, rows)}")
    if parts:
        parts.append(f'<p class="remarks">{html.escape(VERDICTS)}</p>')
    return "".join(parts)


def picture(pixels: "Sequence") -> "Image":
    """Pixels (H, W, 3) uint8 as an image that is no larger than it is shown."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return image


def _image_html(image: "Image", words: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{words}" title="{words}">'


def grid_html(grid: "Grid", names: "ClassNames | None") -> str:
    """A row a class."""
    rows = []
    for label, indices in grid.rows:
        image = _image_html(grid.strip(indices), f"indices {', '.join(map(str, indices))}")
        rows.append(f"<tr><th>{_title_html(label, names)}</th><td>{image}</td></tr>")
    return f'<table class="grid{" named" if any("<bdi>" in row for row in rows) else ""}">{"".join(rows)}</table>'


def _title_html(label: int | None, names: "ClassNames | None") -> str:
    """What stands beside a row of the grid; a name, unless it is the number, has its number below."""
    if label is None:
        return ""
    name = _class_name(label, names)
    plain = f"class {label}"
    return name if name == plain else f"<bdi>{html.escape(name)}</bdi> <small>{plain}</small>"


def names_html(names: "ClassNames | None") -> str:
    """All class names, folded up."""
    if not names:
        return ""
    items = "".join(f"<li><bdi>{html.escape(name)}</bdi></li>" for name in names.names)
    summary = f"{len(names.names):,} class names, SHA-256 {html.escape(names.sha256)}"
    return f'<details><summary>{summary}</summary><ol start="0">{items}</ol></details>'


THUMBNAIL = 96  # pixels; larger images are shown reduced

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1a1d21; --paper: #fff; --faint: #667; --line: #ccd2da; --accent: #1f5fbf; --warn: #8a5a00; --warn-paper: #fff7e6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e8eb; --paper: #15181c; --faint: #99a; --line: #3c4350; --accent: #7db2ff; --warn: #ffcf7a; --warn-paper: #33290f;
  }
}
body {
  font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
}
body.wide { max-width: 80rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; }
.name { margin-top: .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td {
  text-align: left; vertical-align: baseline; overflow-wrap: anywhere;
  padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line);
}
thead th, footer, .name { color: var(--faint); font-weight: normal; font-size: .85rem; }
.numbers th, .interval, .count, .value { white-space: nowrap; font-variant-numeric: tabular-nums; }
.value { font-size: 1.3rem; line-height: 1.2; } .interval, .count { font-size: .9rem; }
.definition { font-size: .85rem; } .definition em { color: var(--faint); font-style: normal; }
.remarks, figcaption { color: var(--faint); font-size: .85rem; }
.warning { color: var(--warn); background: var(--warn-paper); padding: .6rem .8rem .6rem 1.8rem; border-radius: .3rem; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start; margin-top: 1.5rem; }
figure { margin: 0; } .plots figure { flex: 0 1 auto; max-width: 100%; }
.plot { display: block; width: 100%; height: auto; overflow: visible; stroke-linejoin: round; }
.plot text { fill: currentColor; }
figcaption { max-width: 340px; margin-top: .4rem; }
.strips { display: grid; grid-template-columns: repeat(10, 1fr); gap: .8rem .5rem; }
.strips img { display: block; width: 100%; max-width: 96px; margin-bottom: 2px; }
.strips figcaption { line-height: 1.25; font-variant-numeric: tabular-nums; } .strips small { display: block; font-size: .75rem; }
.grid th { vertical-align: middle; font-weight: normal; color: var(--faint); white-space: nowrap; width: 5rem; }
.grid td { border: 0; padding: 2px 0; } .grid th { border: 0; padding-block: 2px; }
.grid th:empty { display: none; }
.named bdi { color: var(--ink); display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }
.named small { display: block; } .grid.named th { white-space: normal; width: 11rem; padding-right: 1rem; }
footer { margin-top: 2rem; overflow-wrap: anywhere; } footer pre { white-space: pre-wrap; margin-top: 0; }
details { margin-top: .6rem; } summary, details ol { font-size: .85rem; color: var(--faint); overflow-wrap: anywhere; }
details ol { columns: 11rem; column-gap: 3.5rem; padding-left: 3rem; } details li { break-inside: avoid; }
.grid img { max-width: 100%; display: block; }
.facts, .sessions { font-size: .85rem; } .facts th { font-weight: normal; color: var(--faint); width: 14rem; }
.sessions { width: auto; } .sessions th, .sessions td { font-variant-numeric: tabular-nums; border: 0; padding-block: .1rem; }
.sessions td:not(:last-child), .sessions th { white-space: nowrap; }
.runs { table-layout: fixed; } .runs thead th:first-child { width: 13rem; }
.runs td small, .runs th small { display: block; color: var(--faint); font-weight: normal; font-size: .75rem; }
.runs td { font-variant-numeric: tabular-nums; } .decided { font-weight: 600; } .undecided { color: var(--faint); }
@media (max-width: 40rem) {
  .numbers thead, .runs thead { display: none; }
  .numbers tr, .runs tr { padding: .5rem 0; border-bottom: 1px solid var(--line); align-items: baseline; }
  .numbers th, .numbers td, .runs th, .runs td { border: 0; padding: 0; }
  .numbers tr { display: grid; grid-template-columns: auto 1fr auto auto; column-gap: .6rem; }
  .numbers th { grid-column: 1; white-space: normal; } .value { grid-column: 2 / 5; text-align: right; }
  .numbers .definition { grid-column: 1 / 5; }
  .interval, .count { grid-row: 2; font-size: .85rem; } .interval { grid-column: 1; white-space: normal; }
  .count { grid-column: 3; color: var(--faint); } .count + .count { grid-column: 4; }
  .count:has(+ .count:empty) { grid-column: 3 / 5; justify-self: end; }
  .sessions tr { display: flex; flex-wrap: wrap; padding-bottom: .4rem; }
  .count:empty { display: none; } .count::before { content: "N "; } .count + .count::before { content: "reference "; }
  .runs tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .4rem .8rem; }
  .runs th { grid-column: 1 / -1; } .runs td:empty { display: none; }
  .runs td[data-name]::before { content: attr(data-name); color: var(--faint); font-size: .75rem; display: block; }
  .strips { grid-template-columns: repeat(5, 1fr); } .facts th { width: 8rem; }
  .grid th { width: 3.5rem; font-size: .85rem; }
  .named tr, .grid.named th, .named td { display: block; width: auto; } .grid.named th { padding-bottom: 0; }
}
"""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: {name}</title>
<style>{style}</style>
<body{wide}>
<h1>{title}</h1>
<p class="name">{name}</p>
{body}
<footer><p>Computed {created} by {fiducial}.</p>{command}</footer>
</body>
</html>
"""
