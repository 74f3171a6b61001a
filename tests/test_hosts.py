"""Two hosts, each with its own network, process numbers and name, draw one run; one of them is cut off in the middle."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, run_command

from fiducial.sampling.commands.status import status
from fiducial.sampling.commands.verify import verify

ENDS_WITHIN = 45  # seconds after which a job that should have ended counts as hanging; 15 of them are the beats it waits for
NAMES = ("fiducial-a", "fiducial-b")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """The addresses of two hosts with one cable between them."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("network namespaces need ip (Debian's iproute2) and unshare")
    if os.geteuid():
        pytest.skip("network namespaces need root")
    net = f"10.{os.getpid() // 256 % 256}.{os.getpid() % 256}"
    addresses = f"{net}.1", f"{net}.2"
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
        ip("netns", "add", name)
    try:
        ip("link", "add", "cable-a", "netns", NAMES[0], "type", "veth", "peer", "name", "cable-b", "netns", NAMES[1])
        for name, cable, address in zip(NAMES, ("cable-a", "cable-b"), addresses, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            for device in (cable, "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield addresses
    finally:
        for name in NAMES:
            ip("netns", "del", name)


def of_a_run(checkpoint: Path) -> list[str]:
    """Options of a run whose images cost little."""
    network = ["--model", "DiT-XS/8", "--ckpt", str(checkpoint), "--no-probe"]  # its weights are random
    return ["--preset", "digits", *network, "--num-fid-samples", "120"]


def start(host: int, addresses: tuple[str, str], folder: Path, arguments: list[str], before: str = "") -> subprocess.Popen:
    """torchrun on one of the hosts, with two ranks; its output goes to a file named after the host."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2", f"--node-rank={host}"]
    torchrun += [f"--master-addr={addresses[0]}", "--master-port=29511", f"--local-addr={addresses[host]}"]
    command = f"hostname {NAMES[host]} && {before}exec " + " ".join([*torchrun, "sample_ddp.py", *arguments])
    with open(folder / NAMES[host], "a") as log:
        return subprocess.Popen(
            ["ip", "netns", "exec", NAMES[host], "unshare", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c", command],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"cable-{'ab'[host]}"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


@pytest.mark.long
def test_a_host_that_is_cut_off_ends_the_job_and_a_restart_finishes_it(hosts, tiny_checkpoint, tmp_path):
    choices = [
        *of_a_run(tiny_checkpoint),
        "--per-proc-batch-size",
        "4",
        "--num-sampling-steps",
        "250",
        "--exact",
        "--run-name",
        "run",
    ]
    arguments = [*choices, "--ref", "digits", "--sample-dir", str(tmp_path)]
    run = tmp_path / "run"
    jobs = [start(host, hosts, tmp_path, arguments) for host in (0, 1)]
    until = time.monotonic() + 120
    while not (run / "manifest.json").exists() or status(run).images < 12:
        assert time.monotonic() < until, (tmp_path / NAMES[0]).read_text()
        time.sleep(0.05)
    ip("-n", NAMES[1], "link", "set", "cable-b", "down")
    said = []
    for job, name in zip(jobs, NAMES, strict=True):
        assert job.wait(timeout=ENDS_WITHIN) != 0
        said.append((tmp_path / name).read_text())
    left = status(run)
    assert 12 <= left.images < 120
    assert (left.state, left.exit_code) == ("resumable", 75)
    # Each host says it once, in its own words; neither could have told the other.
    assert (
        said[0].partition("Root Cause")[0].count("on fiducial-b) has not been heard of for 15 s; the same command continues") == 1
    )
    assert said[1].partition("Root Cause")[0].count("no answer from rank 0's host for 15 s; the same command continues") == 1
    assert "error (rank 0 on fiducial-a)" in said[0]
    assert "error (rank 2 on fiducial-b)" in said[1]
    assert "15 s" in json.loads((run / "ended.json").read_text())["message"]

    ip("-n", NAMES[1], "link", "set", "cable-b", "up")
    jobs = [start(host, hosts, tmp_path, arguments) for host in (0, 1)]
    for job, name in zip(jobs, NAMES, strict=True):
        assert job.wait(timeout=120) == 0, (tmp_path / name).read_text()
    assert status(run).state == "complete"
    last = json.loads((run / "manifest.json").read_text())["sessions"][-1]
    assert (last["hosts"], last["world_size"], last["images_before"]) == (list(NAMES), 4, left.images)
    assert (tmp_path / "run.html").exists()
    assert not list(verify(run, lambda _: None))
    undisturbed = run_command("sample_ddp.py", *choices, "--sample-dir", tmp_path / "undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert (tmp_path / "run.npz").read_bytes() == (tmp_path / "undisturbed" / "run.npz").read_bytes()


@pytest.mark.long
def test_a_folder_that_is_not_shared_is_one_sentence(hosts, tiny_checkpoint, tmp_path):
    """The second host has a disk of its own where the run is to go."""
    (runs := tmp_path / "runs").mkdir()
    arguments = [*of_a_run(tiny_checkpoint), "--sample-dir", str(runs), "--run-name", "run"]
    jobs = [start(0, hosts, tmp_path, arguments), start(1, hosts, tmp_path, arguments, f"mount -t tmpfs tmpfs {runs} && ")]
    for job in jobs:
        assert job.wait(timeout=120) != 0
    said = "".join((tmp_path / name).read_text().partition("Root Cause")[0] for name in NAMES)
    assert said.count("must be a folder that all nodes share") == 1
    assert f"on fiducial-b does not see {runs}/run of rank 0" in said
    assert not list(runs.rglob("*.png"))
