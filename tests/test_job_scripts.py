"""What the job scripts refuse, and what they hand on, without SLURM: stubs write down what would be submitted or started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DIGITS, ROOT

SLURM = Path("scripts", "slurm")
STUBS = {
    "sbatch": 'echo "$@" >> "$SUBMITTED"; echo 7',
    "scontrol": "echo localhost",
    "srun": 'while [[ $1 == --* ]]; do shift; done; echo "$@" >> "$STARTED"',
}
REFERENCE = DIGITS / "reference.npz"


@pytest.fixture
def script(tmp_path):
    """Runs a script: exit code, standard error, lines of what was submitted, and of what was started on nodes."""
    (tmp_path / "bin").mkdir()
    for name, text in STUBS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    submitted, started = tmp_path / "submitted", tmp_path / "started"

    def run(name: str, *arguments: object, **environment: str) -> tuple[int, str, list[str], list[str]]:
        for file in (submitted, started):
            file.write_text("")
        names = {"FIDUCIAL_VENV": sys.prefix, "SAMPLE_DIR": str(tmp_path), "SUBMITTED": str(submitted), "STARTED": str(started)}
        names["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(SLURM / name), *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **names, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stderr, submitted.read_text().splitlines(), started.read_text().splitlines()

    return run


IN_A_JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost"}
SWEEP = ("sweep", "1.0 2.0", "0", REFERENCE, "--preset", "digits")


def test_a_sweeps_options_reach_both_jobs(script, tmp_path):
    code, err, submitted, _ = script("submit_sweep.sh", *SWEEP, "--cache-dir", tmp_path, "--", "--metrics", "fid")
    assert (code, err) == (0, "")
    drawing, evaluating = submitted
    assert drawing.endswith(f"sweep.sbatch sweep 1.0 2.0 0 --preset digits --cache-dir {tmp_path}")
    runs = "sweep-cfg-1.0-seed-0 sweep-cfg-2.0-seed-0"
    assert evaluating.endswith(f"evaluate.sbatch {REFERENCE} {runs} --cache-dir {tmp_path} --metrics fid")


def test_evaluating_hands_options_to_calc(script, tmp_path):
    for run in ("a", "b"):
        (tmp_path / f"{run}.npz").touch()
    code, err, _, started = script("evaluate.sbatch", REFERENCE, "a", "b", "--cache-dir", "/shared", **IN_A_JOB)
    assert (code, err) == (0, "")
    said = "-m evaluation calc {0}.npz --ref {1} --json {0}.json --html {0}.html --cache-dir /shared"
    for run, line in zip(("a", "b"), started, strict=True):
        assert line.startswith("torchrun ")
        assert line.endswith(said.format(tmp_path / run, REFERENCE))


NOTHING = [
    ("submit_sweep.sh", ("sweep", "1.0", "0", "none.npz"), {}, "--ref none.npz: no such file or folder"),
    ("submit_sweep.sh", (*SWEEP, "--", "--no-such"), {}, "unrecognized arguments: --no-such"),
    ("submit_sweep.sh", (*SWEEP, "--", "--metrics", "vid"), {}, "--metrics vid: no such metric"),
    ("submit_sweep.sh", (*SWEEP, "--", "--metrics", "sfid"), {}, "no spatial features"),
    ("submit_sweep.sh", SWEEP, {"FIDUCIAL_ACTIVATE": "/none/activate"}, "FIDUCIAL_ACTIVATE: there is no file /none/activate"),
    ("submit_sweep.sh", SWEEP, {"FIDUCIAL_VENV": "/none"}, "there is no /none/bin/activate; "),
    ("submit_sweep.sh", ("sweep", "", "0", REFERENCE), {}, 'there is nothing to draw: the guidance scales are ""'),
    ("submit_sweep.sh", ("sweep",), {}, "expected NAME, scales, seeds and a reference"),
    (
        "one_node.sbatch",
        ("run",),
        {"FIDUCIAL_ACTIVATE": "source /none/conda.sh && conda activate x"},
        "FIDUCIAL_ACTIVATE: this failed",
    ),
    (
        "one_node.sbatch",
        ("run",),
        {"FIDUCIAL_CONTAINER": "/none/apptainer exec x.sif"},
        "there is no command /none/apptainer here",
    ),
    ("submit_sweep.sh", (*SWEEP, "--", "--json", "all.json"), {}, "--json: result and report of each run are written beside"),
    ("evaluate.sbatch", (REFERENCE, "here", "--html=x.html"), {}, "--html=x.html: result and report of each run are written"),
    ("evaluate.sbatch", (REFERENCE,), {}, "no run is named after the reference"),
    ("evaluate.sbatch", (REFERENCE, "here", "absent"), {}, "there is no {}/absent.npz; SAMPLE_DIR names the folder of runs"),
]


@pytest.mark.parametrize(("name", "arguments", "environment", "said"), NOTHING)
def test_what_is_known_before_is_refused_before_anything_is_drawn(name, arguments, environment, said, script, tmp_path):
    (tmp_path / "here.npz").touch()
    code, err, submitted, started = script(name, *arguments, **{**IN_A_JOB, "SLURM_CPUS_PER_TASK": "1"}, **environment)
    assert code in (1, 2)
    assert said.replace("{}", str(tmp_path)) in err
    assert (submitted, started) == ([], [])
    assert "Traceback" not in err


def test_processes_that_share_a_core_are_noted(script, tmp_path):
    (tmp_path / "a.npz").touch()
    _, err, *_ = script("evaluate.sbatch", REFERENCE, "a", **IN_A_JOB, PROCESSES="8")
    assert "note: 8 processes of a node share 1 CPU(s); give sbatch --cpus-per-task" in err
    _, err, *_ = script("evaluate.sbatch", REFERENCE, "a", **IN_A_JOB, PROCESSES="8", SLURM_CPUS_PER_TASK="64")
    assert err == ""
