"""Fingerprints of released presets and of a whole run, to the letter: with others, no run begun before could be continued."""

import json

import pytest
from conftest import run_command

import sample_ddp
from sampling.config import fingerprint


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("digits", "67ee4e53a8ac561cb4baaa6f8f65dee34405a96862bdc2c9b690a3a7599edded"),
        ("dit-xl-2-256", "cc24625dafae4d70cf92192b04b67989361ae83b21ba8099ecc1c2039198f5f1"),
        ("dit-xl-2-512", "37a5d69089d55adb56497d83cceedfee5189015ca3b0b5dfa530a7be6028d5f0"),
    ],
)
def test_the_identity_of_a_preset_is_pinned(preset, expected):
    config, _ = sample_ddp.parse(["--preset", preset])
    assert fingerprint(config.identity()) == expected


def test_the_fingerprint_of_an_exact_run_is_pinned(tmp_path):
    size = ("--num-fid-samples", "2", "--per-proc-batch-size", "2", "--num-sampling-steps", "2")
    where = ("--device", "cpu", "--sample-dir", tmp_path, "--run-name", "run")
    done = run_command("sample_ddp.py", "--preset", "digits", "--exact", *size, *where)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["format"] == "fiducial-run-2"
    assert manifest["fingerprint"] == fingerprint(manifest["identity"])
    assert manifest["fingerprint"] == "6da5ecedfa07d532b0d3bf783054a11d4f595df21e361d1ebcde87f02e22bf9f"
