"""`fiducial watch`: every state that a run's files tell of, what it draws, and how it ends; and what a run tells of itself."""

import datetime as dt
import json
import os
import pty
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import options
from made_runs import make_run
from PIL import Image

import sample_ddp
from fiducial import UserError, life, own_process
from fiducial.sampling.run.pace import Pace
from fiducial.sampling.run.sheet import SIDE, sheet
from fiducial.sampling.run.signs import Signs
from fiducial.sampling.run.telling import Teller, evaluating
from fiducial.sampling.store import progress
from fiducial.sampling.store.folder import PROGRESS, sheet_path
from fiducial.sampling.store.progress import DRAWING, ENDED, EVALUATED, EVALUATING, Progress, Rank
from fiducial.sheets import GAP
from fiducial.studies.watch import command, terminal
from fiducial.studies.watch.events import events_of, in_words
from fiducial.studies.watch.lines import lasting, one_line, screen
from fiducial.studies.watch.look import Look

NOON = dt.datetime(2026, 1, 1, 12, 0, 0)
RANKS = (
    Rank(0, "node0", "sampling", 40, 100, 2.0, 1.0, 10**9),
    Rank(1, "node1", "decoding", 20, 100, 1.0, 2.0, 2 * 10**9),
)
NOW = Progress(2, 7, DRAWING, 61, 201, RANKS, 3.0, 80.0)


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def holder(**changes) -> str:
    return json.dumps({**own_process(), "token": "x", "count": 0} | changes)


def ended(kind: str) -> str:
    return json.dumps({"kind": kind, "message": "the cause", "rank": 1, "host": "node1", "exit_code": 75, "time": "t"})


def session(run, **changes) -> None:
    """Another session of a made run, which has just begun."""
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["sessions"].append({"world_size": 2, "images_before": 1, "started": "2026-01-01T11:00:00+00:00"} | changes)
    path.write_text(json.dumps(manifest))


@pytest.fixture
def run(tmp_path):
    """A run whose second session goes on."""
    run = make_run(tmp_path, count=201)
    session(run)
    (run / "lock").write_text(holder())
    NOW.write(run)
    return run


def test_a_run_that_is_drawn_is_seen_as_its_ranks_tell_it(run):
    view = Look(run)()
    assert (view.state, view.images, view.of, view.session, view.world_size) == ("drawing", 61, 201, 2, 2)
    assert view.progress == NOW
    assert [event.partition(" at ")[0] for event in view.events] == [
        "session 1 began on 1 rank, from nothing",
        "session 1 finished",
        "session 2 began",
    ]


def test_what_others_have_written_into_progress_is_not_believed(run):
    form = json.loads((run / PROGRESS).read_text())
    for changes in ({"images": "61"}, {"stage": "other"}, {"ranks": [{}]}, {"rate": float("nan")}, {"format": "x"}, {"beat": -1}):
        (run / PROGRESS).write_text(json.dumps(form | changes))
        assert progress.read(run) is None, changes
    (run / PROGRESS).write_text(json.dumps(form)[:100])  # half of it
    view = Look(run)()
    assert (view.state, view.images) == ("beginning", 201)  # those that are recorded
    (run / PROGRESS).unlink()
    os.mkfifo(run / PROGRESS)
    assert Look(run)().progress is None
    (run / PROGRESS).unlink()
    replace(NOW, session=1).write(run)  # of the session before
    assert Look(run)().progress is None


@pytest.mark.parametrize(
    ("files", "state", "code"),
    [
        ({"ended.json": ended("failed"), "lock": None}, "failed", 1),
        ({"ended.json": ended("lost"), "lock": None}, "resumable", 75),
        ({"ended.json": ended("stopped")}, "beginning", None),  # somebody else has its lock by now
        ({"lock": holder(pid=1 << 22)}, "resumable", 75),  # killed
        ({"lock": None}, "resumable", 75),
        ({"lock": holder(scope="elsewhere", host="node9")}, "drawing", None),
    ],
)
def test_states_and_exit_codes(run, files, state, code):
    for name, text in files.items():
        (run / name).unlink(missing_ok=True)
        if text:
            (run / name).write_text(text)
    view = Look(run)()
    assert (view.state, command.code_of(view, wait=False)) == (state, code)
    assert command.code_of(view, wait=True) == (1 if state == "failed" else None)
    if state in ("failed", "resumable"):
        assert view.images == 201  # by the records: of its last seconds nothing was told
        assert view.reason == "the cause" if "ended.json" in files else view.reason


def test_a_run_elsewhere_is_silent_when_nothing_moves_by_the_watchers_own_clock(run):
    (run / "lock").write_text(holder(scope="elsewhere", host="node9"))
    os.utime(run / PROGRESS, (1, 1))  # a clock that is decades behind
    look = Look(run, 120, clock := Clock())
    assert look().state == "drawing"
    clock.time += 119
    assert look().state == "drawing"
    clock.time += 2
    view = look()
    assert (view.state, command.code_of(view, wait=False), command.code_of(view, wait=True)) == ("silent", 75, None)
    assert "on node9 has written nothing for 121 s" in view.reason
    replace(NOW, beat=8).write(run)
    assert look().state == "drawing"
    clock.time += 121
    (run / "lock").write_text(holder(scope="elsewhere", host="node9", count=1))  # renewed
    assert look().state == "drawing"


def test_what_is_evaluated_is_complete_when_that_is(tmp_path):
    run = make_run(tmp_path)
    assert command.code_of(Look(run)(), wait=False) == 0
    manifest = json.loads((run / "manifest.json").read_text()) | {"options": {"ref": "digits"}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    told = replace(NOW, session=1, images=9, of=9)
    look = Look(run, 120, clock := Clock())
    assert look().reason == "it is drawn, but not evaluated; the same command evaluates it"
    replace(told, stage=EVALUATING).write(run)
    assert look().state == "evaluating"
    clock.time += 200
    assert (look().state, look().reason[:12]) == ("resumable", "it is drawn,")
    run.with_name("run.json").write_text("{}")
    assert (look().state, look().result) == ("complete", run.with_name("run.json"))
    replace(told, stage=ENDED, kind="failed", message="no weights").write(run)
    assert (look().state, look().reason) == ("failed", "its evaluation ended early: no weights")
    replace(told, stage=EVALUATED).write(run)
    assert look().state == "complete"
    run.with_name("run.npz").write_bytes(b"short")
    assert look().state == "resumable"


def test_events_are_in_words_whatever_is_in_them(run):
    memory = {"rank": 1, "host": "node1", "event": "out of memory", "batch": 16, "images": "images 0 to 31"}
    assert in_words(memory) == "rank 1 on node1: out of memory, batch 16, images images 0 to 31"
    (run / "records").mkdir(exist_ok=True)
    (run / "records" / "0002-00001.jsonl").write_text(json.dumps(memory) + '\n[1, "\\u001b"]\n{"rank": 0, "ev')
    look = Look(run, 120, clock := Clock())
    assert look().events[-2:] == (in_words(memory), "[1, '\\x1b']")
    (run / "records" / "0002-00000.jsonl").write_text(json.dumps({"rank": 0, "host": "a\x1b[2J", "event": "not finite"}) + "\n")
    assert len(look().events) == 5  # read anew when some time is over
    clock.time += 11
    assert "rank 0 on a\\x1b[2J: not finite" in look().events
    manifest = look._manifest
    assert events_of(run, manifest, {"message": "killed"})[-1] == "session 2 ended early: killed"


def test_the_screen_has_every_rank_or_those_that_matter(run):
    sheet_path(run).write_bytes(b"")
    view = Look(run)()
    lines = screen(view, NOON, 100, 30)
    assert lines[0].endswith("run: sampling")
    assert lines[1] == f"[{'#' * 9}{'-' * 21}] 61 of 201 images   3 images/s   1 min 20 s left, until 12:01:20"
    assert [line.split() for line in lines if line.strip().startswith(("0 ", "1 "))] == [
        ["0", "node0", "sampling", "40", "of", "100", "2", "1", "s", "ago", "1", "GB"],
        ["1", "node1", "decoding", "20", "of", "100", "1", "2", "s", "ago", "2", "GB"],
    ]
    assert screen(view, NOON, 1000, 30)[-1] == f"newest images: {sheet_path(run)}"
    many = tuple(replace(RANKS[0], rank=rank, silent=99.0 if rank == 700 else 1.0) for rank in range(1024))
    lines = screen(replace(view, progress=replace(NOW, ranks=many), world_size=1024), NOON, 60, 20)
    assert len(lines) <= 19
    assert max(map(len, lines)) <= 60
    assert any(line.split()[:3] == ["700", "node0", "silent"] for line in lines)
    assert any(line.startswith("  and 1,0") and line.endswith("sampling") for line in lines)
    long = replace(view, state="failed", reason="word " * 60)
    assert sum("word word" in line for line in screen(long, NOON, 60, 30)) == 3


def test_an_event_is_told_in_words():
    event = {"rank": 1, "host": "b", "event": "verified", "numerics": {"precision": "bf16", "compile": True}, "error": 0.00515573}
    assert in_words(event) == "rank 1 on b: verified, numerics (precision bf16, compile True), error 0.00516"


def test_a_line_says_who_is_silent(run):
    view = Look(run)()
    assert one_line(view, NOON) == f"12:00:00 {run}: sampling, 61 of 201 images, 3 images/s, 1 min 20 s left, until 12:01:20"
    stuck = (RANKS[0], replace(RANKS[1], silent=45.0))
    assert one_line(replace(view, progress=replace(NOW, ranks=stuck)), NOON).endswith("rank 1 on node1 silent for 45 s")
    waits = (RANKS[0], replace(RANKS[1], silent=45.0, state="waiting"))  # for others: that is no silence
    assert "silent for" not in one_line(replace(view, progress=replace(NOW, ranks=waits)), NOON)
    assert [lasting(seconds) for seconds in (59.4, 61, 7300, 200_000)] == ["59 s", "1 min 1 s", "2 h 1 min", "2 d 7 h"]


def watch(monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", ["fiducial watch", *map(str, words)])
    return command.main()


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "there is no such folder; --wait waits for one"),
        (["nowhere", "--once"], "there is no such folder"),
        (["."], "is not the folder of a run"),
        (["file"], "file is a file; give the folder of a run"),
        (["run", "--every", "0"], "--every 0.0: must be a number of seconds above 0"),
        (["run", "--silence", "nan"], "--silence nan: must be"),
    ],
)
def test_mistakes_are_one_sentence(words, said, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        watch(monkeypatch, *words)


def test_once_prints_and_says_by_its_code_what_state_it_is(run, monkeypatch, capsys):
    assert watch(monkeypatch, run, "--once") == 75
    assert "61 of 201 images   3 images/s" in capsys.readouterr().out
    (run / "lock").write_text(holder(scope="elsewhere"))  # nobody here knows whether it lives
    monkeypatch.setattr(command, "ONCE_SECONDS", 0.2)
    monkeypatch.setattr(command, "LOOK_SECONDS", 0.1)
    assert watch(monkeypatch, run, "--once") == 75
    assert "silent" in capsys.readouterr().out.splitlines()[0]
    beat = threading.Timer(0.1, replace(NOW, beat=99).write, [run])
    beat.start()
    monkeypatch.setattr(command, "ONCE_SECONDS", 30.0)
    assert watch(monkeypatch, run, "--once") == 75
    assert capsys.readouterr().out.splitlines()[0].endswith("sampling")


def test_lines_go_on_until_the_run_ends(tmp_path, monkeypatch, capsys):
    """From before it is there, through an end that is waited out."""
    folder, looks = tmp_path / "run", iter(range(100))
    monkeypatch.setattr(command, "LOOK_SECONDS", 0.01)

    def goes_on(self, look=Look.__call__):
        number = next(looks)
        if number == 1:
            session(make_run(tmp_path, count=201))
            (folder / "lock").write_text(holder())
            NOW.write(folder)
        if number == 2:
            (folder / "lock").unlink()
            (folder / "ended.json").write_text(ended("lost"))
        if number == 3:
            (folder / "ended.json").unlink()
            session(folder, finished="2026-01-01T12:00:00+00:00")
        return look(self)

    monkeypatch.setattr(Look, "__call__", goes_on)
    assert watch(monkeypatch, folder, "--wait", "--every", "0.001") == 0
    said = [line.partition(f"{folder}: ")[2] for line in capsys.readouterr().out.splitlines()]
    assert said[0] == "absent"
    assert "session 2 ended early: the cause" in said
    assert "resumable, 201 of 201 images: the cause" in said
    assert said[-1] == "complete, 201 of 201 images"
    assert len(said) == len(set(said))


def on_a_terminal(run, monkeypatch, key: bytes) -> tuple[int, str]:
    """The exit code, and what stands on a pseudo-terminal."""
    ours, theirs = pty.openpty()
    with open(theirs, "w", closefd=False) as out, open(theirs, closefd=False) as keys, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stdin", keys)
        patch.setattr(terminal.shutil, "get_terminal_size", lambda: os.terminal_size((90, 24)))
        if key:
            os.write(ours, key)
        code = watch(patch, run)
    seen = os.read(ours, 1 << 16).decode()
    os.close(ours)
    os.close(theirs)
    return code, seen


def test_in_a_terminal_q_leaves_and_all_is_as_before(run, monkeypatch):
    code, seen = on_a_terminal(run, monkeypatch, b"q")
    assert code == 0
    assert terminal.HIDE in seen
    assert seen.endswith(terminal.SHOW)
    assert "61 of 201 images" in seen
    assert "q leaves" in seen


def test_in_a_terminal_the_last_screen_stays(tmp_path, monkeypatch):
    code, seen = on_a_terminal(make_run(tmp_path), monkeypatch, b"")
    assert code == 0
    assert "9 of 9 images" in seen
    assert "q leaves" not in seen


def test_what_is_drawn_again_stands_in_the_place_of_what_was(capsys):
    shown = terminal.Terminal()
    shown.draw(["one", "two"])
    shown.draw(["three"])
    first, second = capsys.readouterr().out.split("\x1b[2A\r")
    assert (first, second) == ("one\x1b[K\ntwo\x1b[K\n\x1b[J", "three\x1b[K\n\x1b[J")


def test_the_pace_is_that_of_the_last_minute_or_of_a_few_blocks():
    pace = Pace(0.0)
    assert pace.rate(5.0) is None
    for block in range(1, 41):
        pace.note(3.0 * block, 12 * block)
    assert pace.rate(120.0) == pytest.approx(4.0)
    for block in range(1, 41):  # half as fast
        pace.note(120 + 6.0 * block, 480 + 12 * block)
    assert pace.rate(360.0) == pytest.approx(2.0)
    assert pace.rate(480.0) < 1.0  # it stands still
    slow = Pace(0.0)
    for block in range(1, 6):
        slow.note(300.0 * block, 30 * block)
    assert slow.rate(1500.0) == pytest.approx(0.1)


def test_a_sheet_is_small_whatever_the_images_are():
    assert sheet(np.full((40, 256, 128, 3), 7.4, np.float32)).shape == (4 * SIDE + 3 * GAP, 8 * SIDE // 2 + 7 * GAP, 3)
    one = sheet(np.full((1, 8, 8, 3), 7, np.uint8))
    assert one.shape == (8, 8, 3)
    assert (one == 7).all()


def test_a_real_run_tells_what_it_does(tiny_checkpoint, tmp_path, monkeypatch):
    """Its last word is that of an evaluated run; every state came by."""
    heard, states = [], []
    look = Teller.look
    monkeypatch.setattr("fiducial.sampling.run.telling.TELL_SECONDS", 0.1)
    monkeypatch.setattr(Teller, "look", lambda *given: heard.append(look(*given)) or heard[-1])
    monkeypatch.setattr(Signs, "tell", lambda self, state, tell=Signs.tell: states.append(state) or tell(self, state))
    monkeypatch.setattr(sys, "argv", ["sample_ddp.py", *options(tiny_checkpoint, tmp_path), "--ref", "digits"])
    sample_ddp.main()
    assert states[:2] == ["loading", "sampling"]
    assert states[-3:] == ["waiting", "checking", "packing"]
    assert states.count("decoding") == 6  # blocks
    assert [now.beat for now in heard] == list(range(1, len(heard) + 1))
    assert heard[-1].images == heard[-1].of == 22
    assert (heard[-1].ranks[0].done, heard[-1].ranks[0].assigned, heard[-1].left) == (22, 22, 0.0)
    last = progress.read(tmp_path / "run")
    assert (last.stage, last.ranks[0].state) == (EVALUATED, "evaluating")
    assert not life.listeners
    with Image.open(sheet_path(tmp_path / "run")) as image:
        assert image.size == (8 * 64 + 7 * GAP, 3 * 64 + 2 * GAP)
        newest = np.asarray(image)[:64, :64]
    with np.load(tmp_path / "run.npz") as arrays:
        assert (newest == arrays["arr_0"][20]).all()  # the last block begins with it
    view = Look(tmp_path / "run")()
    assert (view.state, view.result) == ("complete", tmp_path / "run.html")
    assert view.events[-1].startswith("session 1 finished")


def test_an_evaluation_that_fails_is_told(run, alone):
    stages = []

    def evaluate() -> None:
        for _ in range(1000):
            if (now := progress.read(run)).stage == EVALUATING:
                break
            time.sleep(0.01)
        stages.append((now.stage, now.ranks[1].state, now.rate))
        raise UserError("too few")

    with pytest.raises(UserError, match="too few"), evaluating(run, alone):
        evaluate()
    last = progress.read(run)
    assert stages == [(EVALUATING, "evaluating", None)]
    assert (last.stage, last.kind, last.message) == (ENDED, "failed", "too few")
