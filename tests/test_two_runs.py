"""Two runs of one group, as of a script that draws twice: the second hears nothing of what the first one left in the store."""

import json

import numpy as np
from conftest import ROOT, options, run_command
from torch.distributed import HashStore

from fiducial import Group, own_process

TWICE = """
import sys
import fiducial
from fiducial.sampling.options.parser import parse
from fiducial.sampling.run import session
from fiducial.sampling.run.image_files import ImageFiles
with fiducial.user_errors(), fiducial.init("cpu") as group:
    for count in ("6", "10"):
        config, _ = parse([*sys.argv[1:], "--num-fid-samples", count, "--global-seed", count, "--run-name", count])
        session.draw(config, group, ImageFiles(False))
"""


def test_two_runs_of_one_group(tiny_checkpoint, tmp_path, monkeypatch):
    (tmp_path / "twice.py").write_text(TWICE)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    given = options(tiny_checkpoint, tmp_path, num_sampling_steps=2, per_proc_batch_size=2)
    done = run_command(tmp_path / "twice.py", *given, "--exact", ranks=2)
    assert done.returncode == 0, done.stderr
    for count in (6, 10):
        assert len(np.load(tmp_path / f"{count}.npz")["arr_0"]) == count
        (session,) = json.loads((tmp_path / str(count) / "manifest.json").read_text())["sessions"]
        assert (session["images_drawn"], session["images_redrawn"], session["world_size"]) == (count, 0, 2)


def test_what_is_asked_again_is_answered_anew():
    store, fellows = HashStore(), [{**own_process(), "launcher": None}] * 2
    ranks = [Group(rank, 2, rank, "0", None, store, fellows) for rank in (0, 1)]
    for turn in ("first", "second"):
        scopes = [group.scope() for group in ranks]
        assert [group.once_per_node(["path"], lambda turn=turn: turn) for group in scopes] == [turn, turn]
        assert [group.counter().add(1) for group in scopes] == [1, 2]
        assert [group.once(lambda turn=turn: turn) for group in ranks] == [turn, turn]
        assert [group.gather([turn, group.rank]) for group in reversed(ranks)] == [None, [[turn, 0], [turn, 1]]]
