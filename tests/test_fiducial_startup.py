"""Processes before they watch each other, and how they end: orphans, ranks that never come, Ctrl-C, streams that nobody reads."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT

from fiducial import Group, UserError, is_running, own_process, processes, startup
from fiducial.ranks import watch
from fiducial.ranks.joining import launched

PATIENCE = 60  # seconds, on a busy machine


def python(program: str, **options) -> subprocess.Popen:
    """A process of that program; no torch, so that it is quick."""
    settings = {"cwd": ROOT, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-c", program], **settings)


def environment(**names: str) -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if not name.startswith("TORCHELASTIC")} | names


LAUNCHES = """
import os, subprocess, sys, time
names = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_RANK": "0"}
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=os.environ | names, start_new_session=True)
time.sleep(600)
"""
WORKS = """
import fiducial, time
with fiducial.user_errors():
    print("here", flush=True)
    time.sleep(600)
"""


def test_an_orphan_ends_whatever_it_is_doing():
    """Its launcher is killed before there is a group, which takes minutes to join, and while torch may be imported."""
    command = [sys.executable, "-c", LAUNCHES, WORKS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, **pipes) as launcher:
        assert launcher.stdout.readline() == "here\n"
        launcher.kill()
        said = launcher.communicate(timeout=PATIENCE)[1]  # which ends when the orphan, who has the pipe too, does
    assert said == f"error: the launcher (process {launcher.pid}) is gone; the same command continues\n"


@pytest.mark.parametrize(
    ("command", "is_orphan"),
    [
        (b"/sbin/init\0splash\0", True),
        (b"/usr/bin/python3.11\0-m\0torch.distributed.run\0sample_ddp.py\0", False),
        (b"/bin/sh\0/opt/bin/torchrun\0sample_ddp.py\0", False),
    ],
)
def test_who_is_born_an_orphan(command, is_orphan, monkeypatch):
    """Process 1 takes orphans in, but in a container it may be the launcher."""
    monkeypatch.setattr(startup, "LAUNCHER", 1)
    monkeypatch.setattr(startup.Path, "read_bytes", lambda path: command if path.name == "cmdline" else b"")
    assert startup._is_born_orphan() is is_orphan
    monkeypatch.setattr(startup, "LAUNCHER", 4711)
    assert not startup._is_born_orphan()


def test_a_parent_that_is_no_launcher_may_go():
    """A shell that has started a run in the background."""
    worker = "import fiducial, time\nwith fiducial.user_errors():\n    time.sleep(3)\n    print('done')"
    shell = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" & sleep 1', sys.executable, worker],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert shell.stdout == "done\n"


WAITS = """
import os, signal, subprocess, sys
stopped = subprocess.Popen(["sleep", "600"], env=os.environ | {"RANK": "1"})
stopped.send_signal(signal.SIGSTOP)
program = '''
import fiducial
from fiducial.ranks import joining
joining.LOST_BEATS, joining.QUIET_SECONDS = 3, 0.5
with fiducial.user_errors():
    waiting = joining._Waiting(0, 2)
    while True:
        waiting.go_on([1])
'''
done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"RANK": "0"}, capture_output=True, text=True)
print(stopped.wait(), stopped.pid, done.returncode)
print(done.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_rank_that_is_stopped_before_it_joins_is_not_waited_for():
    done = python(WAITS, env=environment())
    said = done.communicate(timeout=PATIENCE)[0].splitlines()
    killed, pid, code = said[0].split()
    assert (int(killed), int(code)) == (-signal.SIGKILL, startup.RESUMABLE)
    host = socket.gethostname()
    assert said[1] == f"rank 0 on {host} waits for rank 1 (process {pid} on this host) of 2"
    words = f"rank 1 (process {pid} on {host}) is stopped, and has not joined the others"
    assert said[2] == f"error (rank 0 on {host}): {words}; the same command continues"


def test_a_store_that_is_gone_with_its_launcher_is_not_waited_for():
    """torchrun's is there before any rank; what is killed at the first moment leaves no other trace."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        names = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        program = """
import fiducial
from fiducial.ranks import joining
joining.LOST_BEATS = 1
with fiducial.user_errors():
    joining._await_host(joining.launched(), "the place")
"""
        done = python(program, env=environment(TORCHELASTIC_USE_AGENT_STORE="True", **names))
        said = done.communicate(timeout=PATIENCE)[1]
    assert done.returncode == startup.RESUMABLE
    assert "the launcher that held the ranks' store at the place is gone (Connection refused)" in said


GOOD = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
BAD = [
    ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x' in the environment: must be a whole number from 0 on"),
    ({"LOCAL_WORLD_SIZE": "some"}, "LOCAL_WORLD_SIZE is 'some'"),
    ({"RANK": "one"}, "RANK is 'one'"),
    ({"RANK": "-1"}, "RANK is '-1'"),
    ({"RANK": "2"}, "RANK is 2, but WORLD_SIZE 2, so ranks are 0 to 1"),
    ({"RANK": "7"}, "RANK is 7, but WORLD_SIZE 2, so ranks are 0 to 1"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0' in the environment: must be a whole number from 1 on"),
    ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
    ({"MASTER_PORT": "99999999"}, "MASTER_PORT is '99999999'"),
    ({"MASTER_ADDR": ""}, r"RANK is set, but the rest .* is not whole \(MASTER_ADDR is missing\)"),
    ({"WORLD_SIZE": ""}, r"RANK is set, but the rest .* is not whole \(WORLD_SIZE is missing\)"),
]


@pytest.mark.parametrize(("wrong", "said"), BAD)
def test_an_environment_that_cannot_be_is_one_sentence(wrong, said, monkeypatch):
    for name, text in (GOOD | wrong).items():
        monkeypatch.setenv(name, text)
    with pytest.raises(UserError, match=f"^{said}"):
        launched()


IMPOSSIBLE = """
import fiducial, runpy, sys, time
def sleep(seconds):
    raise AssertionError("waits for a rank 0 that may not be there")
time.sleep = sleep
try:
    runpy.run_module("{module}", run_name="__main__")
finally:
    print("torch" in sys.modules)
"""
COMMANDS = [
    ("sample_ddp", ["--preset", "digits"]),
    ("sampling", ["doctor"]),
    ("evaluation", ["calc", "samples.npz", "--ref", "digits"]),
]


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_an_environment_that_cannot_be_is_told_at_once(module, arguments):
    """Neither are slow imports waited for, nor is it left to rank 0, which may not be there."""
    command = [sys.executable, "-c", IMPOSSIBLE.format(module=module), *arguments]
    names = environment(**GOOD | {"RANK": "5"})
    done = subprocess.run(command, cwd=ROOT, env=names, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr == "error (rank 5): RANK is 5, but WORLD_SIZE 2, so ranks are 0 to 1; let torchrun set them\n"


def test_a_whole_environment_is_taken(monkeypatch):
    for name, text in GOOD.items():
        monkeypatch.setenv(name, text)
    assert (launched().rank, launched().world_size, launched().is_alone) == (1, 2, False)
    monkeypatch.delenv("RANK")
    assert launched().is_alone


def test_whom_others_have_left_ends_with_a_sentence():
    """As rank 0 that calls Evaluator.compute alone: the others never come."""
    from torch.distributed import HashStore

    store, fellows = HashStore(), [{**own_process(), "launcher": None}] * 2
    zero, one = (Group(rank, 2, rank, "0", None, store, fellows) for rank in (0, 1))
    store.set("beat/1", "")
    one.depart()
    with pytest.raises(UserError, match=f"^rank 0 waits for rank 1 on {socket.gethostname()}, which has left; what takes all"):
        zero.wait()


def test_a_process_that_cannot_be_seen_is_not_dead(monkeypatch):
    """As another user's where /proc is mounted with hidepid=2; that it is there can be asked all the same."""
    dead = python("")
    dead.communicate(timeout=PATIENCE)
    own = own_process()

    def unseen(pid: int) -> None:
        raise FileNotFoundError(pid)

    monkeypatch.setattr(processes, "_stat", unseen)
    assert is_running({**own, "pid": 1})
    assert not is_running({**own, "pid": dead.pid})
    assert not is_running({**own, "pid": 1 << 80})


INTERRUPTED = "import fiducial\nwith fiducial.user_errors():\n    raise KeyboardInterrupt"


LATE = ("numpy", "torch.nn", "torch")
EARLY = [
    ["sample_ddp.py", "--preset", "digits", "--sample-dir", "{}"],
    ["-m", "evaluation", "calc", "assets/digits/grid.png", "--ref", "digits"],
    ["-m", "models", "inspect", "assets/digits/vae"],
    ["-m", "sampling", "doctor", "--sample-dir", "{}"],
    ["scripts/stand_ins.py", "{}/new"],
]


@pytest.mark.parametrize(("names", "code"), [({}, -signal.SIGINT), ({"TORCHELASTIC_RUN_ID": "1"}, 130)])
def test_who_is_interrupted_ends_by_the_signal(names, code):
    """Or a shell's loop would go on; torchrun is told by an exit code."""
    done = python(INTERRUPTED, env=environment(**names))
    assert done.communicate(timeout=PATIENCE) == ("", "interrupted\n")
    assert done.returncode == code


SWALLOWED = """import os, signal, sys, fiducial
with fiducial.user_errors():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
    except BaseException:  # as around an import that may fail
        pass
    {}
"""
THEN = ["pass", "sys.exit(0)", "raise ImportError", "raise fiducial.UserError", "fiducial.init('cpu'); print('went on')"]


@pytest.mark.parametrize("then", THEN)
def test_an_interruption_that_was_swallowed_is_not_forgotten(then):
    done = python(SWALLOWED.format(then), env=environment())
    assert done.communicate(timeout=PATIENCE) == ("", "interrupted\n")
    assert done.returncode == -signal.SIGINT


@pytest.mark.parametrize(
    ("names", "code"), [({}, -signal.SIGINT), ({"TORCHELASTIC_RUN_ID": "1"}, 130)], ids=["alone", "torchrun"]
)
@pytest.mark.parametrize(
    "last", ["fiducial.interrupts", "argparse", "fiducial", *(pytest.param(name, marks=pytest.mark.long) for name in LATE)]
)
@pytest.mark.parametrize("program", EARLY, ids=lambda words: words[0] if words[0] != "-m" else words[1])
def test_ctrl_c_while_a_command_imports_is_no_traceback(program, last, names, code, tmp_path):
    """At the moment when a module was imported, of which Python tells: from the first one on."""
    words = [sys.executable, "-X", "importtime", *(word.format(tmp_path) for word in program)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, cwd=ROOT, env=environment(**names), text=True, **pipes) as command:
        for line in command.stderr:
            if line.startswith("import time") and line.rpartition("|")[2].strip() == last:
                break
        command.send_signal(signal.SIGINT)
        rest = [line for line in command.stderr if not line.startswith("import time")]
        assert command.wait(PATIENCE) == code, rest
        assert command.stdout.read() == ""
    assert rest in ([], ["interrupted\n"])


STREAMS = """
import sys, fiducial, os
with fiducial.user_errors():
    file = open(sys.argv[1], "w")
    assert file.fileno() > 2
    with fiducial.progress_bar(3, "bar") as bar:
        bar.update()
        os.system("echo written by a library >&2")
        raise fiducial.UserError("nobody hears it")
"""


@pytest.mark.parametrize("how", ["2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_stream_that_nobody_reads_is_no_traceback_and_no_file(how, tmp_path):
    command = ["sh", "-c", f'"$0" -c "$1" "$2" {how}', sys.executable, STREAMS, str(tmp_path / "file")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    assert (tmp_path / "file").read_text() == ""


def test_the_cause_of_an_end_has_a_line_of_its_own():
    """Whether it is said by the process whose progress bar stands there, or by what all of its ranks share."""
    program = """
import fiducial
with fiducial.user_errors():
    bar = fiducial.progress_bar(3, "sampling")
    bar.update()
    raise fiducial.UserError("the thirteenth fan is on fire")
"""
    for line in ("raise fiducial.UserError", "with fiducial.init('cpu') as group:\n        raise fiducial.UserError"):
        said = python(program.replace("raise fiducial.UserError", line), env=environment()).communicate(timeout=PATIENCE)[1]
        assert "sampling:" in said
        assert "error: the thirteenth fan is on fire" in said.split("\n"), said


def test_paths_of_any_bytes_are_published(alone):
    path = os.fsdecode(b"/runs/caf\xe9")
    board = alone._board
    board.publish("path", path)
    assert Path(board.receive("path")) == Path(path)
    assert json.loads(json.dumps(path)) == path


@pytest.mark.parametrize("value", [True, False, None, 0.1 + 0.2, 7, os.fsdecode(b"/caf\xe9"), {"names": ["a", "b"]}])
def test_what_one_rank_finds_for_all_is_a_value(value, alone):
    found = alone.once(lambda: value)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(("code", "said"), [(0, ""), (3, "error: rank 0 has exited with 3\n")])
def test_who_exits_among_others_tells_them(code, said):
    program = f"import sys, fiducial\nwith fiducial.init('cpu') as group:\n    sys.exit({code})"
    done = python(program, env=environment())
    assert done.communicate(timeout=PATIENCE) == ("", said)
    assert done.returncode == code


class Frozen:
    """A store that answers nothing any more, as when its process is stopped."""

    def __init__(self):
        self.thawed = threading.Event()

    def set(self, *_) -> None:
        self.thawed.wait(PATIENCE)

    check = get = set

    def add(self, *_) -> int:
        self.set()
        return 1


def test_a_store_that_does_not_answer_does_not_hold_up_who_is_done(monkeypatch):
    monkeypatch.setattr(watch, "LOST_BEATS", 1)
    store = Frozen()
    with Group(0, 1, 0, "0", None, store):
        pass
    assert not store.thawed.is_set()
    store.thawed.set()
