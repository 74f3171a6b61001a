"""The README's first command, on the environment that the tests run in; and the benchmark's machinery."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_command
from families import TOLERANCE, lively

from fiducial.sampling.source.numerics import cpu_has_bf16
from scripts import benchmark_runs, benchmark_sampling, gpu_acceptance, plain_networks


@pytest.mark.skipif(not (Path(sys.prefix) / "fiducial-requirements").exists(), reason="not in an environment of scripts/setup.sh")
def test_the_demo_ends_in_a_report_and_a_second_call_skips_what_is_done(tmp_path):
    options = ["--num-fid-samples", "40", "--num-sampling-steps", "2", "--no-compile", "--sample-dir", str(tmp_path)]
    command = ["bash", "scripts/demo.sh", *options]
    outputs = []
    for _ in range(2):
        environment = {**os.environ, "FIDUCIAL_VENV": sys.prefix}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
        stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix in (".png", ".npz", ".html")}
        if len(outputs) == 1:
            first = stamps
    assert stamps == first
    assert len([path for path in first if path.suffix == ".png"]) == 40 + 1  # and the sheet of the newest
    report = next(path for path in first if path.suffix == ".html")
    assert str(report) in outputs[0]
    assert f"{report}: evaluated before" in outputs[1]


@pytest.mark.parametrize("only", ["precision-recall", pytest.param("extraction", marks=pytest.mark.long)])
def test_the_benchmark_measures_every_contestant(only, tmp_path):
    """At a size that says nothing about speed, which no test measures."""
    sizes = ["--images", "2", "--samples", "60", "--reference", "50", "--repeats", "1", "--threads", "1"]
    outputs = ["--json", tmp_path / "b.json", "--markdown", tmp_path / "b.md"]
    done = run_command("scripts/benchmark.py", "evaluation", "--only", only, *sizes, *outputs, timeout=300)
    assert done.returncode == 0, done.stderr
    medians = json.loads((tmp_path / "b.json").read_text())["medians"][only]
    assert {"torch-fidelity"} < set(medians)
    assert all(measured["seconds"] > 0 for measured in medians.values())
    assert (tmp_path / "b.md").read_text().count("\n| ") >= len(medians)


def test_the_benchmarks_json_on_standard_output_is_alone_there():
    sizes = ["--samples", "60", "--reference", "50", "--repeats", "1", "--threads", "1"]
    done = run_command("scripts/benchmark.py", "evaluation", "--only", "precision-recall", *sizes, "--json", "-", timeout=300)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["medians"]) == {"precision-recall"}
    assert "| " in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("only", ["denoising", "pipeline", "latents", "ranks"])
def test_the_benchmark_of_drawing_measures_every_contestant(only, tmp_path):
    sizes = ["--images", "1", "--model", "DiT-S/8", "--steps", "2", "--repeats", "1", "--threads", "1"]
    done = run_command("scripts/benchmark.py", "sampling", "--only", only, *sizes, "--json", tmp_path / "b.json", timeout=600)
    assert done.returncode == 0, done.stderr
    medians = json.loads((tmp_path / "b.json").read_text())["medians"][only]
    assert all(measured["seconds"] > 0 for measured in medians.values())
    for measured in medians.values():
        assert 0 < measured.get("of ceiling", 0.5) < 2
        assert 0 < measured.get("relative error", 0.01) < 0.1


@pytest.mark.long
def test_stand_ins_are_written_with_commands_that_take_them(tmp_path):
    """The help says what it does; a mistake is one sentence, and nothing is written."""
    told = run_command("scripts/stand_ins.py", "--help")
    assert told.returncode == 0
    assert "FOLDER/inception.pth" in told.stdout
    for options, said in (
        (["--model", "DiT-XS/3"], "--model DiT-XS/3: no such model"),
        (["--image-size", "100"], "--image-size 100: must be a multiple of 64 for DiT-XS/8"),
        (["--images", "1"], "--images 1: must be at least 2"),
    ):
        done = run_command("scripts/stand_ins.py", tmp_path / "new", *options)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {said}")
        assert not (tmp_path / "new").exists()
    done = run_command("scripts/stand_ins.py", tmp_path / "new", "--images", "8")
    assert done.returncode == 0, done.stderr
    evaluating, drawing = (shlex.split(line)[1:] for line in done.stdout.splitlines()[1:])
    done = run_command(*evaluating, "--metrics", "fid")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("metric")
    small = "--per-proc-batch-size", "4", "--num-sampling-steps", "2", "--exact", "--sample-dir", tmp_path / "runs"
    done = run_command(*drawing, *small)
    assert done.returncode == 0, done.stderr
    assert "FID" in done.stdout
    assert run_command("scripts/stand_ins.py", tmp_path / "new").returncode == 2  # it is there


@pytest.mark.long
def test_ranks_of_the_scaling_benchmark_meet():
    assert benchmark_runs.start_ranks(12, 1000) == [0] * benchmark_runs.PROCESSES


@pytest.mark.parametrize(("model", "multiplications"), [("DiT-XL/2", 118.6e9), ("DiT-B/2", 23.0e9), ("DiT-S/8", 0.36e9)])
def test_operations_are_those_of_the_paper(model, multiplications):
    """Of one forward at 256 x 256, times two halves of guidance, times two because additions count as well."""
    work = benchmark_sampling.Drawing(Path("unused"), model, 3, 1, "cpu")
    assert benchmark_sampling.operations(work) == pytest.approx(3 * 2 * 2 * multiplications, rel=0.03)


@pytest.mark.parametrize("model", ["SiT-XS/2", "LightningDiT-XS/1", "JiT-XS/8"])
@torch.no_grad()
def test_the_plain_writings_are_of_the_same_networks(model):
    work = benchmark_sampling.Drawing(Path("unused"), model, 3, 1, "cpu", 64)
    network, x = lively(work.build()), work.noise()
    t, y = torch.tensor([0.0, 0.4, 1.0]), torch.tensor([0, 7, benchmark_sampling.CLASSES])
    expected = network(x, t, y)
    found = plain_networks.of_model(model)(network.state_dict(), x, t, y)
    assert (found - expected).abs().max() < TOLERANCE * expected.abs().max()


def test_a_benchmark_that_cannot_be_run_is_one_sentence():
    done = run_command("scripts/benchmark.py", "evaluation", "--repeats", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --repeats 0: must be at least 1\n"
    for option, name, said in (
        ("--json", "x.md", "--json x.md: what is written there is .json, not .md"),
        ("--markdown", "x.json", "--markdown x.json: what is written there is .md, not .json"),
        ("--json", "no/such/x.json", "--json no/such/x.json: it is a folder, or its folder is not there"),
    ):
        done = run_command("scripts/benchmark.py", "evaluation", option, name)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {said}")
    done = run_command("scripts/benchmark.py", "sampling", "--model", "DiT-S/8", "--image-size", "100")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --image-size 100: must be a multiple of 64 for DiT-S/8\n"
    done = run_command("scripts/benchmark.py", "sampling", "--only", "plain", "denoising", "--model", "JiT-B/16")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --model JiT-B/16: no such model; choose from DiT-")
    done = run_command("scripts/benchmark.py", "sampling", "--options=--no-compile --cfg-scale high")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: argument --cfg-scale: 'high' is not a number (see --help)\n"


@pytest.mark.parametrize(
    ("script", "options", "said"),
    [
        ("train_demo.py", ["--stages", "all"], "argument --stages: invalid choice: 'all'"),
        ("train_demo.py", ["--out", "{file}"], "--out {file}: {file} cannot be written (Not a directory)"),
        ("train_demo.py", ["--out", "{folder}", "--stages", "dit"], "--stages dit: {folder} has no vae"),
        ("train_demo.py", ["--out", "{folder}", "--stages", "dit", "vae"], "--stages dit: {folder} has no vae"),
        ("train_demo.py", ["--out", "{folder}", "--stages", "sit"], "--stages sit: {folder} has no vae"),
        ("measure_demo.py", ["--grid", "{folder}/grid.jpg"], "--grid {folder}/grid.jpg: what is written there is .png"),
        ("measure_demo.py", ["--preset", "digits-flow", "--sampler", "ddpn"], "--sampler ddpn: no such sampler"),
        ("measure_demo.py", ["--preset", "dit-xl-2-256"], "argument --preset: invalid choice: 'dit-xl-2-256'"),
        ("measure_demo.py", ["--grid", "{folder}/no/grid.png"], "--grid {folder}/no/grid.png: it is a folder, or its folder"),
    ],
)
def test_what_the_demo_cannot_be_made_with_is_told_at_once(script, options, said, tmp_path):
    (file := tmp_path / "file").write_text("")
    (folder := tmp_path / "folder").mkdir()
    names = {"file": file, "folder": folder}
    done = run_command(f"scripts/{script}", *(option.format(**names) for option in options))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: {said.format(**names)}")
    assert not list(folder.iterdir())


def test_what_is_run_on_a_gpu_works_on_a_cpu(tmp_path):
    """Each section gives rows, without an error; so that it works the first time that there is a GPU."""
    outputs = ["--json", tmp_path / "gpu.json", "--markdown", tmp_path / "gpu.md"]
    done = run_command("scripts/gpu_acceptance.py", "--device", "cpu", "--small", *outputs, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [name for name, section in found.items() if section["ended"] or not section["rows"]] == []
    assert {row["outcome"] for row in found["tests"]["rows"]} == {"skipped"}
    ways = [row["finding"] for row in found["verification"]["rows"] if row["finding"].startswith(("passes: ", "FAILS: "))]
    assert all(line.startswith("passes: ") for line in ways)
    assert len(ways) == 2 * cpu_has_bf16()
    assert all(row["ms"] > 0 for row in found["denoiser"]["rows"][1:])
    assert found["inception"]["rows"][0]["relative error to the CPU"] == 0
    assert (tmp_path / "gpu.md").read_text().count("\n## ") == len(found) - 1


def test_a_section_that_takes_too_long_takes_no_other_along(monkeypatch, tmp_path):
    found = tmp_path / "gpu.json"
    slow = replace(gpu_acceptance.SECTIONS["machine"], seconds=0.0)
    monkeypatch.setitem(gpu_acceptance.SECTIONS, "machine", slow)
    monkeypatch.setattr(sys, "argv", ["", "--device", "cpu", "--only", "machine", "--json", str(found)])
    assert gpu_acceptance.main() == 1
    assert json.loads(found.read_text())["machine"]["ended"] == "ended after its 0 s"


def test_a_row_that_fails_is_told_beside_the_others():
    def measure() -> dict:
        raise ValueError("no such shape")

    assert gpu_acceptance.attempt(measure) == {"error": "ValueError: no such shape"}


def test_all_sections_have_nine_minutes():
    assert sum(section.seconds for section in gpu_acceptance.SECTIONS.values()) <= 9 * 60
