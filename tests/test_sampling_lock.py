"""The lock of a run's folder: who is alive, who is dead, and who finds out."""

import json
import os
import subprocess
import sys
import time

import pytest

from distributed import UserError, own_process
from sampling import lock


def leave(folder, **changes) -> dict:
    """A lock as another run has left it."""
    holder = {**own_process(), "token": "other", "count": 7} | changes
    (folder / "lock").write_text(json.dumps(holder))
    return holder


def dead_process() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_one_holds_it_and_the_other_is_refused(tmp_path):
    with lock.Lock(tmp_path) as held:
        assert lock.read(tmp_path / "lock")["token"] == held.token
        with pytest.raises(UserError, match=f"being drawn by another run, process {os.getpid()} on"):
            lock.Lock(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path):
    leave(tmp_path, pid=dead_process())
    with lock.Lock(tmp_path) as held:
        assert lock.read(tmp_path / "lock")["token"] == held.token
    assert not list(tmp_path.iterdir())


def test_another_process_with_the_number_of_a_dead_one_does_not_hold_it_either(tmp_path):
    leave(tmp_path, pid=os.getpid(), started="12")
    with lock.Lock(tmp_path):
        assert lock.read(tmp_path / "lock")["token"] != "other"


def test_a_run_on_another_machine_is_watched(tmp_path, monkeypatch, capsys):
    """The process number says nothing there: it is refused if the count goes up, and dead if it stands still."""
    monkeypatch.setattr(lock, "LEASE_SECONDS", 1.5)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.5)
    beating = f"""
import json, time
for count in range(100):
    holder = {leave(tmp_path, scope="elsewhere", host="far")!r} | {{"count": count}}
    open({str(tmp_path / "lock")!r}, "w").write(json.dumps(holder))
    time.sleep(0.05)
"""
    process = subprocess.Popen([sys.executable, "-c", beating])
    try:
        with pytest.raises(UserError, match=r"being drawn by another run, process \d+ on far"):
            lock.Lock(tmp_path)
    finally:
        process.kill()
        process.wait()
    leave(tmp_path, scope="elsewhere", host="far")
    with lock.Lock(tmp_path) as held:
        assert lock.read(tmp_path / "lock")["token"] == held.token
    assert "watching for 2 s whether that run is alive" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "{", '{"pid": 1}', "\0" * 600])
def test_what_cannot_be_understood_is_held_by_nobody_alive(content, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.1)
    (tmp_path / "lock").write_text(content)
    with lock.Lock(tmp_path) as held:
        assert lock.read(tmp_path / "lock")["token"] == held.token


def test_the_holder_hears_that_it_was_taken_for_dead(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
    with lock.Lock(tmp_path) as held:
        held.check()
        leave(tmp_path)
        assert held.lost.wait(10)
        with pytest.raises(UserError, match="or taken over by another run"):
            held.check()
    assert lock.read(tmp_path / "lock")["token"] == "other"  # and leaves it to whoever has it now


def test_the_count_goes_up(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
    with lock.Lock(tmp_path):
        until = time.monotonic() + 10
        while lock.read(tmp_path / "lock")["count"] < 3:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert (tmp_path / "lock").stat().st_size == lock.LENGTH


def test_a_rank_that_does_not_see_the_folder_says_so(tmp_path):
    with lock.Lock(tmp_path) as held:
        lock.await_token(tmp_path, held.token, 3, seconds=0)
        with pytest.raises(UserError, match=r"rank 3 on .* must be a folder that all nodes share"):
            lock.await_token(tmp_path / "elsewhere", held.token, 3, seconds=0)
        with pytest.raises(UserError, match="must be a folder"):
            lock.await_token(tmp_path, "a token of an older run", 3, seconds=0)
