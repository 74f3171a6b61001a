"""What a process says of itself: version, commit, and the command that started it, which a shell takes back."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_command

from fiducial import version

ABOUT = "import json; from fiducial import about; print(json.dumps(about()))"
PROGRAMS = (
    ["sample_ddp.py"],
    ["-m", "evaluation"],
    ["-m", "evaluation", "compare"],
    ["-m", "models"],
    ["-m", "models", "inspect"],
    ["-m", "sampling"],
    ["-m", "sampling", "doctor"],
)
SCRIPTS = tuple(
    [str(path.relative_to(ROOT))]
    for path in sorted((ROOT / "scripts").glob("*.py"))
    if '__name__ == "__main__"' in path.read_text()
)


def test_the_scripts_are_found():
    assert {Path(script).name for (script,) in SCRIPTS} >= {"benchmark.py", "measure_demo.py", "stand_ins.py", "train_demo.py"}


@pytest.mark.parametrize("program", PROGRAMS + SCRIPTS, ids=" ".join)
def test_every_command_has_a_version(program):
    done = run_command(*program, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == version.described(version.about()) + "\n"
    assert done.stdout.startswith(f"Fiducial {version.VERSION}")


@pytest.mark.parametrize("program", SCRIPTS, ids=" ".join)
def test_a_mistake_with_a_script_is_one_sentence(program):
    done = run_command(*program, "--no-such-option", "there")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith("(see --help)\n")


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
    return subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository in the place of this one."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--quiet", "--message=one")
    monkeypatch.setattr(version, "ROOT", tmp_path)
    version.commit.cache_clear()
    yield tmp_path
    version.commit.cache_clear()


def test_the_commit_is_the_checkouts_and_says_whether_files_differ(checkout, monkeypatch):
    head = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # of a hook, say
    assert version.commit() == head
    (checkout / "new").write_text("untracked files, as runs are, are no change")
    version.commit.cache_clear()
    assert version.commit() == head
    (checkout / "file").write_text("two")
    version.commit.cache_clear()
    assert version.commit() == f"{head}+changes"
    assert version.described(version.about()) == f"Fiducial {version.VERSION} ({head}+changes)"


def test_without_git_or_in_a_strangers_repository_there_is_no_commit(checkout, monkeypatch):
    (checkout / "vendored").mkdir()
    monkeypatch.setattr(version, "ROOT", checkout / "vendored")
    assert version.commit() is None
    monkeypatch.setattr(version, "ROOT", checkout)
    monkeypatch.setenv("PATH", "/nowhere")
    version.commit.cache_clear()
    assert version.commit() is None
    assert version.described(version.about()) == f"Fiducial {version.VERSION}"


ARGUMENTS = ["a b", "it's", "$HOME", "two\nlines", "\udcff'1", ""]


def test_the_command_can_be_pasted():
    done = subprocess.run([sys.executable, "-c", ABOUT, *ARGUMENTS], cwd=ROOT, capture_output=True, text=True, check=True)
    command = json.loads(done.stdout)["command"]
    assert command.isprintable()
    shell = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True)
    words = [word.decode(errors="surrogateescape") for word in shell.stdout.split(b"\0")[:-1]]
    assert words == [sys.executable, "-c", ABOUT, *ARGUMENTS]


def test_the_launchers_part_is_in_the_command(tmp_path):
    (tmp_path / "program.py").write_text(ABOUT.replace("; ", "\n"))
    done = run_command(tmp_path / "program.py", "--option", "a b", ranks=1, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    words = shlex.split(json.loads(done.stdout)["command"])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    assert words == [*launcher, str(tmp_path / "program.py"), "--option", "a b"]


@pytest.mark.parametrize(
    ("own", "parent", "said"),
    [
        ("python sample_ddp.py --exact", "/v/python /v/bin/torchrun --nnodes=1 sample_ddp.py --exact", True),
        ("python -m evaluation calc x", "/v/python /v/bin/torchrun --nnodes=1 -m evaluation calc x", True),
        ("python -m evaluation calc x", "/v/python /v/bin/torchrun -m --nnodes=1 evaluation calc x", True),
        ("python sample_ddp.py --exact", "/sbin/init", False),
        ("python sample_ddp.py", "/v/python another.py", False),
    ],
)
def test_torchrun_goes_by_its_own_name_and_no_other_parent_is_taken_for_it(own, parent, said, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    content = "".join(f"{word}\0" for word in parent.split()).encode()
    monkeypatch.setattr(version.Path, "read_bytes", lambda _: content)
    assert version._launched(own.split()) == (["torchrun", *parent.split()[2:]] if said else None)
