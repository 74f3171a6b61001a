"""The typed result, and its form in JSON."""

import json
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from fiducial import about
from fiducial.evaluation.data.runs import ClassNames, Run
from fiducial.evaluation.results.form import decode
from fiducial.evaluation.results.grid import Grid
from fiducial.evaluation.results.parts import ClassScore, Curve, Influences, Memorisation, Number
from fiducial.evaluation.results.published import Against, against

RESULT_FORMAT = "fiducial-result-3"
# The order in which parts of their own come last in JSON.
ORDER = ("curve", "classes", "memorisation", "run", "published", "class_names", "influences")
OWN_FORM = ("metrics", *ORDER)  # fields that do not stand in JSON as they are
LEFT_OUT = ("grid", "real", "moves")  # and those that do not stand there


@dataclass(frozen=True)
class Result:
    """All metrics of one evaluation with everything they depend on.

    `training` says which images AuthPct is over, `fiducial` by which version, commit and command the result was made,
    `published` sets its numbers beside those of the row that its run was drawn after, `influences` names the file of the `moves`
    of its numbers, by their keys, whose lengths are their errors (see `metrics.intervals`). `grid` and `real` are pictures of
    samples and of real images.
    """

    metrics: dict[str, Number]
    warnings: tuple[str, ...]
    left_out: dict[str, str]
    samples: dict
    reference: dict | None
    extractor: dict
    settings: dict
    packages: dict[str, str]
    created: str
    grid: Grid = field(default_factory=lambda: Grid([]))
    real: Grid = field(default_factory=lambda: Grid([]))
    class_names: ClassNames | None = None
    curve: Curve | None = None
    classes: list[ClassScore] = field(default_factory=list)
    memorisation: Memorisation | None = None
    run: Run | None = None
    published: Against | None = None
    training: dict | None = None
    influences: Influences | None = None
    moves: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    fiducial: dict[str, str | None] = field(default_factory=about)

    def drawn_by(self, run: Run | None) -> "Result":
        """The same as of samples that this run has drawn, beside its published row."""
        made = (self.metrics, self.reference, self.samples, self.extractor["name"], self.settings)
        return replace(self, run=run, published=against(run, *made))

    def __getitem__(self, name: str) -> Number:
        """A metric by its plain name, such as `result["fid"]`, whatever the extractor; or by its key, such as "fid-digits".

        Raises:
            KeyError: if it was not computed; the sentence says what was, and why others were left out.
        """
        found = self.metrics.get(name) or next((one for one in self.metrics.values() if one.name == name), None)
        if found is None:
            why = "".join(f"; {label} was left out: {reason}" for label, reason in self.left_out.items())
            raise KeyError(f"{name} was not computed, but {', '.join(one.name for one in self.metrics.values())}{why}")
        return found

    def to_json(self) -> str:
        """Everything but the pictures; `parse` reads it."""
        form = {"format": RESULT_FORMAT, "metrics": {key: asdict(number) for key, number in self.metrics.items()}}
        form |= {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in (*OWN_FORM, *LEFT_OUT)}
        for name in ORDER:
            if (value := getattr(self, name)) is not None:
                form[name] = _plain(value)
        return json.dumps(form, indent=2) + "\n"

    @classmethod
    def parse(cls, form: dict) -> "Result":
        """Read what `to_json` wrote, decoded; without pictures.

        Raises:
            Unexpected: if it is something else.
        """
        return decode(cls, form, without=LEFT_OUT)


def _plain(value: object) -> object:
    """A part of a result as JSON has it, without pictures."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return {name: part for name, part in asdict(value).items() if name != "pictures"}
