"""The typed result, and its forms: a table on the screen, JSON, one self-contained HTML page."""

import base64
import html
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from distributed import UserError, say, write_whole
from evaluation.memorisation import Memorisation
from evaluation.metrics import Curve
from evaluation.runs import ClassNames, Run
from evaluation.scores import ClassScore

OWN_FORM = (
    "grid",
    "metrics",
    "class_names",
    "curve",
    "classes",
    "memorisation",
    "run",
)  # fields of a result that do not stand in JSON as they are
FORMAT = "fiducial-result-3"
THUMBNAIL = 96  # pixels; larger images are shown reduced


@dataclass(frozen=True)
class Metric:
    """One number, and what it is.

    `error`, `low` and `high` are the standard error and the 95 % interval over other samples of this model (see
    `evaluation.intervals`); `spread` is over the blocks of an Inception score or the subsets of KID. `n` and `reference_n`
    count the images on either side, where that is known; `definition` is a sentence, `deviations` say what differs from
    `protocol`.
    """

    label: str
    value: float
    error: float | None
    low: float | None
    high: float | None
    spread: float | None
    n: int
    reference_n: int | None
    protocol: str
    definition: str
    deviations: tuple[str, ...]


@dataclass
class Grid:
    """A few images of each of a few classes. `rows`: label (None if unknown) and indices."""

    rows: list[tuple[int | None, list[int]]]
    kept: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def choose(cls, labels: np.ndarray | None, count: int, rows: int, columns: int) -> "Grid":
        """The first `columns` images of each of up to `rows` classes, evenly chosen; of the whole where there are not several."""
        if labels is None or (labels == labels[0]).all():
            indices = list(range(min(count, rows * columns)))
            return cls([(None, indices[start : start + columns]) for start in range(0, len(indices), columns)])
        classes = np.unique(labels)
        shown = classes[np.unique(np.linspace(0, len(classes) - 1, rows).round().astype(int))]
        return cls([(int(label), np.flatnonzero(labels == label)[:columns].tolist()) for label in shown])

    def fill(self, pick: Callable[[list[int]], dict[int, np.ndarray]]) -> None:
        """Gets the images, (H, W, 3) by index, from `pick`."""
        self.kept = pick([index for _, indices in self.rows for index in indices])

    def strip(self, indices: list[int]) -> Image.Image:
        """One row as a picture."""
        images = [Image.fromarray(self.kept[index]) for index in indices]
        for image in images:
            image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        gap, (width, height) = 4, images[0].size
        row = Image.new("RGBA", (len(images) * (width + gap) - gap, height))
        for position, image in enumerate(images):
            row.paste(image, (position * (width + gap), 0))
        return row


@dataclass(frozen=True)
class Result:
    """All metrics of one evaluation with everything they hang on."""

    metrics: dict[str, Metric]
    warnings: tuple[str, ...]
    left_out: dict[str, str]
    samples: dict
    reference: dict | None
    extractor: dict
    settings: dict
    packages: dict[str, str]
    created: str
    grid: Grid
    class_names: ClassNames | None = None
    curve: Curve | None = None
    classes: list[ClassScore] = field(default_factory=list)
    memorisation: Memorisation | None = None
    run: Run | None = None

    def to_json(self) -> str:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in OWN_FORM}
        metrics = {name: asdict(metric) for name, metric in self.metrics.items()}
        names = {"class_names": asdict(self.class_names)} if self.class_names else {}
        more = {"curve": asdict(self.curve)} if self.curve else {}
        more |= {"classes": [asdict(score) for score in self.classes]} if self.classes else {}
        if self.memorisation:
            more["memorisation"] = {name: value for name, value in asdict(self.memorisation).items() if name != "pictures"}
        more |= {"run": asdict(self.run)} if self.run else {}
        return json.dumps({"format": FORMAT, "metrics": metrics, **fields, **more, **names}, indent=2) + "\n"

    def table(self) -> str:
        """The numbers for a terminal; what is missing and warnings below."""
        rows = [("metric", "value", "95 % interval", "N", "reference")]
        rows += [(m.label, shown(m), interval(m), f"{m.n:,}", counted(m.reference_n)) for m in self.metrics.values()]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [f"{row[0]:<{widths[0]}}" + "".join(f"  {row[i]:>{widths[i]}}" for i in range(1, 5)) for row in rows]
        notes = [f"left out: {why}" for why in self.left_out.values()] + [f"warning: {text}" for text in self.warnings]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *notes])

    def to_html(self) -> str:
        everywhere = [text for text in self._first.deviations if all(text in m.deviations for m in self.metrics.values())]
        numbers = "".join(
            f"<tr><th>{html.escape(m.label)}</th><td class=value>{shown(m)}</td><td>{m.n:,}</td><td>{counted(m.reference_n)}</td>"
            f"<td class=definition>{html.escape(m.definition)}"
            + "".join(f"<br><em>deviation:</em> {html.escape(text)}" for text in m.deviations if text not in everywhere)
            + "</td></tr>"
            for m in self.metrics.values()
        )
        notes = "".join(f"<li>{html.escape(warning)}</li>" for warning in self.warnings)
        lines = [f"Protocol: {self._first.protocol}."]
        lines += [f"Deviation of every number: {text}." for text in everywhere]
        lines += [f"Left out: {why}." for why in self.left_out.values()]
        parts = {
            "samples": self.samples,
            "reference": self.reference or {},
            "extractor": self.extractor,
            "settings": self.settings,
            "packages": self.packages,
        }
        facts = "".join(
            f"<tr><th>{part} {name.replace('_', ' ')}</th><td>{html.escape(str(value))}</td></tr>"
            for part, values in parts.items()
            for name, value in values.items()
            if value is not None
        )
        return PAGE.format(
            title=html.escape(f"{self._first.label} {self._first.value:.4g}"),
            name=html.escape(Path(self.samples["path"]).name),
            numbers=numbers,
            notes=f"<ul class=warning>{notes}</ul>" if notes else "",
            remarks="<br>".join(map(html.escape, lines)),
            grid=self._grid_html(),
            names=self._names_html(),
            facts=facts,
            created=self.created,
        )

    @property
    def _first(self) -> Metric:
        return next(iter(self.metrics.values()))

    def write(self, json_file: Path | None, html_file: Path | None) -> None:
        """Writes the files that are asked for, prints the table, and says where they are."""
        wanted = {path: text for path, text in ((json_file, self.to_json), (html_file, self.to_html)) if path is not None}
        for path, text in wanted.items():
            try:
                write_whole(path.resolve(), lambda beside, text=text: beside.write_text(text(), encoding="utf-8"))
            except OSError as error:
                raise UserError(f"{path} cannot be written ({error.strerror})") from error
        say("\n".join([self.table(), *map(str, wanted)]))

    def _grid_html(self) -> str:
        rows = []
        for label, indices in self.grid.rows:
            buffer = io.BytesIO()
            self.grid.strip(indices).save(buffer, format="PNG")
            picture = base64.b64encode(buffer.getvalue()).decode()
            shown_indices = f"indices {', '.join(map(str, indices))}"
            image = f'<img src="data:image/png;base64,{picture}" alt="{shown_indices}" title="{shown_indices}">'
            rows.append(f"<tr><th>{self._title_html(label)}</th><td>{image}</td></tr>")
        return f'<table class="grid{" named" if any("<bdi>" in row for row in rows) else ""}">{"".join(rows)}</table>'

    def _title_html(self, label: int | None) -> str:
        """What stands beside a row of the grid; a name, unless it is the number, has its number below."""
        if label is None:
            return ""
        name = self.class_names and self.class_names[label]
        named = name and name != str(label)
        return f"<bdi>{html.escape(name)}</bdi> <small>class {label}</small>" if named else f"class {label}"

    def _names_html(self) -> str:
        """All class names, folded up."""
        if not self.class_names:
            return ""
        names = "".join(f"<li><bdi>{html.escape(name)}</bdi></li>" for name in self.class_names.names)
        summary = f"{len(self.class_names.names):,} class names, SHA-256 {html.escape(self.class_names.sha256)}"
        return f'<details><summary>{summary}</summary><ol start="0">{names}</ol></details>'


def shown(metric: Metric) -> str:
    """A value as it is printed, with its spread over blocks or subsets where there is one."""
    spread = "" if metric.spread is None else f" ± {metric.spread:.4f}"
    return f"{metric.value:.4f}{spread}"


def interval(metric: Metric) -> str:
    """Its 95 % interval as it is printed; empty where it has none."""
    return "" if metric.low is None else f"{metric.low:.4f} to {metric.high:.4f}"


def counted(count: int | None) -> str:
    """A number of images; empty where it is not known."""
    return "" if count is None else f"{count:,}"


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: {name}</title>
<style>
:root {{
  color-scheme: light dark;
  --ink: #1a1d21; --paper: #fff; --faint: #667; --line: #dde; --warn: #8a5a00; --warn-paper: #fff7e6;
}}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6e8eb; --paper: #15181c; --faint: #99a; --line: #334; --warn: #ffcf7a; --warn-paper: #33290f; }}
}}
body {{
  font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
}}
h1 {{ font-size: 1.5rem; margin-bottom: 0; }}
.name {{ margin-top: .2rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{
  text-align: left; vertical-align: top; overflow-wrap: anywhere;
  padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line);
}}
.numbers th, .numbers td:nth-child(3), .numbers td:nth-child(4) {{ white-space: nowrap; }}
thead th, footer, .name {{ color: var(--faint); font-weight: normal; font-size: .85rem; }}
.value {{ font-size: 1.3rem; font-variant-numeric: tabular-nums; white-space: nowrap; }}
.definition {{ font-size: .85rem; }} .definition em {{ color: var(--faint); font-style: normal; }}
.remarks {{ color: var(--faint); font-size: .85rem; }}
.warning {{ color: var(--warn); background: var(--warn-paper); padding: .6rem .8rem .6rem 1.8rem; border-radius: .3rem; }}
.grid th {{ vertical-align: middle; font-weight: normal; color: var(--faint); white-space: nowrap; width: 5rem; }}
.grid td {{ border: 0; padding: 2px 0; }} .grid th {{ border: 0; padding-block: 2px; }}
.grid th:empty {{ display: none; }}
.named bdi {{ color: var(--ink); display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }}
.named small {{ display: block; }} .grid.named th {{ white-space: normal; width: 11rem; padding-right: 1rem; }}
details {{ margin-top: .6rem; }} summary, details ol {{ font-size: .85rem; color: var(--faint); overflow-wrap: anywhere; }}
details ol {{ columns: 11rem; column-gap: 3.5rem; padding-left: 3rem; }} details li {{ break-inside: avoid; }}
.grid img {{ max-width: 100%; display: block; }}
.facts {{ font-size: .85rem; }} .facts th {{ font-weight: normal; color: var(--faint); width: 14rem; }}
@media (max-width: 40rem) {{
  .numbers tr {{ display: flex; flex-wrap: wrap; gap: 0 .7rem; border-bottom: 1px solid var(--line); }}
  .numbers th, .numbers td {{ border: 0; padding-right: 0; }} .numbers .definition {{ flex-basis: 100%; padding-top: 0; }}
  .numbers thead {{ display: none; }} .numbers td:nth-child(3)::before {{ content: "N "; color: var(--faint); }}
  .numbers td:nth-child(4):not(:empty)::before {{ content: "reference "; color: var(--faint); }}
  .facts th {{ width: 8rem; }} .grid th {{ width: 3.5rem; font-size: .85rem; }}
  .named tr, .grid.named th, .named td {{ display: block; width: auto; }} .grid.named th {{ padding-bottom: 0; }}
}}
</style>
<h1>{title}</h1>
<p class="name">{name}</p>
{notes}
<table class="numbers">
<thead><tr><th>metric</th><th>value</th><th>N</th><th>reference</th><th>what it is</th></tr></thead>{numbers}</table>
<p class="remarks">{remarks}</p>
<h2>Samples</h2>
{grid}
{names}
<h2>What the numbers hang on</h2>
<table class="facts">{facts}</table>
<footer><p>Computed {created} by Fiducial.</p></footer>
</html>
"""
