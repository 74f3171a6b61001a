"""The lock of a run's folder: who is alive, who is dead, and who finds out."""

import json
import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from fiducial import UserError, own_process
from fiducial.sampling.store import lock


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


def test_watching_is_work_and_can_be_ended(tmp_path, monkeypatch):
    """Else a run whose --hang-timeout is shorter ended as hung, each time that it was started."""
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.3)
    leave(tmp_path, scope="elsewhere", host="far")
    checked = []

    def check():
        checked.append(1)
        if len(checked) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lock.Lock(tmp_path, check)
    assert json.loads((tmp_path / "lock").read_text())["token"] == "other"
    with lock.Lock(tmp_path, lambda: checked.append(1)):
        assert len(checked) > 10
    assert not list(tmp_path.iterdir())


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


def test_who_cannot_be_seen_is_watched(tmp_path, monkeypatch):
    """As another user's process where /proc is mounted with hidepid=2: alive while its count goes up, dead if it stands still."""
    monkeypatch.setattr(lock, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lock, "is_visible", lambda _: False)
    with lock.Lock(tmp_path) as held:
        with pytest.raises(UserError, match=f"being drawn by another run, process {os.getpid()} on"):
            lock.Lock(tmp_path)
        held.check()
    leave(tmp_path)
    with lock.Lock(tmp_path) as held:
        assert lock.read(tmp_path / "lock")["token"] == held.token


STARTS = """
import os, sys, time
from pathlib import Path
from fiducial import UserError
from fiducial.sampling.store.lock import Lock
folder = Path(sys.argv[1])
holders = os.open(folder.with_name("holders"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
sys.stdin.readline()
try:
    with Lock(folder):
        os.write(holders, b"+")
        time.sleep(0.05)
        os.write(holders, b"-")
except UserError:
    pass
"""


def test_of_several_that_find_it_dead_one_holds_it_at_a_time(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    leave(folder, pid=dead_process())
    command = [sys.executable, "-c", STARTS, str(folder)]
    starters = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(6)]
    for starter in starters:
        starter.stdin.write(b"\n")
        starter.stdin.flush()
    assert not any(starter.wait() for starter in starters)
    held = (tmp_path / "holders").read_text()
    assert held == "+-" * (len(held) // 2) != ""
    assert not list(folder.iterdir())


def test_a_slow_one_does_not_take_the_lock_of_the_quick(tmp_path, monkeypatch):
    """It has found the last holder dead, and is interrupted there; meanwhile another has succeeded that one."""
    leave(tmp_path, pid=dead_process())
    is_dead, quick = lock.Lock._is_dead, []

    def slowly(self, path, holder) -> bool:
        found = is_dead(self, path, holder)
        if not quick:
            quick.append(None)
            quick[0] = lock.Lock(tmp_path)
        return found

    monkeypatch.setattr(lock.Lock, "_is_dead", slowly)
    with pytest.raises(UserError, match=f"being drawn by another run, process {os.getpid()} on"):
        lock.Lock(tmp_path)
    with quick[0] as held:
        assert lock.read(tmp_path / "lock")["token"] == held.token
    assert not list(tmp_path.iterdir())


def test_who_dies_while_it_succeeds_is_succeeded(tmp_path, monkeypatch):
    """It was first to find the last holder dead, and was killed before its lock was in that one's place."""
    leave(tmp_path, pid=dead_process())

    def killed(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lock.os, "replace", killed)
        patch.setattr(lock.Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            lock.Lock(tmp_path)
    (claim,) = tmp_path.glob(".lock.*.next")
    claim.write_text(json.dumps(lock.read(claim) | {"pid": dead_process()}))
    with lock.Lock(tmp_path) as held:
        assert lock.read(tmp_path / "lock")["token"] == held.token
    assert not list(tmp_path.glob(".lock.*.next"))


def test_where_files_have_one_name_only_a_dead_lock_is_taken_too(tmp_path, monkeypatch):
    def refuse(*_) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(lock.os, "link", refuse)
    leave(tmp_path, pid=dead_process())
    with lock.Lock(tmp_path) as held:
        assert lock.read(tmp_path / "lock")["token"] == held.token
    assert not list(tmp_path.iterdir())
