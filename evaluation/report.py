"""The typed result, and its forms: a table on the screen, JSON, one self-contained HTML page."""

import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from fiducial import about, printable
from fiducial.evaluation.memorisation import Memorisation
from fiducial.evaluation.metrics import Curve
from fiducial.evaluation.page import picture, report_page
from fiducial.evaluation.protocols import UNITS
from fiducial.evaluation.runs import ClassNames, Run
from fiducial.evaluation.scores import ClassScore
from fiducial.evaluation.wording import RESULT_FORMAT, between, counted, deliver, number, warnings_left

OWN_FORM = (
    "grid",
    "metrics",
    "class_names",
    "curve",
    "classes",
    "memorisation",
    "run",
)  # fields of a result that do not stand in JSON as they are


@dataclass(frozen=True)
class Metric:
    """One number, and what it is; `name` is its metric's in `protocols.LABELS`, whatever the extractor.

    `error`, `low` and `high` are the standard error and the 95 % interval (see `evaluation.intervals`); `spread` is over the
    blocks of an Inception score or the subsets of KID. `n` and `reference_n` count the images on either side, where that is
    known; `definition` is a sentence, `deviations` say what differs from `protocol`.
    """

    name: str
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

    @property
    def unit(self) -> str:
        return UNITS.get(self.name, "")

    def shown(self) -> str:
        """The value as it is printed, with its spread over blocks or subsets where there is one."""
        spread = "" if self.spread is None else f" ± {number(self.spread, '', self.low, self.high)}"
        return number(self.value, self.unit, self.low, self.high) + spread


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
        images = [picture(self.kept[index]) for index in indices]
        gap, (width, height) = 4, images[0].size
        row = Image.new("RGBA", (len(images) * (width + gap) - gap, height))
        for position, image in enumerate(images):
            row.paste(image, (position * (width + gap), 0))
        return row


@dataclass(frozen=True)
class Result:
    """All metrics of one evaluation with everything they hang on.

    `training` says which images AuthPct is over, `fiducial` by which version, commit and command the result was made.
    """

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
    training: dict | None = None
    fiducial: dict[str, str | None] = field(default_factory=about)

    def to_json(self) -> str:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in OWN_FORM}
        metrics = {name: asdict(metric) for name, metric in self.metrics.items()}
        names = {"class_names": asdict(self.class_names)} if self.class_names else {}
        more = {"curve": asdict(self.curve)} if self.curve else {}
        more["classes"] = [asdict(score) for score in self.classes]
        if self.memorisation:
            more["memorisation"] = {name: value for name, value in asdict(self.memorisation).items() if name != "pictures"}
        more |= {"run": asdict(self.run)} if self.run else {}
        return json.dumps({"format": RESULT_FORMAT, "metrics": metrics, **fields, **more, **names}, indent=2) + "\n"

    def table(self, said: Collection[str] = ()) -> str:
        """The numbers for a terminal; what is missing and warnings below, but for those that were `said` there before."""
        rows = [("metric", "value", "95 % interval", "N", "reference")]
        rows += [
            (m.label, m.shown(), between(m.low, m.high, m.unit), f"{m.n:,}", counted(m.reference_n))
            for m in self.metrics.values()
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [f"{row[0]:<{widths[0]}}" + "".join(f"  {row[i]:>{widths[i]}}" for i in range(1, 5)) for row in rows]
        notes = [f"left out: {why}" for why in self.left_out.values()] + warnings_left(self.warnings, said)
        return "\n".join(map(printable, [lines[0], "-" * len(lines[0]), *lines[1:], *notes]))

    def to_html(self) -> str:
        return report_page(self)

    def write(self, json_file: Path | None, html_file: Path | None, said: Collection[str] = ()) -> None:
        """Writes the files that are asked for, prints the table and where they are; warnings `said` before are not repeated."""
        deliver(self.table(said), {json_file: self.to_json, html_file: self.to_html})
