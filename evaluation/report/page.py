"""The page of a result."""

import base64
import html
import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from fiducial.evaluation.data.runs import ClassNames, Run
from fiducial.evaluation.metrics import METRICS, Need
from fiducial.evaluation.report.document import INTERVALS, document, figure_html, notes_html
from fiducial.evaluation.report.plots import Bar, bars_figure, curve_figure, pair_figure, svg
from fiducial.evaluation.results.grid import Grid, thumbnail
from fiducial.evaluation.results.parts import Memorisation, Number
from fiducial.evaluation.results.published import Against, in_words
from fiducial.evaluation.results.result import Result
from fiducial.evaluation.results.wording import between, counted, number

BARS = 30  # classes that are shown


def report_page(result: Result) -> str:
    """Everything that a result holds."""
    first = next(iter(result.metrics.values()))
    everywhere = [text for text in first.deviations if all(text in m.deviations for m in result.metrics.values())]
    lines = [f"Protocol: {first.protocol}."]
    if any(m.low is not None for m in result.metrics.values()):
        lines.append(f"{INTERVALS} Here, {result.settings.get('intervals', 'samples are drawn independently')}.")
    lines += [f"Deviation of every number: {text}." for text in everywhere]
    lines += [f"Left out: {why}." for why in result.left_out.values()]
    parts = [
        notes_html(result.warnings),
        _numbers_html(result.metrics.values(), everywhere),
        f'<p class="remarks">{"<br>".join(map(html.escape, lines))}</p>',
        _plots_html(result),
        _published_html(result.published),
        f"<h2>Samples</h2>{grid_html(result.grid, result.class_names)}{names_html(result.class_names)}",
        _memorised_html(result.memorisation),
        _classes_html(result),
        _run_html(result.run),
        f'<h2>What the numbers depend on</h2><table class="facts">{_facts_html(result)}</table>',
    ]
    title = f"{first.label} {number(first.value, first.unit, first.low, first.high)}"
    name = Path(result.samples["path"]).name
    return document(title, name, "\n".join(filter(None, parts)), result.created, fiducial=result.fiducial)


def _numbers_html(metrics: Iterable[Number], everywhere: list[str]) -> str:
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


def _published_html(found: Against | None) -> str:
    """Measured beside published, and what was made otherwise."""
    if not found:
        return ""
    rows = "".join(
        f"<tr><th>{html.escape(one.label)}</th>" + "".join(f"<td>{html.escape(text)}</td>" for text in in_words(one)) + "</tr>"
        for one in found.lines
    )
    head = "".join(f"<th>{name}</th>" for name in ("metric", "measured", "published", "difference", "verdict"))
    table = (
        f'<table class="facts"><thead><tr>{head}</tr></thead>{rows}</table>' if rows else "<p>No number of it is compared.</p>"
    )
    said = [f"Row {found.name}, of {found.source}. Both are taken for draws of the same model, with the error of this one."]
    said += [f"Differs: {text}." for text in found.deviations] + [f"Note: {text}." for text in found.notes]
    return f'<h2>Beside the published row</h2>{table}<p class="remarks">{"<br>".join(map(html.escape, said))}</p>'


def _plots_html(result: Result) -> str:
    """FID against N, and the metrics that come in pairs."""
    by_name = {metric.name: metric for metric in result.metrics.values()}
    plots = []
    infinity = next((metric for metric in by_name.values() if METRICS[metric.name].curve), None)
    if result.curve and infinity:
        fid, interval = infinity.label.replace("-infinity", ""), between(infinity.low, infinity.high)
        at_infinity = number(infinity.value, "", infinity.low, infinity.high) + (f" ({interval})" if interval else "")
        caption = (
            f"Fewer samples bias {fid} upwards, by a multiple of 1 / N. The line goes through N, N/2 and N/3, and meets "
            f"infinitely many samples at {at_infinity}; N/4 shows how far the bias is from straight."
        )
        plots.append(figure_html(svg(curve_figure(result.curve, fid), "curve", f"{fid} against N"), caption))
    for y in by_name:
        if (x := METRICS[y].against) in by_name:
            bars = [Bar(by_name[name].label, by_name[name].value, by_name[name].low, by_name[name].high) for name in (x, y)]
            of_x, of_y = (f"{bar.name} {number(bar.value, '', bar.low, bar.high)}" for bar in bars)
            title = f"{of_y} against {of_x}"
            plots.append(figure_html(svg(pair_figure(*bars), f"{x}-{y}", title)))
    return f'<div class="plots">{"".join(plots)}</div>' if plots else ""


def worst_classes(result: Result) -> list[Bar]:
    """The classes with the largest distances, the worst first, by their names."""
    scores = sorted(result.classes, key=lambda score: -score.distance.value)[:BARS]
    return [
        Bar(_class_name(score.label, result.class_names), score.distance.value, score.distance.low, score.distance.high)
        for score in scores
    ]


def _class_name(label: int, names: ClassNames | None) -> str:
    """Its name; with its number where there is none, or one that says no more."""
    name = names and names[label]
    return name if name and name != str(label) else f"class {label}"


def _classes_html(result: Result) -> str:
    if not result.classes:
        return ""
    bars = worst_classes(result)
    least, most = (bound(score.n for score in result.classes) for bound in (min, max))
    label = next((m.label for m in result.metrics.values() if METRICS[m.name].needs is Need.MOMENTS), "FID").replace(
        "-infinity", ""
    )
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


def _memorised_html(found: Memorisation | None) -> str:
    """The samples that look most like a training image, above it."""
    if not found or not found.pictures:
        return ""
    strips = "".join(
        f"<figure>{_image_html(Image.fromarray(thumbnail(ours)), f'sample {pair.sample}')}"
        f"{_image_html(Image.fromarray(thumbnail(theirs)), f'training image {pair.training}')}"
        f"<figcaption>{pair.ratio:.3f}<small>{pair.sample:,}<br>{pair.training:,}</small></figcaption></figure>"
        for pair, (ours, theirs) in zip(found.pairs, found.pictures, strict=True)
    )
    return (
        f'<h2>Closest to the training images</h2><div class="strips">{strips}</div>'
        '<p class="remarks">Above the sample, below the training image nearest to it, then their distance over that '
        "training image's to its own nearest fellow (near 0 for a copy, below 1 where the sample does not count as authentic), "
        f"and the indices of both. Of {found.n:,} samples and {found.training_n:,} training images.</p>"
    )


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
    return f'<h2>Drawing</h2><table class="sessions">{"".join(rows)}</table><p class="remarks">Without loading and compiling.</p>'


def _rate(images: float, seconds: float) -> str:
    return f"{images / seconds:,.1f} images/s" if seconds > 0 else ""


def _facts_html(result: Result) -> str:
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


def _image_html(image: Image.Image, words: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{words}" title="{words}">'


def grid_html(grid: Grid, names: ClassNames | None) -> str:
    """A row a class."""
    rows = []
    for label, indices in grid.rows:
        image = _image_html(_strip(grid, indices), f"indices {', '.join(map(str, indices))}")
        rows.append(f"<tr><th>{_title_html(label, names)}</th><td>{image}</td></tr>")
    return f'<table class="grid{" named" if any("<bdi>" in row for row in rows) else ""}">{"".join(rows)}</table>'


def _title_html(label: int | None, names: ClassNames | None) -> str:
    """The heading of a row of the grid; a name, unless it is the number, has its number below."""
    if label is None:
        return ""
    name = _class_name(label, names)
    plain = f"class {label}"
    return name if name == plain else f"<bdi>{html.escape(name)}</bdi> <small>{plain}</small>"


def names_html(names: ClassNames | None) -> str:
    """All class names, folded up."""
    if not names:
        return ""
    items = "".join(f"<li><bdi>{html.escape(name)}</bdi></li>" for name in names.names)
    summary = f"{len(names.names):,} class names, SHA-256 {html.escape(names.sha256)}"
    return f'<details><summary>{summary}</summary><ol start="0">{items}</ol></details>'


def _strip(grid: Grid, indices: list[int]) -> Image.Image:
    """One row of the grid as a picture."""
    images = [Image.fromarray(thumbnail(grid.kept[index])) for index in indices]
    gap, (width, height) = 4, images[0].size
    row = Image.new("RGBA", (len(images) * (width + gap) - gap, height))
    for position, image in enumerate(images):
        row.paste(image, (position * (width + gap), 0))
    return row
