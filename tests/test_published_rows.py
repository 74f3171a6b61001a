"""Published rows: each preset says all that was chosen, and a result stands beside its row with what was made otherwise."""

import json
import math
import sys
from dataclasses import fields, replace

import pytest
from conftest import DIGITS, PLAIN

import sample_ddp
from fiducial import UserError
from fiducial.diffusion.samplers import own_options
from fiducial.evaluation.data.published import PUBLISHED
from fiducial.evaluation.data.runs import Row, Run, as_run
from fiducial.evaluation.results.parts import Number
from fiducial.evaluation.results.published import BEYOND, OPEN, WITHIN, Against, against
from fiducial.evaluation.results.reading import read_result
from fiducial.evaluation.results.result import Result
from fiducial.models.decoders.rounding import ROUNDING
from fiducial.sampling.options import presets
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.options.parser import parse
from fiducial.sampling.options.presets import ROWS
from fiducial.sampling.run import deviations
from fiducial.sampling.source.from_checkpoint import with_sampler

# Facts as their sources have them, by hand once more: FID, scale, labels, reference, rounding, steps.
FACTS = {
    "dit-xl-2-256": ("2.27", 1.5, "random", "adm-imagenet-256", "dit", "250"),
    "dit-xl-2-256-cfg-1.25": ("3.22", 1.25, "random", "adm-imagenet-256", "dit", "250"),
    "dit-xl-2-512": ("3.04", 1.5, "random", "adm-imagenet-512", "dit", "250"),
    "sit-xl-2-256-sde": ("2.06", 1.5, "random", "adm-imagenet-256", "dit", "250"),
    "sit-xl-2-256-ode": ("2.15", 1.5, "random", "adm-imagenet-256", "dit", "250"),
    "repa-xl-2-256": ("1.42", 1.8, "random", "adm-imagenet-256", "repa", "250"),
    "repa-e-vavae": ("1.26", 2.5, "random", "adm-imagenet-256", "repa", "250"),
    "repa-e-vavae-balanced": ("1.12", 2.4, "balanced", "adm-imagenet-256", "repa", "250"),
    "repa-e-vavae-balanced-cfg-1.0": ("1.69", 1.0, "balanced", "adm-imagenet-256", "repa", "250"),
    "lightningdit-xl-1-256-800-epochs": ("1.35", 6.7, "random", "adm-imagenet-256", "dit", "250"),
    "lightningdit-xl-1-256-64-epochs": ("2.11", 10.0, "random", "adm-imagenet-256", "dit", "250"),
    "jit-b-16-256": ("3.66", 3.0, "balanced", "jit_in256_stats", "half-even", "50"),
    "jit-l-16-256": ("2.36", 2.4, "balanced", "jit_in256_stats", "half-even", "50"),
    "jit-h-16-256": ("1.86", 2.2, "balanced", "jit_in256_stats", "half-even", "50"),
    "ddt-xl-2-256": ("1.26", 2.0, "balanced", "adm-imagenet-256", "dit", "250"),
    "rae-xl-256-cfg-1.0": ("1.51", 1.0, "balanced", "adm-imagenet-256", "repa", "50"),
    "raev2-xl-256": ("1.06", 1.78, "balanced", "jit_in256_stats", "repa", "100"),
    "meanflow-xl-2-256": ("3.43", 1.0, "random", "MeanFlow's own statistics of ImageNet", "dit", "1"),
    "imf-xl-2-256": ("1.72", 8.0, "balanced", "imf-imagenet-256", "dit", "1"),
}


@pytest.mark.parametrize("name", FACTS)
def test_rows_say_what_their_sources_do(name):
    row = ROWS[name]
    options = row.options
    rounding, labels = options.get("rounding", "dit"), options.get("labels", "random")
    found = (row.numbers["fid"], options["cfg_scale"], labels, row.reference, rounding, options["num_sampling_steps"])
    assert found == FACTS[name]
    assert (row.labels, row.rounding) == (labels, rounding)


def test_dits_row_is_whole():
    assert ROWS["dit-xl-2-256"].numbers == {"fid": "2.27", "sfid": "4.60", "is": "278.24", "precision": "0.83", "recall": "0.57"}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_states_all_of_it(name):
    row = ROWS[name]
    assert all(isinstance(text, str) and text for text in vars(row.choices).values())
    assert row.source
    assert row.count == row.options["num_fid_samples"] == 50_000
    assert row.reference in PUBLISHED or " " in row.reference
    assert row.reference not in PUBLISHED or PUBLISHED[row.reference].image_size == row.options["image_size"]
    assert row.rounding in ROUNDING.values()
    assert all(math.isfinite(float(number)) for number in row.numbers.values())
    assert set(row.from_memory) <= set(row.numbers)
    assert set(row.options) <= {field.name for field in fields(SamplingConfig)} | set(own_options())
    assert row.options["model"].startswith(f"{row.family}-")
    assert row_of(name).differing == []


@pytest.mark.parametrize("name", ROWS)
def test_a_preset_is_drawn_as_its_row_says(name):
    config, options = parse(["--preset", name])
    assert options.preset == name
    for option, value in ROWS[name].options.items():
        found = config.own[option] if option in own_options() else getattr(config, option)
        assert found == value, option


def test_the_list_has_all_of_them(capsys):
    with pytest.raises(SystemExit) as left:
        parse(["--preset", "list"])
    out = capsys.readouterr().out
    assert left.value.code == 0
    for name, row in ROWS.items():
        line = next(line for line in out.splitlines() if line.startswith(f"{name}: "))
        assert f"FID {row.numbers['fid']}" in line
    assert "from memory, not read in the source: sFID, precision, recall" in out


def test_no_such_preset():
    with pytest.raises(UserError, match="--preset dit: no such preset; --preset list prints all"):
        parse(["--preset", "dit"])


def run_of(row: Row, **changes: object) -> Run:
    """A run by that row, with labels or rounding of its own."""
    return Run("f" * 64, {"labels": row.labels, "rounding": row.rounding} | changes, (), row)


def row_of(name: str, *said: str, **changes: object) -> Row:
    """The row of a preset as the manifest of a run has it that was drawn with these options beside."""
    config = with_sampler(parse(["--preset", name, *said])[0])
    told = json.loads(json.dumps(deviations.told(name, config)))
    return replace(as_run({"identity": {}, "fingerprint": "f", "sessions": [], "published": told}).published, **changes)


def fid(value: float, error: float | None = 0.02, n: int = 50_000) -> dict[str, Number]:
    return {"fid": Number("fid", "FID", value, error, None, None, None, n, None, "adm", "", ())}


def beside(
    run: Run, metrics: dict[str, Number], ref: str = "adm-imagenet-256", extractor: str = "inception", **how: object
) -> Against:
    count = next(iter(metrics.values())).n
    reference = {"url": PUBLISHED[ref].url, "path": "x.npz"} if ref in PUBLISHED else {"url": None, "path": ref}
    return against(run, metrics, reference, {"count": count}, extractor, {"protocol": "adm"} | how)


@pytest.mark.parametrize(
    ("value", "error", "n", "verdict"),
    [
        (2.27, 0.02, 50_000, WITHIN),
        (2.325, 0.02, 50_000, WITHIN),  # 0.055: more than this draw's own 0.039, less than the 0.055 of two draws and the 0.005
        (2.335, 0.02, 50_000, BEYOND),
        (2.21, 0.02, 50_000, WITHIN),
        (2.20, 0.02, 50_000, BEYOND),
        (2.27, None, 50_000, OPEN),
        (2.27, 0.02, 10_000, OPEN),
    ],
)
def test_the_verdict_is_over_both_draws_and_the_last_digit(value, error, n, verdict):
    row = row_of("dit-xl-2-256")
    (line,) = beside(run_of(row), fid(value, error, n)).lines
    assert line.verdict == verdict
    assert line.difference == pytest.approx(value - 2.27)
    assert line.allowed is None if verdict == OPEN else line.allowed == pytest.approx(1.96 * 2**0.5 * 0.02 + 0.005, rel=1e-3)


def test_a_run_as_the_row_deviates_in_nothing():
    assert beside(run_of(row_of("dit-xl-2-256")), fid(2.3)).deviations == ()


@pytest.mark.parametrize(
    ("changes", "how", "said"),
    [
        ({"labels": "balanced"}, {}, "this row has random labels; yours are balanced"),
        ({}, {"ref": "jit_in256_stats"}, "this row is against adm-imagenet-256; yours is against jit_in256_stats"),
        ({}, {"ref": "own.npz"}, "this row is against adm-imagenet-256; yours is against own.npz"),
        ({"rounding": "repa"}, {}, "this row's pixels are rounded by the rule: half up; yours: truncated"),
        ({}, {"protocol": "torch-fidelity"}, "this row was evaluated by adm; yours by --protocol torch-fidelity"),
    ],
)
def test_what_deviates_is_a_sentence(changes, how, said):
    assert beside(run_of(row_of("dit-xl-2-256"), **changes), fid(2.3), **how).deviations == (said,)


@pytest.mark.parametrize(
    ("preset", "said", "expected"),
    [
        ("dit-xl-2-256", "--num-sampling-steps 50", ["--num-sampling-steps 250; yours has 50"]),
        ("dit-xl-2-256", "--cfg-scale 1.25 --vae mse", ["--vae ema; yours has mse", "--cfg-scale 1.5; yours has 1.25"]),
        ("dit-xl-2-256", "--guidance-interval 0,0.7", ["--guidance-interval 0.0,1.0; yours has 0.0,0.7"]),
        ("dit-xl-2-256", "--cfg-channels 4", ["--cfg-channels 3; yours has 4"]),
        ("dit-xl-2-256", "--cfg-schedule linear", ["--cfg-schedule constant; yours has linear"]),
        ("dit-xl-2-256", "--guidance-ckpt w.pt", ["no --guidance-ckpt; yours has --guidance-ckpt w.pt"]),
        ("dit-xl-2-256", "--sampler ddim --eta 0.5", ["--sampler ddpm; yours has ddim", "no --eta; yours has --eta 0.5"]),
        ("repa-xl-2-256", "--grid places", ["--grid places,tail=0.04; yours has places"]),
        ("repa-xl-2-256", "--state float32", ["--state float64; yours has float32"]),
        ("repa-xl-2-256", "--diffusion-form sigma", ["--diffusion-form linear; yours has sigma"]),
        ("repa-xl-2-256", "--path gvp", ["--path linear; yours has gvp"]),
        ("jit-b-16-256", "--weights-key model", ["--weights-key model_ema1; yours has model"]),
        ("jit-b-16-256", "--guidance-ends closed", ["--guidance-ends open; yours has closed"]),
        ("jit-b-16-256", "--least-time 0.01", ["--least-time 0.05; yours has 0.01"]),
        ("jit-b-16-256", "--least-time 0.05 --noise-scale 1", []),  # what its row says by itself
        ("imf-b-2-256", "--latent-stats scale=1", ["--latent-stats mean=0.865:-0.278:0.216:0.374,std=4.855:; yours has scale=1"]),
        ("imf-b-2-256", "--cfg-channels 3", []),  # it is told, and guides itself
    ],
)
def test_every_choice_that_was_made_otherwise_is_a_sentence(preset, said, expected):
    row = row_of(preset, *said.split())
    found = beside(run_of(row), fid(2.3), ref=row.reference, protocol=row.evaluator).deviations
    assert list(found) == [f"this row has {one}" for one in expected]


def test_labels_and_reference_are_said_together():
    row = row_of("jit-b-16-256", evaluator="adm")
    found = beside(run_of(row, labels="random"), fid(3.7))
    assert found.deviations == (
        "this row has balanced labels against jit_in256_stats; yours are random against adm-imagenet-256",
    )


def test_another_count_and_another_extractor_are_told():
    row = row_of("dit-xl-2-256")
    assert beside(run_of(row), fid(2.3, n=1000)).deviations[0].startswith("this row is of 50,000 images; yours are 1,000")
    found = beside(run_of(row), fid(2.3), extractor="digits")
    assert found.lines == ()
    assert found.deviations == ("this row is over Inception's features; yours are digits's, so no number is compared",)


def test_a_number_from_memory_is_marked():
    found = beside(run_of(row_of("sit-xl-2-256-sde")), {"sfid": replace(fid(4.6)["fid"], name="sfid", label="sFID")} | fid(2.06))
    assert {line.label: line.from_memory for line in found.lines} == {"sFID": True, "FID": False}


WHOLE = ROWS["dit-xl-2-256"].told() | {"differing": []}


@pytest.mark.parametrize(
    "changes",
    [
        {"name": 3},
        {"source": None},
        {"numbers": {"fid": "x"}},
        {"numbers": {"fid": "nan"}},
        {"numbers": 3},
        {"settings": []},
        {"settings": {"a": {"b": 1}}},
        {"count": "50000"},
        {"notes": [1]},
        {"notes": ["x" * 201]},
        {"labels": "\ud800"},
        {"differing": [["grid", "places"]]},
        {"differing": [[3, "places", "steps"]]},
        {"differing": "abc"},
    ],
)
def test_a_row_that_was_changed_by_hand_is_none(changes):
    """Nobody vouches for a manifest: what is not as expected counts as absent."""
    manifest = {"identity": {"labels": "random"}, "fingerprint": "f" * 64, "sessions": [], "published": WHOLE}
    assert as_run(manifest).published == row_of("dit-xl-2-256")
    assert as_run(manifest | {"published": WHOLE | changes}).published is None
    for odd in (None, [], "x", {}):
        assert as_run(manifest | {"published": odd}).published is None


def test_a_run_keeps_its_row_and_the_report_sets_it_beside(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    """Of a small run that deviates in most; with files, online, and from its manifest."""
    small = ["--model", "DiT-XS/8", "--ckpt", tiny_checkpoint, "--vae", DIGITS / "vae", "--image-size", 64, "--num-classes", 10]
    small += ["--cfg-channels", 4, "--num-fid-samples", 22, "--per-proc-batch-size", 4, "--num-sampling-steps", 3, "--no-probe"]
    given = [*PLAIN, *map(str, small), "--preset", "dit-xl-2-256", "--ref", "digits", "--sample-dir", str(tmp_path)]

    def draw(*arguments: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["sample_ddp.py", *arguments])
        sample_ddp.main()
        return json.loads((tmp_path / f"{arguments[-1]}.json").read_text())

    found = draw(*given, "--run-name", "files")
    out = capsys.readouterr().out
    manifest = json.loads((tmp_path / "files" / "manifest.json").read_text())
    differing = manifest["published"]["differing"]
    assert (manifest["options"]["preset"], manifest["published"] | {"differing": []}) == ("dit-xl-2-256", WHOLE)
    assert ["num_sampling_steps", "250", "3"] in differing
    assert "published" not in manifest["identity"]
    assert found["published"]["name"] == "dit-xl-2-256"
    assert "this row has --num-sampling-steps 250; yours has 3" in found["published"]["deviations"]
    page = (tmp_path / "files.html").read_text()
    for text in ("beside the published row dit-xl-2-256", "differs: this row is of 50,000 images; yours are 22"):
        assert text in out
    assert "Beside the published row" in page
    assert "this row has --num-sampling-steps 250; yours has 3" in page
    assert read_result(tmp_path / "files.json").numbers
    assert Result.parse(found).published == Result.parse(found).drawn_by(Result.parse(found).run).published
    again = draw("--config", str(tmp_path / "files" / "manifest.json"), "--global-seed", "1", "--run-name", "again")
    assert again["published"]["deviations"] == found["published"]["deviations"]
    monkeypatch.setattr(sys, "argv", ["sample_ddp.py", *given, "--evaluate-online", "--run-name", "on"])
    sample_ddp.main()
    online = json.loads((tmp_path / "on-online.json").read_text())
    assert online["published"] == found["published"]


def test_without_a_row_nothing_is_said():
    assert presets.told("digits") is None
    assert presets.told(None) is None
    assert against(Run("f" * 64, {}, ()), fid(2.0), None, {"count": 1}, "inception", {}) is None
