"""--config: every option from YAML, mistakes in one sentence, and manifests that repeat their run."""

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from conftest import draw_files, options
from hypothesis import given, settings
from hypothesis import strategies as st

import fiducial
import sample_ddp
from fiducial import UserError
from fiducial.sampling.identity import Identity
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.options.file import recorded
from fiducial.sampling.store.npz import npz_path


def parse(text: str, folder: Path, *arguments: str) -> tuple[SamplingConfig, argparse.Namespace]:
    path = folder / "run.yaml"
    path.write_text(text)
    return sample_ddp.parse(["--config", str(path), *arguments])


EVERY = {
    "model": ("DiT-S/4", "DiT-S/4"),
    "ckpt": ("x y.pt", "x y.pt"),
    "vae": ("mse", "mse"),
    "image-size": ("64", "64"),
    "num-classes": ("17", "17"),
    "latent-stats": ("'mean=0:1,std=1:2'", "mean=0:1,std=1:2"),
    "latent-multiplier": ("0.5", "0.5"),
    "rounding": ("repa", "repa"),
    "num-fid-samples": ("7", "7"),
    "labels": ("[7, 7, 3-5]", "7,7,3-5"),
    "cfg-scale": ("2", "2"),
    "cfg_channels": ("4", "4"),
    "guidance-interval": ("[0, 0.7]", "0,0.7"),
    "sampler": ("ddim", "ddim"),
    "eta": ("5e-1", "0.5"),
    "num-sampling-steps": ("[10, 20]", "10,20"),
    "global_seed": ("18446744073709551615", "18446744073709551615"),
    "per-proc-batch-size": ("7", "7"),
    "device": ("cpu", "cpu"),
    "precision": ("fp16", "fp16"),
    "attention": ("math", "math"),
    "offload": ("none", "none"),
    "sample-dir": ("'~'", "~"),  # unquoted it is nothing
    "run-name": ("007", "007"),
    "hang-timeout": ("3.5", "3.5"),
    "ref": ("digits", "digits"),
    "weights": ("[inception=a.pth, dinov2=b.pth]", "inception=a.pth,dinov2=b.pth"),
    "inception-weights": ("w.pth", "w.pth"),
    "dinov2-weights": ("d.pth", "d.pth"),
    "protocol": ("dino", "dino"),
    "train": ("train", "train"),
    "class-names": ("classes.txt", "classes.txt"),
    "cache-dir": ("/shared", "/shared"),
    "network": ("diffusers", "diffusers"),
    "weights-key": ("model", "model"),
    "check": ("full", "full"),
    "guidance-by": ("inner-head", "inner-head"),
}
OF_FLOWS = {
    "sampler": ("euler-maruyama", "euler-maruyama"),
    "diffusion-form": ("linear", "linear"),
    "diffusion_norm": ("2.0", "2"),
    "last-step": ("none", "none"),
    "atol": ("1e-6", "1e-6"),
    "rtol": ("0.001", "1e-3"),
    "grid": ("[places, end=0.1, shift=1/0.3]", "places,end=0.1,shift=1/0.3"),
    "path": ("gvp", "gvp"),
    "prediction": ("x0", "x0"),
    "state": ("float64", "float64"),
    "least-time": ("0.05", "0.05"),
    "noise-scale": ("2", "2"),
    "guidance-ends": ("open", "open"),
    "cfg-schedule": ("power-cosine", "power-cosine"),
    "cfg-power": ("3", "3"),
    "guidance-ckpt": ("weak.pt", "weak.pt"),
    "vae-output": ("unit", "unit"),
    "guidance-model": ("SiT-S/2", "SiT-S/2"),
}
FLAGS = ("compile", "no-probe", "no-vae-slicing", "vae-tiling", "cuda-tuning", "no-png", "evaluate-online")


def test_every_option_can_stand_in_a_file_as_on_the_command_line(tmp_path):
    lines = [f"{name}: {in_file}" for name, (in_file, _) in EVERY.items()] + [f"{name}: true" for name in FLAGS]
    arguments = [text for name, (_, said) in EVERY.items() for text in (f"--{name.replace('_', '-')}", said)]
    arguments += [f"--{name}" for name in FLAGS]
    expected = sample_ddp.parse(arguments)
    assert parse("\n".join(lines), tmp_path) == expected
    assert parse("\n".join(f"{name}: {in_file}" for name, (in_file, _) in OF_FLOWS.items()), tmp_path) == sample_ddp.parse(
        [text for name, (_, said) in OF_FLOWS.items() for text in (f"--{name.replace('_', '-')}", said)]
    )
    others = {
        "help",
        "config",
        "dry_run",
        "allow_mixed",
        "tensorboard",
        "step",
        "preset",
        "exact",
        "tf32",
        "generator",
        "generator_options",
    }
    covered = {name.replace("-", "_").removeprefix("no_") for name in (*EVERY, *OF_FLOWS, *FLAGS)}
    assert covered == {action.dest.removeprefix("no_") for action in sample_ddp.build_parser()._actions} - others


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("exact: true", "exact", True),
        ("exact: false", "exact", False),
        ("no-exact: false", "exact", True),
        ("no_compile: yes", "compile", False),
        ("compile: off", "compile", False),
        ("labels: null", "labels", "null"),
        ("labels: 3", "labels", "3"),
        ("labels: ['mouse, grey', 3-5]", "labels", "mouse\\, grey,3-5"),
        ("run-name: 2024-01-01", "run_name", "2024-01-01"),
        ("run-name: 1e5", "run_name", "1e5"),
        ("cfg-scale: 1e1", "cfg_scale", 10.0),
        ("tf32: false", "precision", "fp32"),
        ("guidance-interval: 0.1,0.2", "guidance_interval", (0.1, 0.2)),
    ],
)
def test_values_mean_what_they_say(text, name, expected, tmp_path):
    value = getattr(parse(f"preset: digits\n{text}", tmp_path)[0], name)
    assert (value, type(value)) == (expected, type(expected))


def test_no_png_can_be_taken_back(tmp_path):
    assert parse("preset: digits\nno-png: true", tmp_path)[1].no_png
    assert not parse("preset: digits\nno-png: false", tmp_path)[1].no_png
    assert not parse("preset: digits\nno-png: true", tmp_path, "--png")[1].no_png


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(tmp_path):
    text = "preset: digits\nper-proc-batch-size: 7\nnum-sampling-steps: 9\nexact: true"
    config, _ = parse(text, tmp_path, "--num-sampling-steps", "11", "--no-exact")
    found = config.per_proc_batch_size, config.num_sampling_steps, config.exact, config.num_classes
    assert found == (7, "11", False, 10)
    assert parse("per-proc-batch-size: 7", tmp_path, "--preset", "digits")[0].per_proc_batch_size == 7


@pytest.mark.parametrize(
    ("text", "argument", "expected"),
    [
        ("precision: bf16", "--tf32", ("tf32", False, None)),
        ("precision: bf16", "--no-tf32", ("fp32", False, None)),
        ("tf32: true", "--precision=bf16", ("bf16", False, None)),
        ("precision: bf16\ncompile: true", "--exact", ("auto", True, None)),
        ("precision: bf16\ncompile: true", "--no-exact", ("bf16", False, True)),
    ],
)
def test_what_the_command_line_settles_is_not_taken_from_the_file(text, argument, expected, tmp_path):
    config, _ = parse(f"preset: digits\n{text}", tmp_path, argument)
    assert (config.precision, config.exact, config.compile) == expected


MISTAKES = [
    ("cfg-scal: 2", "cfg-scal: no such option; the closest is cfg-scale"),
    ("zzz: 2", "zzz: no such option"),
    ("config: other.yaml", "config: no such option"),
    ("dry-run: true", "dry-run: no such option"),
    ("[1]: 2", "no such option"),
    ("cfg-scale: 2\ncfg_scale: 3", "cfg_scale: given twice, before as cfg-scale"),
    ("eta: 0\neta: 0", "eta: given twice, before as eta"),
    ("compile: true\nno-compile: true", "no-compile: given twice, before as compile"),
    ("compile: 1", "compile: must be true or false, not 1"),
    ("compile: 'true'", "compile: must be true or false, not 'true'"),
    ("cfg-scale: '2'", "cfg-scale: must be a number, not '2'"),
    ("cfg-scale: true", "cfg-scale: must be a number, not true"),
    ("cfg-scale: [2]", "cfg-scale: must be a number, not a list"),
    ("cfg-scale: two", "--cfg-scale: 'two' is not a number"),
    ("num-classes: 1.5", "--num-classes: '1.5' is not a whole number"),
    ("guidance-interval: [1]", "--guidance-interval: '1' is not two numbers"),
    ("labels: {a: b}", "labels: must be text, a number or a list of them, not a mapping"),
    ("labels: [[1]]", "labels: must be text, a number or a list of them, not a list"),
    ("labels:", "labels: has no value"),
    ("vae: ~", "vae: has no value"),
    ("sampler: rk4", "--sampler: invalid choice: 'rk4'"),
    ("", "holds no options"),
    ("- a\n- b", "holds no options"),
    ("cfg-scale 2", "holds no options"),
    ("a: [", "is not YAML"),
    ("--- {eta: 0}\n--- {eta: 0}", "is not YAML"),
    ("!!python/object/apply:os.system {a: b}", "a: no such option"),
    ("[" * 5000, "is not YAML"),
    ('{"format": "fiducial-run-1"}', "is not a whole manifest of format fiducial-run-2 (its format is 'fiducial-run-1')"),
    ('{"format": "fiducial-run-2"}', "is not a whole manifest of format fiducial-run-2 (it has no num_fid_samples)"),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES)
def test_a_mistake_in_the_file_names_it_and_the_key(text, said, tmp_path):
    with pytest.raises(UserError) as error:
        parse(text, tmp_path, "--preset", "digits")
    assert str(error.value).startswith(f"--config {tmp_path / 'run.yaml'}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "No such file"), (b"\xff\xfe\x00", "cannot be read"), ("folder", "it is a folder")]
)
def test_a_file_that_cannot_be_read_is_named(content, said, tmp_path):
    path = tmp_path / "run.yaml"
    if content == "folder":
        path.mkdir()
    elif content:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"--config {path}: cannot be read .*{said}" if content != b"\xff\xfe\x00" else said):
        sample_ddp.parse(["--config", str(path)])


@st.composite
def command_lines(draw) -> list[str]:
    """Options that fit each other."""
    sampler = draw(st.sampled_from(["ddpm", "ddim", "heun", "unipc"]))
    low, high = sorted(draw(st.lists(st.floats(0, 1), min_size=2, max_size=2)))
    labels = draw(st.sampled_from(["random", "balanced", "null", "7,7,3-5", "0"]))
    chosen = {
        "sampler": sampler,
        "guidance-interval": f"{low!r},{high!r}",
        "labels": labels,
        "cfg-scale": repr(1.0 if labels == "null" else draw(st.floats(1, 1e6))),
        "eta": repr(draw(st.floats(0, 1))) if sampler == "ddim" else "0",
        "num-sampling-steps": draw(st.sampled_from(["20", "50"])),
        "global-seed": str(draw(st.integers(0, 2**64 - 1))),
        "num-fid-samples": str(draw(st.integers(2, 10**8))),
        "sample-dir": draw(st.sampled_from(["s", "a b/ü", "'q\": #", "-x"])),
        "vae": draw(st.sampled_from(["ema", "owner/name", "no", "1.0"])),
        "hang-timeout": repr(draw(st.floats(0, 1e9))),
        "precision": draw(st.sampled_from(["fp32", "bf16"])),
        "per-proc-batch-size": draw(st.sampled_from(["1", "32", "4"])),
    }
    if float(chosen["cfg-scale"]) == 1.0:
        chosen["guidance-interval"] = "0,1"
    if draw(st.booleans()):
        chosen["run-name"] = draw(st.sampled_from(["run", "007", "1e5", "no", "2024-01-01", "a.b+c"]))
    if draw(st.booleans()):
        chosen["ref"] = draw(st.sampled_from(["digits", "r.npz", "null"]))
    flags = [f"--{draw(st.sampled_from(['', 'no-']))}{name}" for name in ("compile", "vae-slicing", "vae-tiling", "png")]
    if draw(st.booleans()):
        flags = ["--exact", *(flag for flag in flags if flag != "--compile")]
        chosen |= {"precision": "fp32", "per-proc-batch-size": "4"}
    return ["--preset", "digits", *(f"--{name}={value}" for name, value in chosen.items()), *flags]


@settings(deadline=None, max_examples=60)
@given(command_lines())
def test_what_a_manifest_records_gives_the_same_options_again(tmp_path_factory, arguments):
    config, beside = sample_ddp.parse(arguments)
    folder, resolved = tmp_path_factory.mktemp("round"), replace(config, cuda_tuning=bool(config.cuda_tuning))
    assert parse(json.dumps(recorded(config, Identity(config.identity()), vars(beside)), indent=2), folder) == (resolved, beside)


def run(*arguments: str) -> Path:
    """The manifest of a run in this process."""
    config, beside = sample_ddp.parse(list(arguments))
    npz = draw_files(config, fiducial.init("cpu"), not beside.no_png, beside.hang_timeout, vars(beside))
    return npz.with_suffix("") / "manifest.json"


def unnamed(checkpoint: Path, folder: Path, *more: str) -> list[str]:
    """Arguments of a small run whose folder is named after its fingerprint."""
    given = options(checkpoint, folder, num_fid_samples=5)
    at = given.index("--run-name")
    return [*given[:at], *given[at + 2 :], *more]


@pytest.mark.parametrize("more", [[], ["--per-proc-batch-size", "3", "--no-png"], ["--labels", "null"], ["--sampler", "heun"]])
def test_a_manifest_continues_its_run_or_begins_another(more, tiny_checkpoint, tmp_path, capsys):
    path = run(*unnamed(tiny_checkpoint, tmp_path, *more))
    before = json.loads(path.read_text())
    capsys.readouterr()
    assert run("--config", str(path)) == path
    assert f"{path.parent}: 5 of 5 images are there" in capsys.readouterr().out
    again = json.loads(path.read_text())
    assert [again[name] for name in ("identity", "fingerprint", "npz")] == [
        before[name] for name in ("identity", "fingerprint", "npz")
    ]
    assert again["options"] == before["options"]
    assert path.with_name("000004.png").exists() != ("--no-png" in more)
    other = run("--config", str(path), "--global-seed", "1")
    assert other.parent.parent == tmp_path
    assert other != path
    changed = json.loads(other.read_text())["identity"]
    assert {name for name in changed if changed[name] != before["identity"][name]} == {"global_seed"}


def test_a_named_run_is_repeated_by_its_name_and_refuses_a_change(tiny_checkpoint, tmp_path):
    path = run(*options(tiny_checkpoint, tmp_path, num_fid_samples=5))
    assert run("--config", str(path)) == path
    with pytest.raises(UserError, match="belongs to a different configuration: global_seed is 0 there and 1 here"):
        run("--config", str(path), "--global-seed", "1")


def test_what_auto_came_to_is_asked_for_where_auto_means_something_else(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("fiducial.sampling.source.numerics.cpu_has_bf16", lambda: True)
    given = unnamed(tiny_checkpoint, tmp_path, "--no-vae-slicing")
    path = run(*[text for text in given if text not in ("--precision", "fp32")])
    monkeypatch.setattr("fiducial.sampling.source.numerics.cpu_has_bf16", lambda: False)
    identity = json.loads(path.read_text())["identity"]
    assert identity["precision"] == "bf16"
    config, _ = sample_ddp.parse(["--config", str(path)])
    assert (config.precision, config.compile, config.vae_slicing) == ("bf16", False, False)


def test_a_run_whose_batch_size_was_looked_for_goes_on_by_its_folder_and_number(tiny_checkpoint, tmp_path):
    """`auto` could be asked for once; the folder is named after that, and the manifest has the number."""
    path = run(*unnamed(tiny_checkpoint, tmp_path))
    folder = path.parent.rename(path.parent.with_name("DiT-XS-8-auto"))
    npz_path(path.parent).rename(npz_path(folder))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["options"]["per_proc_batch_size"] = "auto"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert run("--config", str(folder / "manifest.json")) == folder / "manifest.json"
    (copy := tmp_path / "a" / "b" / "old.json").parent.mkdir(parents=True)
    copy.write_text(json.dumps(manifest))
    config, _ = sample_ddp.parse(["--config", str(copy)])
    assert (config.per_proc_batch_size, config.run_name) == (4, None)


def test_a_generator_can_stand_in_a_file(tmp_path):
    (file := tmp_path / "options.yaml").write_text("generator: own.images:draw\ngenerator-options: [scale=1.5, kind=x]\n")
    config, _ = sample_ddp.parse(["--config", str(file)])
    assert (config.generator, config.generator_options) == ("own.images:draw", "scale=1.5,kind=x")


def test_a_manifest_without_options_is_refused(tiny_checkpoint, tmp_path):
    path = run(*options(tiny_checkpoint, tmp_path, num_fid_samples=5))
    manifest = json.loads(path.read_text())
    del manifest["options"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="it has no options"):
        sample_ddp.parse(["--config", str(path)])


def test_all_that_a_configuration_has_is_recorded(tiny_checkpoint, tmp_path):
    (names := tmp_path / "names.json").write_text(json.dumps([f"kind {number}" for number in range(10)]))
    given = {"class_names": names, "cache_dir": tmp_path, "latent_stats": "scale=0.5", "latent_multiplier": 0.5}
    path = run(*options(tiny_checkpoint, tmp_path, num_fid_samples=5, **given))
    own = {field.name for field in fields(SamplingConfig)} - {"generator", "generator_options", "own"}
    of_flows = {"path", "prediction", "grid", "least_time", "noise_scale"}  # not given here, as are these
    of_flows |= {"guidance_ckpt", "guidance_model", "vae_output"}
    assert (own - of_flows) | {"eta"} <= set(json.loads(path.read_text())["options"])
