"""The job scripts, run by a real SLURM of one machine: preempted, requeued, continued, followed by the evaluation."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from fiducial.sampling.commands.status import status

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
CONFIGURATION = """
ClusterName=fiducial
SlurmctldHost=localhost
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=20
MinJobAge=3600
FirstJobId={first_job}
NodeName=localhost CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=scavenge Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE State=UP GraceTime=20
PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=INFINITE State=UP PreemptMode=OFF
"""


class Cluster:
    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
            **{"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf"), "FIDUCIAL_VENV": sys.prefix, "OMP_NUM_THREADS": "1"},
        }

    def run(self, *command: str | Path, **environment: str) -> str:
        arguments = [str(part) for part in command]
        done = subprocess.run(arguments, cwd=ROOT, env=self.environment | environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: str | Path, **environment: str) -> str:
        environment["SAMPLE_DIR"] = str(self.folder / "samples")
        return self.run("sbatch", "--parsable", f"--output={self.folder}/job-%j.log", *arguments, **environment)

    def submit_preemptible(self, run: str, checkpoint: Path) -> str:
        return self.submit("--cpus-per-task=2", "scripts/slurm/preemptible.sbatch", run, *options(checkpoint), PROCESSES="2")

    def job(self, number: str) -> dict[str, str]:
        words = self.run("scontrol", "show", "job", "--oneliner", number).splitlines()[-1].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, number: str, state: str, seconds: float = 120) -> dict[str, str]:
        until = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] != state:
            finished = job["JobState"] in ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "COMPLETED")
            assert not finished, f"{job['JobState']}: {self.logs()}"
            assert time.monotonic() < until, f"{job['JobState']}: {self.logs()}"
            time.sleep(0.2)
        return job

    def wait_for_images(self, run: str, images: int) -> None:
        folder, until = self.folder / "samples" / run, time.monotonic() + 60
        while not (folder / "manifest.json").exists() or status(folder).images < images:
            assert time.monotonic() < until, self.logs()
            time.sleep(0.05)

    def logs(self) -> str:
        paths = sorted(self.folder.glob("job-*.log")) or sorted(self.folder.glob("daemon-*.log"))
        return "\n".join(f"{path.name}: {path.read_text()}" for path in paths)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if missing := [name for name in NEEDED if shutil.which(name, path=PATH) is None]:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian's slurm-wlm and munge)")
    if os.geteuid():
        pytest.skip("a SLURM of its own needs root")
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    folder.chmod(0o755)
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first_job = 100 * worker + 1  # of each worker's own: the port of a rendezvous is the job's number
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, ports=ports, first_job=first_job))
    cluster, daemons = Cluster(folder), []
    munge = folder / "munge"
    munge.mkdir()
    (munge / "key").write_bytes(os.urandom(128))
    for path in (munge, munge / "key"):
        shutil.chown(path, "munge", "munge")
    (munge / "key").chmod(0o400)
    authentication = ["runuser", "-u", "munge", "--", "munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
    authentication += [
        f"--key-file={munge}/key",
        f"--pid-file={munge}/pid",
        f"--seed-file={munge}/seed",
        f"--log-file={munge}/log",
    ]
    folder.chmod(0o777)
    try:
        for command in (authentication, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "localhost"]):
            with open(folder / f"daemon-{len(daemons)}.log", "w") as log:
                daemons.append(subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log))
            time.sleep(1)
        until = time.monotonic() + 60
        while "idle" not in subprocess.run(["sinfo", "-h"], env=cluster.environment, capture_output=True, text=True).stdout:
            assert time.monotonic() < until, cluster.logs()
            time.sleep(0.5)
        yield cluster
    finally:
        subprocess.run(["scancel", "--user=root"], env=cluster.environment, capture_output=True)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def options(checkpoint: Path, steps: int = 100) -> list[str]:
    choices = ["--preset", "digits", "--model", "DiT-XS/8", "--ckpt", str(checkpoint), "--num-fid-samples", "90", "--no-probe"]
    return [*choices, "--per-proc-batch-size", "4", "--num-sampling-steps", str(steps), "--exact"]


def test_a_preempted_job_goes_on_where_it_was(cluster, tiny_checkpoint):
    """An urgent job takes the machine; SLURM stops ours with SIGTERM, requeues it, and it continues."""
    job = cluster.submit_preemptible("preempted", tiny_checkpoint)
    cluster.wait_for_images("preempted", 8)
    urgent = cluster.submit("--partition=urgent", "--cpus-per-task=2", "--wrap=sleep 1")
    cluster.wait_for(urgent, "COMPLETED")
    found = status(cluster.folder / "samples" / "preempted")
    assert (found.state, found.reason) == ("resumable", "stopped by SIGTERM")
    assert 8 <= found.images < 90
    assert cluster.wait_for(job, "COMPLETED", 180)["Restarts"] == "1"
    after = status(cluster.folder / "samples" / "preempted")
    assert (after.state, after.images, after.sessions) == ("complete", 90, 2)


@pytest.mark.long
def test_a_job_that_is_too_short_requeues_itself(cluster, tiny_checkpoint):
    """SIGUSR1, as SLURM sends it before the time limit, reaches the ranks through srun and torchrun."""
    job = cluster.submit_preemptible("short", tiny_checkpoint)
    cluster.wait_for_images("short", 8)
    cluster.run("scancel", "--signal=USR1", job)
    assert cluster.wait_for(job, "COMPLETED", 180)["Restarts"] == "1"
    after = status(cluster.folder / "samples" / "short")
    assert (after.state, after.sessions) == ("complete", 2)
    assert "stopped by SIGUSR1 (rank " in (cluster.folder / f"job-{job}.log").read_text()


@pytest.mark.parametrize("script", ["one_node.sbatch", pytest.param("many_nodes.sbatch", marks=pytest.mark.long)])
def test_a_job_on_whole_nodes(script, cluster, tiny_checkpoint):
    """The machine is one node; the rendezvous is that of many. A refused job fails with a sentence, and is not requeued."""
    nodes = ["--nodes=1", "--cpus-per-task=2"]
    job = cluster.submit(*nodes, f"scripts/slurm/{script}", script, *options(tiny_checkpoint, steps=3), PROCESSES="2")
    cluster.wait_for(job, "COMPLETED")
    assert status(cluster.folder / "samples" / script).state == "complete"
    refused = cluster.submit(*nodes, f"scripts/slurm/{script}", script, *options(tiny_checkpoint, steps=4), PROCESSES="2")
    until = time.monotonic() + 60
    while cluster.job(refused)["JobState"] in ("PENDING", "RUNNING", "COMPLETING"):
        assert time.monotonic() < until, cluster.logs()
        time.sleep(0.2)
    assert cluster.job(refused)["JobState"] == "FAILED"
    assert "num_sampling_steps is 3 there and 4 here" in (cluster.folder / f"job-{refused}.log").read_text()


CONDA = """
conda() {
    export PATH="$ENVIRONMENTS/$2/bin:$PATH" CONDA_SHLVL="$NEVER_SET"
}
"""


@pytest.mark.parametrize("by", ["a line", pytest.param("a file", marks=pytest.mark.long), "a container"])
def test_a_job_in_an_environment_that_is_no_virtual_one(by, cluster, tiny_checkpoint):
    """As conda's, whose script uses variables that are not set; and behind a command, as a container's programs are."""
    place = cluster.folder / "environments" / by.replace(" ", "-")
    place.mkdir(parents=True)
    (place / "dit").symlink_to(sys.prefix)
    (place / "conda.sh").write_text(CONDA)
    (place / "activate.sh").write_text(f"source {place}/conda.sh\nconda activate dit\n")
    (place / "contained").write_text(f'#!/usr/bin/env bash\nPATH={place}/dit/bin:$PATH exec "$@"\n')
    (place / "contained").chmod(0o755)
    ways = {
        "a line": {"FIDUCIAL_ACTIVATE": f"source {place}/conda.sh && conda activate dit"},
        "a file": {"FIDUCIAL_ACTIVATE": f"{place}/activate.sh"},
        "a container": {"FIDUCIAL_CONTAINER": f"{place}/contained"},
    }
    without = [part for part in PATH.split(":") if not (Path(part) / "torchrun").exists()]
    names = {"PATH": ":".join(without), "FIDUCIAL_VENV": "/none", "ENVIRONMENTS": str(place), **ways[by]}
    run = place.name
    job = cluster.submit("--cpus-per-task=2", "scripts/slurm/one_node.sbatch", run, *options(tiny_checkpoint, steps=3), **names)
    cluster.wait_for(job, "COMPLETED")
    assert status(cluster.folder / "samples" / run).state == "complete"
    assert f"{run}: complete" in (cluster.folder / f"job-{job}.log").read_text()


@pytest.mark.long
def test_a_sweep_is_followed_by_its_evaluation(cluster, tiny_checkpoint):
    """Options reach the evaluation: features go to the cache that both are told of, and FID alone is computed."""
    cache = cluster.folder / "cache"
    choices = [*options(tiny_checkpoint, steps=3), "--cache-dir", cache, "--", "--metrics", "fid"]
    said = cluster.run(
        *("bash", "scripts/slurm/submit_sweep.sh", "sweep", "1.0 2.0", "0 7", "digits", *choices),
        SBATCH_OPTIONS=f"--output={cluster.folder}/job-%j.log",
        SAMPLE_DIR=str(cluster.folder / "samples"),
    )
    cluster.wait_for(said.rpartition(" ")[2], "COMPLETED", 240)
    reports = sorted(path.name for path in (cluster.folder / "samples").glob("sweep-*.html"))
    assert reports == [f"sweep-cfg-{scale}-seed-{seed}.html" for scale in ("1.0", "2.0") for seed in (0, 7)]
    result = json.loads((cluster.folder / "samples" / "sweep-cfg-2.0-seed-7.json").read_text())
    assert set(result["metrics"]) == {"fid-digits"}
    assert result["fiducial"]["command"].endswith(f"--cache-dir {cache} --metrics fid")
    assert len(list(cache.iterdir())) == 4
