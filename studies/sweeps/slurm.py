"""A sweep as jobs of SLURM: an array with a task for each run of a round, and a job after it that decides and goes on."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fiducial import UserError, make_folder, say, write_whole
from fiducial.studies.sweeps.state import Sweep

SCRIPT = """#!/usr/bin/env bash
set -euo pipefail
cd {cwd}
{command}
"""


def submit(sweep: Sweep, options: str, most: int | None, nproc: int | None) -> None:
    """Submit the runs that the round still lacks, and what follows it.

    Args:
        options: of sbatch, for both jobs, as text.
        most: tasks that run at once; None for no limit.

    Raises:
        UserError: if sbatch is not there, or refuses.
    """
    places, folder = sweep.pending(), sweep.folder / "jobs"
    make_folder(folder)
    same = ["--out", str(sweep.folder), *([f"--nproc-per-node={nproc}"] if nproc else [])]
    follow = [*same, f"--slurm={options}", *([f"--slurm-most={most}"] if most else [])]
    given, log = shlex.split(options), str((folder / "%x-%A_%a.log").resolve())
    after = []
    if places:
        whole = len(places) > 1 and places == list(range(places[0], places[-1] + 1))
        array = (f"{places[0]}-{places[-1]}" if whole else ",".join(map(str, places))) + (f"%{most}" if most else "")
        task = _script(folder / f"draw-{sweep.count}.sh", [*same, "--task"], ' "$SLURM_ARRAY_TASK_ID"')
        job = _sbatch([*given, f"--array={array}", "--job-name=fiducial-sweep", f"--output={log}", task])
        after = [f"--dependency=afterany:{job}"]
        say(f"job {job} draws {len(places)} runs of {sweep.count:,} images")
    script = _script(folder / f"decide-{sweep.count}.sh", [*follow, "--decide"])
    log = str((folder / "%x-%j.log").resolve())
    job = _sbatch([*given, *after, "--job-name=fiducial-sweep-decide", f"--output={log}", script])
    say(f"job {job} decides and goes on")


def _script(path: Path, arguments: Sequence[str], more: str = "") -> str:
    """A script that calls this command."""
    command = shlex.join([sys.executable, "-m", "fiducial", "sweep", *arguments]) + more
    text = SCRIPT.format(cwd=shlex.quote(str(Path.cwd())), command=command)
    write_whole(path, lambda beside: beside.write_text(text))
    return str(path)


def _sbatch(arguments: list[str]) -> str:
    """Submit a job; its number."""
    try:
        done = subprocess.run(["sbatch", "--parsable", *arguments], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError("--slurm: there is no sbatch here; leave it out to draw on this machine") from error
    if done.returncode:
        raise UserError(f"--slurm: sbatch refused ({' '.join(done.stderr.split())[:300]})")
    return done.stdout.strip().partition(";")[0]
