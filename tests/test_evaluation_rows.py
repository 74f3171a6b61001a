"""A metric is a file and a row of METRICS, an extractor a file and a row of EXTRACTORS: nothing else has to know of them."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from test_evaluation_cli import evaluate

from fiducial.evaluation import features, metrics
from fiducial.evaluation.data.references import WITHOUT_PROVENANCE, Provenance, Reference
from fiducial.evaluation.features import DEFAULT, EXTRACTORS, WEIGHTS, ExtractorSpec, spec_of
from fiducial.evaluation.features.digits import build
from fiducial.evaluation.metrics import METRICS, Metric, Need
from fiducial.evaluation.metrics.intervals import estimate
from fiducial.evaluation.protocols import PROTOCOLS
from fiducial.evaluation.results.compare import compare
from fiducial.evaluation.results.reading import read_result
from fiducial.evaluators import ALIASES, FOLLOWED
from fiducial.sampling.options.parser import build_parser
from scripts.stand_ins import pictures

COUNT = 60


@pytest.fixture
def images(tmp_path):
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        np.savez(tmp_path / f"{name}.npz", arr_0=pictures(COUNT, seed))
    return tmp_path


@pytest.fixture
def gap(monkeypatch):
    """A metric that is not there otherwise: the distance of the means, which has all that a row can say."""

    def compute(inputs):
        own, theirs = (side.mean(0, dtype=np.float64) for side in (inputs.own.rows, inputs.reference.features))
        return estimate(float(np.abs(own - theirs).mean()), 100.0, 0)

    module = ModuleType(f"{metrics.__name__}.gap")
    module.compute = compute
    module.caveat = lambda inputs, labels: f"Gap saw {len(inputs.own.rows)} images and {labels} labels."
    monkeypatch.setitem(sys.modules, module.__name__, module)
    row = Metric(
        "gap",
        "Gap",
        Need.FEATURES,
        "gap.compute",
        "mean gap on {features}",
        least=50,
        unit="px",
        by_default=True,
        uses=lambda samples, others: (samples - 3, min(samples, others) - 5),
        seed=77,
        published_count=3000,
        caveat="gap.caveat",
        against="precision",
    )
    monkeypatch.setitem(METRICS, "gap", row)
    monkeypatch.setitem(EXTRACTORS, "digits", replace(EXTRACTORS["digits"], comparable=True))
    return row


def calc(folder, monkeypatch, capsys, samples: str, *options: str) -> tuple[int, str, str]:
    where = ("--extractor", "digits", "--json", folder / f"{samples}.json", "--html", folder / f"{samples}.html")
    where += ("--cache-dir", folder / "cache")
    where = where if "--extractor" not in options else where[2:]
    return evaluate(monkeypatch, capsys, "calc", folder / f"{samples}.npz", "--ref", folder / "b.npz", *where, *options)


@pytest.mark.usefixtures("gap")
def test_a_row_is_all_that_a_metric_takes(images, monkeypatch, capsys):
    for name, options in (("a", ()), ("c", ("--metrics", "gap"))):
        code, out, err = calc(images, monkeypatch, capsys, name, *options)
        assert code == 0, err
        assert "Gap-digits" in out
    result = json.loads((images / "a.json").read_text())
    found = result["metrics"]["gap-digits"]
    said = "This is not Gap-digits-3K: it was computed on 60 samples, and Gap-digits depends on their number."
    assert {said, "Gap saw 60 images and None labels."} <= set(result["warnings"])
    assert (result["settings"]["gap_seed"], result["settings"]["kid_seed"]) == (77, 2020)
    assert "precision-digits 0." in (images / "a.html").read_text().partition('aria-label="Gap-digits ')[2][:60]
    assert found["definition"] == "mean gap on the 64 features of the embedded digit classifier"
    assert (found["n"], found["reference_n"], found["low"]) == (COUNT - 3, COUNT - 5, 0)
    assert found["deviations"] == ["the extractor is digits, where adm's is inception"]
    cell = compare([read_result(images / f"{name}.json") for name in "ac"]).rows[0].cells["gap-digits"]
    assert cell.shown()[0].endswith(" px")
    np.savez(images / "few.npz", arr_0=pictures(49, 0))
    code, _, err = calc(images, monkeypatch, capsys, "few", "--metrics", "gap")
    assert code == 2
    assert "Gap needs at least 50 images on either side, and there are 49" in err
    code, _, err = evaluate(monkeypatch, capsys, "calc", images / "a.npz", "--ref", images / "b.npz", "--metrics", "gape")
    assert "choose from fid" in err
    assert "gap" in err.partition("choose from")[2]


def test_a_row_is_all_that_an_extractor_takes(images, monkeypatch, capsys):
    module = ModuleType(f"{features.__name__}.other")
    module.build = build
    monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = ExtractorSpec("other", 64, "other.build", "64 others", suffix="-other", caveats={"adm": "it is another"})
    monkeypatch.setitem(EXTRACTORS, "other", spec)
    code, out, err = calc(images, monkeypatch, capsys, "a", "--extractor", "other", "--metrics", "fid")
    assert code == 0, err
    assert "FID-other" in out
    found = json.loads((images / "a.json").read_text())["metrics"]["fid-other"]
    assert "64 others" in found["definition"]
    assert found["deviations"] == ["the extractor is other, where adm's is inception", "it is another"]


@pytest.mark.parametrize(("metric", "count"), [("fid", 2), ("fid-infinity", 2), ("kid", 1), ("is", 0), ("vendi", 0)])
def test_deviations_of_a_reference_are_of_the_metrics_that_take_it(metric, count):
    made = Reference(Path("x.npz"), None, WITHOUT_PROVENANCE, provenance=Provenance(dtype="bfloat16"))
    assert len(made.deviations(metric, "float32")) == count


def test_the_command_that_draws_names_all_protocols_and_weights():
    """The names are in a table that both import, for it starts without the evaluation."""
    actions = {text: action for action in build_parser()._actions for text in action.option_strings}
    assert tuple(actions["--protocol"].choices) == tuple(PROTOCOLS) == tuple(FOLLOWED)
    chosen = {spec_of(one.extractor or DEFAULT).weights.name for one in PROTOCOLS.values()}
    assert chosen == set(ALIASES)
    assert all(f"{name}=FILE" in actions["--weights"].help for name in chosen)
    assert {f"--{name}-weights" for name in ALIASES} == {text for text in actions if text.endswith("-weights")} - {"--weights"}
    assert set(ALIASES) <= set(WEIGHTS)


def test_every_row_is_of_a_function_that_is_there():
    for metric in METRICS.values():
        module, function = metric.compute.split(".")
        __import__(f"{metrics.__name__}.{module}")
        assert callable(getattr(sys.modules[f"{metrics.__name__}.{module}"], function))
        assert {metric.follows, metric.against} <= {None, *METRICS}
        assert all(callable(metrics.function_of(where)) for where in (metric.caveat, metric.curve) if where)
    for spec in EXTRACTORS.values():
        module, function = spec.build.split(".")
        __import__(f"{features.__name__}.{module}")
        assert callable(getattr(sys.modules[f"{features.__name__}.{module}"], function))
