"""Numbers with their intervals as plots: a figure of matplotlib, and its SVG to be set into a page.

A plot takes its ink from the page that it stands in (`currentColor`, `--accent`, `--line`), in light as in dark, and its text
is text in the page's font. The same numbers give the same bytes.
"""

import io
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from fiducial import printable

if TYPE_CHECKING:  # matplotlib is imported where a figure is made: no command waits for it without need
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fiducial.evaluation.results.parts import Curve

INK, ACCENT, LINE = "#1a1d21", "#1f5fbf", "#ccd2da"  # on paper; on a page they stand for its own colours
COLOURS = {INK: "currentColor", ACCENT: "var(--accent)", LINE: "var(--line)"}
WIDTH, HEIGHT = 420, 250  # pixels of a plot, which a page shows a little smaller or larger
ROW = 20  # pixels of a row
POINT = 72  # pixels of an SVG by matplotlib to an inch
LONGEST = 20  # characters of a name beside a plot
MARKERS, STROKES = "osD^vP", ("-", "--", "-.", ":", "-", "--")  # of as many series as can be told apart
STYLE = {
    **{"font.size": 11, "text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"},
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), LINE),
}


@dataclass(frozen=True)
class Bar:
    """A named value with its interval, where there is one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Plot:
    """A figure, what is read out in its place, and a sentence below it."""

    figure: "Figure"
    title: str
    caption: str = ""


def curve_figure(curve: "Curve", label: str) -> "Figure":
    """FID against 1 / N: the points, the line through the first three, and where it ends, with its interval."""
    from fiducial.evaluation.metrics.fid_infinity import FITTED

    whole = curve.counts[0]
    with _figure(WIDTH, HEIGHT) as (figure, axes):
        places = [whole / count for count in curve.counts]
        axes.plot([0, places[FITTED - 1]], [curve.at_infinity.value, curve.at(curve.counts[FITTED - 1])], color=LINE, zorder=1)
        axes.plot(places, curve.values, "o", color=ACCENT)
        end = curve.at_infinity
        _whiskers(axes, 0, Bar(label, end.value, end.low, end.high), vertical=True, marker="D")
        axes.set_xticks([0, *places], ["∞", *(f"{count:,}" for count in curve.counts)])
        axes.set_xlim(-0.3, places[-1] + 0.3)
        axes.set_xlabel("number of samples N, on a scale of 1 / N")
        axes.set_ylabel(label)
    return figure


def pair_figure(x: Bar, y: Bar) -> "Figure":
    """Two metrics of one model against each other, such as recall and precision; both axes from 0 to 1, or beyond it."""
    with _figure(WIDTH, HEIGHT) as (figure, axes):
        _whiskers(axes, y.value, x)
        _whiskers(axes, x.value, y, vertical=True, marker="")
        for bar, limits, name in ((x, axes.set_xlim, axes.set_xlabel), (y, axes.set_ylim, axes.set_ylabel)):
            limits(0, max(1.0, 1.1 * max(bar.value, bar.high or 0)))
            name(printable(bar.name))
        axes.grid(color=LINE, linewidth=0.8)
    return figure


def bars_figure(bars: Sequence[Bar], label: str, most: float | None = None) -> "Figure":
    """Bars from 0, the first at the top; `most` is the largest value of all figures that are to have one scale."""
    with _figure(WIDTH, 55 + ROW * len(bars)) as (figure, axes):
        axes.barh(range(len(bars)), [bar.value for bar in bars], 0.62, color=ACCENT, alpha=0.55)
        for row, bar in enumerate(bars):
            _whiskers(axes, row, bar, marker="", colour=INK)
        _name_rows(axes, bars, label)
        axes.set_xlim(0, most and 1.05 * most)
    return figure


def dots_figure(bars: Sequence[Bar], label: str) -> "Figure":
    """Points with whiskers, the first at the top; the axis shows what lies between them, not 0."""
    with _figure(WIDTH, 55 + (ROW + 4) * len(bars)) as (figure, axes):
        for row, bar in enumerate(bars):
            _whiskers(axes, row, bar)
        axes.axvline(bars[0].value, color=LINE, linewidth=0.8, zorder=0)
        _name_rows(axes, bars, label)
        axes.margins(x=0.08)
    return figure


def lines_figure(
    series: Mapping[str, Sequence[tuple[float, Bar]]], name: str, label: str, hollow: Collection[str] = ()
) -> "Figure":
    """Values with whiskers against a number called `name`: a line a series, told apart by their markers and strokes.

    Bars of the names in `hollow` are marked by an empty marker.
    """
    with _figure(WIDTH, HEIGHT) as (figure, axes):
        for (called, points), marker, stroke in zip(series.items(), MARKERS, STROKES, strict=False):
            places, values = [place for place, _ in points], [bar.value for _, bar in points]
            axes.plot(places, values, color=ACCENT, linestyle=stroke, marker=marker, label=printable(called) or None)
            for place, bar in points:
                _whiskers(axes, place, bar, vertical=True, marker="")
                if bar.name in hollow:
                    _empty(axes, place, bar.value, marker)
        axes.set_xlabel(printable(name))
        axes.set_ylabel(printable(label))
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=9)
    return figure


def frontier_figure(series: Mapping[str, Sequence[tuple[Bar, Bar]]], names: tuple[str, str], hollow: Collection[str]) -> "Figure":
    """Two metrics of many models against each other, with whiskers in both directions: a line a series, in its order.

    Args:
        series: for each model its bars in x and in y.
        names: of both axes.
        hollow: names of the bars in x that are marked by an empty marker.
    """
    with _figure(WIDTH, HEIGHT) as (figure, axes):
        for (called, points), marker, stroke in zip(series.items(), MARKERS, STROKES, strict=False):
            places, values = [x.value for x, _ in points], [y.value for _, y in points]
            axes.plot(places, values, color=ACCENT, linestyle=stroke, marker=marker, label=printable(called) or None, alpha=0.8)
            for x, y in points:
                _whiskers(axes, y.value, x, marker="")
                _whiskers(axes, x.value, y, vertical=True, marker="")
                if x.name in hollow:
                    _empty(axes, x.value, y.value, marker)
        axes.set_xlabel(printable(names[0]))
        axes.set_ylabel(printable(names[1]))
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=9)
    return figure


def drawn(figure: "Figure", form: str, name: str) -> bytes:
    """The figure as a file for a paper: `svg` with its text as text, `pdf` with its fonts, or `png` of 300 dots an inch.

    The same numbers give the same bytes; `name` tells the ids of an SVG from another's.
    """
    import matplotlib

    buffer = io.BytesIO()
    nothing = {"svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name, "pdf.fonttype": 42}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format=form, metadata=nothing.get(form), dpi=300)
    return buffer.getvalue()


def svg(figure: "Figure", name: str, title: str) -> str:
    """The figure as an element of a page in which no other one is called `name`; `title` is read out in its place."""
    import matplotlib

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # only the page has to have it
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    width, height = (round(inches * POINT) for inches in figure.get_size_inches())
    for parent in root.iter():
        for child in [child for child in parent if child.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)  # a style within would be the whole page's
    for element in root.iter():
        _adapt(element, name)
    root.attrib = {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": printable(title)}
    root.attrib |= {"class": "plot"}
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, name: str) -> None:
    """Take the page's colours and font, and ids that no other figure has. Text stays as it is."""
    element.tag = element.tag.partition("}")[2]
    attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    if "style" in attributes:
        parts = [part for part in attributes["style"].split("; ") if not part.startswith("font-family")]
        attributes["style"] = "; ".join(parts)
        for stand_in, colour in COLOURS.items():
            attributes["style"] = attributes["style"].replace(stand_in, colour)
    for key, opening in (("id", ""), ("href", "#"), ("clip-path", "url(#")):
        if key in attributes:
            attributes[key] = f"{opening}{name}-{attributes[key].removeprefix(opening)}"
    element.attrib = attributes


@contextmanager
def _figure(width: int, height: int) -> "Iterator[tuple[Figure, Axes]]":
    """Empty axes of a figure of so many pixels, without a frame."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width / POINT, height / POINT), layout="constrained")
        yield figure, figure.add_subplot()


def _whiskers(axes: "Axes", place: float, bar: Bar, vertical: bool = False, marker: str = "o", colour: str = ACCENT) -> None:
    """A point, and its interval as a line, in the direction that the value is read in."""
    if bar.low is not None and bar.high is not None:
        ends, places = [bar.low, bar.high], [place, place]
        axes.plot(*((places, ends) if vertical else (ends, places)), color=colour)
    if marker:
        axes.plot(*((place, bar.value) if vertical else (bar.value, place)), marker, color=colour)


def _empty(axes: "Axes", x: float, y: float, marker: str) -> None:
    """Paper over the middle of a marker, and leave its rim."""
    axes.plot(x, y, marker, color="white", markersize=3.2, zorder=4)


def _name_rows(axes: "Axes", bars: Sequence[Bar], label: str) -> None:
    names = [printable(bar.name) for bar in bars]
    half = LONGEST // 2  # what tells names of runs apart often stands at their ends
    short = [name if len(name) <= LONGEST else f"{name[: half - 1]}…{name[-half:]}" for name in names]
    axes.set_yticks(range(len(bars)), short)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(printable(label))
