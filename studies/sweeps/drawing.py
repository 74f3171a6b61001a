"""Drawing the runs of a round, by `fiducial sample` in processes of their own.

    python -m fiducial.studies.sweeps.drawing

is that process: it reads lists of arguments from standard input, one in JSON a line, and draws each run in turn, so that a round
of small runs starts up once.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import fiducial
from fiducial import RESUMABLE, UserError, user_errors
from fiducial.studies.sweeps.state import Sweep

ROOT = Path(__file__).resolve().parents[2]


def processes(given: int | None) -> int:
    """As many as were asked for, else one a GPU, or one."""
    if given is None:
        import torch

        return max(1, torch.cuda.device_count())
    if given < 1:
        raise UserError(f"--nproc-per-node {given}: must be at least 1")
    return given


def draw(sweep: Sweep, places: list[int], nproc: int) -> None:
    """Draw and evaluate these of a sweep's `jobs`, and keep their results.

    Raises:
        UserError: if a run failed, which has said why itself.
        KeyboardInterrupt: at Ctrl-C, once the run has ended in order.
    """
    if nproc > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc}", "-m", "fiducial", "sample"]
        for place in places:
            _wait(sweep, place, subprocess.Popen([sys.executable, *launcher, *sweep.arguments(place)], env=_environment()))
            sweep.keep(place)
        return
    command = [sys.executable, "-m", "fiducial.studies.sweeps.drawing"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=_environment(), **pipes) as worker:
        for place in places:
            fiducial.say(f"run {place + 1} of {len(sweep.jobs)}, to {sweep.count:,} images")
            try:
                worker.stdin.write(json.dumps(sweep.arguments(place)) + "\n")
                worker.stdin.flush()
                done = worker.stdout.readline()
            except BrokenPipeError:
                done = ""
            except KeyboardInterrupt:
                worker.wait()  # it has been interrupted as well, and ends its run in order
                raise
            if not done:
                _wait(sweep, place, worker)
            sweep.keep(place)
        worker.stdin.close()


def _environment() -> dict[str, str]:
    """With the package in reach, whatever folder the command is called in."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def _wait(sweep: Sweep, place: int, process: subprocess.Popen) -> None:
    """Wait for the end; UserError if it is not that of a run that was drawn."""
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    if code or process.stdin:
        what = "was stopped" if code in (RESUMABLE, 130) or code < 0 else "failed"
        one, seed = sweep.jobs[place]
        raise UserError(f"the run of {one.name}, seed {seed} {what} (exit code {code}); the same command continues the sweep")


def work() -> None:
    """Draw the run of each line; after each an empty line goes to standard output."""
    from fiducial.studies.sample import main

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a run says stays apart from that
    for line in sys.stdin:
        sys.argv[1:] = json.loads(line)
        main()
        print(file=answers, flush=True)


if __name__ == "__main__":
    with user_errors():
        work()
