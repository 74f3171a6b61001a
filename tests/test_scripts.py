"""The README's first command, on the environment that the tests run in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.skipif(not (Path(sys.prefix) / "fiducial-requirements").exists(), reason="not in an environment of scripts/setup.sh")
def test_the_demo_ends_in_a_report_and_a_second_call_skips_what_is_done(tmp_path):
    command = ["bash", "scripts/demo.sh", "--num-fid-samples", "40", "--num-sampling-steps", "2", "--sample-dir", str(tmp_path)]
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
    assert len([path for path in first if path.suffix == ".png"]) == 40
    report = next(path for path in first if path.suffix == ".html")
    assert str(report) in outputs[0]
    assert f"{report}: evaluated before" in outputs[1]
