"""What is recorded of each image, on files."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from fiducial.sampling.store import records


def rows(indices, seed: int = 0) -> np.ndarray:
    return np.concatenate([records.row(index, bytes([seed, index % 256]), index, (7, 9)) for index in indices])


def write(folder, session: int, rank: int, added: np.ndarray) -> None:
    recorder = records.Recorder(folder, session, rank)
    recorder.add(added)


def test_what_ranks_add_is_done_before_and_after_it_is_merged(tmp_path):
    write(tmp_path, 1, 0, rows([0, 1, 2, 8]))
    write(tmp_path, 1, 2, rows([5, 4]))
    write(tmp_path, 2, 0, rows([30]))
    sessions = {1: 3, 2: 1}
    for _ in range(2):
        assert np.flatnonzero(records.done(tmp_path, 12, sessions)).tolist() == [0, 1, 2, 4, 5, 8]
        assert np.flatnonzero(records.done(tmp_path, 31, sessions)).tolist() == [0, 1, 2, 4, 5, 8, 30]
        assert (records.latest(tmp_path, 12, sessions)["pixels_crc"] == [0, 1, 2, 0, 4, 5, 0, 0, 8, 0, 0, 0]).all()
        records.merge(tmp_path, sessions)
    assert not list((tmp_path / "records").iterdir())
    found = records.table(tmp_path, 4, 9)
    assert found["index"].tolist() == [4, 5, 0, 0, 8]
    assert found["png_bytes"].tolist() == [9, 9, 0, 0, 9]
    assert (found["check"] == 0).tolist() == [False, False, True, True, False]


def test_what_comes_later_counts(tmp_path):
    write(tmp_path, 1, 0, rows([3], seed=1))
    write(tmp_path, 2, 0, rows([3], seed=2))
    records.merge(tmp_path, {1: 1, 2: 1})
    assert records.table(tmp_path, 3, 4)["sha256"].tobytes() == records.digest(bytes([2, 3]))


def test_what_is_not_merged_yet_is_newer_than_the_table(tmp_path):
    write(tmp_path, 1, 0, rows([3], seed=1))
    records.merge(tmp_path, {1: 1})
    write(tmp_path, 2, 0, rows([3], seed=2))
    assert records.latest(tmp_path, 4, {2: 1})[3]["sha256"].tobytes() == records.digest(bytes([2, 3]))


def test_rows_after_one_that_did_not_fit_are_read(tmp_path, monkeypatch):
    """A full disk takes half a row, and there is room again for the next."""
    recorder, original, answers = records.Recorder(tmp_path, 1, 0), os.write, iter([30, None])

    def write(file, content):
        some = next(answers, len(content))
        if some is None:
            raise OSError(28, "No space left on device")
        return original(file, content[:some])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        recorder.add(rows([0]))
    recorder.add(rows([1, 2]))
    assert np.flatnonzero(records.done(tmp_path, 4, {1: 1})).tolist() == [1, 2]


@pytest.mark.parametrize("damage", ["cut", "zeros", "flipped", "other place"])
def test_a_torn_row_is_as_good_as_absent(damage, tmp_path):
    write(tmp_path, 1, 0, rows(range(10)))
    path, size = records.part_path(tmp_path, 1, 0), records.ROW.itemsize
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: 9 * size + 20]
    elif damage == "zeros":
        content[9 * size :] = bytes(size)
    elif damage == "flipped":
        content[9 * size + 30] ^= 4
    else:
        content[9 * size + 8 : 9 * size + 16] = content[9 * size + 16 : 9 * size + 24]
    path.write_bytes(content)
    assert np.flatnonzero(~records.done(tmp_path, 10, {1: 1})).tolist() == [9]
    records.merge(tmp_path, {1: 1})
    assert np.flatnonzero(records.table(tmp_path, 0, 10)["check"] == 0).tolist() == [9]


def test_a_row_in_the_place_of_another_is_not_believed(tmp_path):
    write(tmp_path, 1, 0, rows(range(4)))
    records.merge(tmp_path, {1: 1})
    path, size = records.table_path(tmp_path), records.ROW.itemsize
    content = path.read_bytes()
    path.write_bytes(content[: 2 * size] + content[3 * size :] + content[2 * size : 3 * size])
    assert (records.table(tmp_path, 0, 4)["check"] == 0).tolist() == [False, False, True, True]
    assert records.done(tmp_path, 4, {}).tolist() == [True, True, False, False]


def test_the_summary_is_that_of_the_hashes_in_order(tmp_path):
    import hashlib

    write(tmp_path, 1, 0, rows([2, 0, 1]))
    records.merge(tmp_path, {1: 1})
    crcs, digest = records.summary(tmp_path, 3)
    assert crcs.tolist() == [0, 1, 2]
    assert digest == hashlib.sha256(b"".join(records.digest(bytes([0, index])) for index in range(3))).hexdigest()


PLAN = """
import re, sys
from pathlib import Path
import subprocess
import sys

import numpy as np
from fiducial.sampling import plan
from fiducial.sampling.store import records
from fiducial.sampling.identity import Identity
from fiducial.sampling.store.task import Task

def memory(kind):
    return int(re.search(kind + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

folder, count, ranks = Path(sys.argv[1]), 1_000_000, 64
before = memory("VmRSS")
done = records.done(folder, count, {})
text = Task(folder, 1, "", Identity({}), done).to_json()
shares = [plan.share(plan.pending_blocks(Task.from_json(text).done, 32), rank, ranks) for rank in range(ranks)]
print(memory("VmHWM") - before, done.sum(), sum(map(len, shares)), len(set(np.concatenate(shares).tolist())))
"""


def test_a_million_indices_are_planned_in_little_memory(tmp_path):
    """With 900,000 of them done; each rank finds its blocks, and none has another's."""
    row = records.row(0, b"", 0)
    rows = np.repeat(row, 1_000_000)
    rows["index"] = np.arange(1_000_000)
    rows["check"] = records.checks(rows)
    rows[rows["index"] // 32 % 10 == 3] = np.zeros(1, records.ROW)
    missing = int((rows["check"] == 0).sum())
    rows.tofile(records.table_path(tmp_path))
    child = subprocess.run([sys.executable, "-c", PLAN, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    peak, done, blocks, different = map(int, child.stdout.split())
    assert done == 1_000_000 - missing
    assert blocks == different == missing // 32
    assert peak < 200e6
