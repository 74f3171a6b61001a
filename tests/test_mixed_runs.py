"""Files of one run among those of another: told by each record's mark, and by the hash of all images."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import contents, options, run_command
from made_runs import make_run

import sample_ddp
from fiducial import UserError
from fiducial.sampling.commands.status import status
from fiducial.sampling.commands.verify import verify
from fiducial.sampling.run.checks import check_records
from fiducial.sampling.store import manifest as output
from fiducial.sampling.store import records
from fiducial.sampling.store.folder import MANIFEST


def damage_lines(run: Path) -> list[str]:
    return list(verify(run, lambda _: None))


@pytest.mark.parametrize("marked", [True, False])
def test_records_of_another_run_are_told(marked, tmp_path):
    """With PNGs and npz as well, so that they agree with each other; in runs from before there were marks, too."""
    ours, theirs = (make_run(tmp_path / name, seed=seed, marked=marked) for name, seed in (("ours", 0), ("theirs", 1)))
    shutil.copy(ours / MANIFEST, theirs)
    said = "is of another run than" if marked else "records other images than"
    found = status(theirs)
    assert (found.state, found.exit_code) == ("failed", 1)
    assert found.reason.startswith(f"{theirs / 'records.bin'} {said}")
    assert said in damage_lines(theirs)[0]
    with pytest.raises(UserError, match=said):
        check_records(theirs, output.read(theirs))
    done = run_command("-m", "sampling", "verify", theirs)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith("put back the files of one run")


@pytest.mark.parametrize("file", ["table", "part"])
def test_records_of_a_run_that_did_not_end_are_told(file, tmp_path):
    ours, theirs = (make_run(tmp_path / name, seed=seed) for name, seed in (("ours", 0), ("theirs", 1)))
    manifest = output.read(ours)
    manifest.sessions[0].finished, manifest.npz, manifest.merged = None, None, 0
    output.write(ours, manifest)
    assert status(ours).state == "resumable"
    if file == "table":
        shutil.copy(theirs / "records.bin", ours)
    else:
        shutil.copy(theirs / "records.bin", records.part_path(ours, 1, 0))
    assert status(ours).state == "failed"
    assert "is of another run than" in damage_lines(ours)[0]


def test_damage_is_not_taken_for_another_run(tmp_path):
    run = make_run(tmp_path)
    content = bytearray((run / "records.bin").read_bytes())
    for index, place in ((1, 9), (3, 30), (4, 53), (5, 2)):
        content[index * records.ROW.itemsize + place] ^= 1 + index
    content[6 * records.ROW.itemsize : 8 * records.ROW.itemsize] = b"\xff" * (2 * records.ROW.itemsize)
    content[8 * records.ROW.itemsize :] = bytes(records.ROW.itemsize)
    (run / "records.bin").write_bytes(content)
    assert (status(run).state, status(run).images) == ("resumable", 2)
    assert not damage_lines(run)


def test_runs_from_before_there_were_marks_are_whole(tmp_path):
    run = make_run(tmp_path, marked=False)
    assert status(run).state == "complete"
    assert not damage_lines(run)
    check_records(run, output.read(run))


def test_a_run_from_before_there_were_marks_continues(tiny_checkpoint, tmp_path, monkeypatch):
    arguments = options(tiny_checkpoint, tmp_path, num_fid_samples=9)
    monkeypatch.setattr(sys, "argv", ["sample_ddp.py", *arguments])
    sample_ddp.main()
    run, before = tmp_path / "run", contents(tmp_path)
    manifest = output.read(run)
    assert manifest.mark == int(manifest.fingerprint[:8], 16)
    rows = records.table(run, 0, 9, manifest.mark)
    manifest.records_format, manifest.sessions[0].finished, manifest.npz = None, None, None
    output.write(run, manifest)
    rows[7:] = np.zeros(1, records.ROW)
    (run / "records.bin").write_bytes(rows.tobytes())
    assert (status(run).state, status(run).images) == ("resumable", 7)
    sample_ddp.main()
    assert status(run).state == "complete"
    assert "records_format" not in json.loads((run / MANIFEST).read_text())
    assert contents(tmp_path) == before


def test_many_images_without_records_are_looked_at_at_once(tmp_path):
    """A manifest that claims a hundred million, of which a few are recorded."""
    run = make_run(tmp_path)
    manifest = output.read(run)
    output.write(run, replace(manifest, num_fid_samples=100_000_000))
    (run / "000003.png").unlink()
    assert (status(run).images, damage_lines(run)) == (9, [f"{run}/000003.png: PNG is missing"])
