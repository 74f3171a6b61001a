"""What job scripts rely on: states, exit codes, JSON, and manifests that nobody should believe."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import DIGITS, options, run_command

from fiducial import UserError
from fiducial.classes import names_sha256
from fiducial.sampling.commands.status import status
from fiducial.sampling.commands.verify import verify
from fiducial.sampling.identity import fingerprint


@pytest.fixture(scope="module")
def whole(tiny_checkpoint, tmp_path_factory) -> Path:
    """The folder of a finished run of nine images."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_command("sample_ddp.py", *options(tiny_checkpoint, folder, num_fid_samples=9))
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def run(whole, tmp_path) -> Path:
    shutil.copytree(whole.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


def change(run: Path, **fields) -> None:
    path = run / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_whole_run_is_complete(whole):
    done = run_command("-m", "sampling", "status", whole, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said == {
        **{"folder": str(whole), "state": "complete", "images": 9, "of": 9, "sessions": 1, "reason": "", "exit_code": 0},
    }
    assert run_command("-m", "sampling", "status", whole).stdout == f"{whole}: complete, 9 of 9 images after 1 session(s)\n"


@pytest.mark.parametrize("missing", ["npz", "records", "more wanted", "npz of another size"])
def test_a_run_that_lacks_something_is_resumable(missing, run):
    if missing == "npz":
        run.with_name("run.npz").unlink()
    elif missing == "records":
        (run / "records.bin").unlink()
    elif missing == "more wanted":
        change(run, num_fid_samples=10)
    else:
        run.with_name("run.npz").write_bytes(b"short")
    assert (status(run).state, status(run).exit_code) == ("resumable", 75)
    assert run_command("-m", "sampling", "status", run).returncode == 75


def test_three_sessions_without_an_image_are_a_failure(run):
    (run / "records.bin").unlink()
    change(run, npz=None, sessions=[{"world_size": 2, "images_before": 0}] * 2)
    assert status(run).state == "resumable"
    change(run, npz=None, sessions=[{"world_size": 2, "images_before": 0}] * 3)
    assert (status(run).state, status(run).exit_code) == ("failed", 1)
    assert status(run).reason.startswith("3 sessions drew nothing")


def test_finished_sessions_are_not_fruitless(run):
    finished = json.loads((run / "manifest.json").read_text())["sessions"][0] | {"images_before": 9}
    change(run, sessions=[finished] * 20)
    run.with_name("run.npz").unlink()
    assert status(run).state == "resumable"


def test_a_run_is_found_by_other_names(run, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (link := tmp_path / "elsewhere" / "link").symlink_to(run)
    assert status(link).state == "complete"
    monkeypatch.chdir(run)
    assert status(Path(".")).state == "complete"
    assert not list(verify(Path("."), lambda _: None))


def test_a_run_whose_last_session_failed_is_not_complete(run):
    """All is there but some PNGs, for which there was no room."""
    ended = {"kind": "failed", "message": "no space", "rank": 0, "host": "far", "exit_code": 2, "time": "now"}
    (run / "ended.json").write_text(json.dumps(ended))
    assert status(run).state == "failed"


@pytest.mark.parametrize(("kind", "state"), [("failed", "failed"), ("stopped", "resumable"), ("lost", "resumable")])
def test_why_it_ended_decides(kind, state, run):
    change(run, npz=None)
    ended = {"kind": kind, "message": "the words", "rank": 3, "host": "far", "exit_code": 75, "time": "now"}
    (run / "ended.json").write_text(json.dumps(ended))
    assert (status(run).state, status(run).reason) == (state, "the words")


def test_what_is_no_run_is_one_sentence(tmp_path):
    for command in ("status", "verify"):
        done = run_command("-m", "sampling", command, tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"error: {tmp_path} is not the folder of a run: it has no manifest.json\n"


HAND_EDITED = [
    ({"num_fid_samples": 10**15}, "num_fid_samples is 1000000000000000"),
    ({"num_fid_samples": -1}, "num_fid_samples is -1"),
    ({"num_fid_samples": "9"}, '(num_fid_samples is "9", not a whole number)'),
    ({"num_fid_samples": True}, "(num_fid_samples is true, not a whole number)"),
    ({"npz": {"file": "../../etc/passwd", "count": 9, "bytes": 1}}, 'npz.file is "../../etc/passwd", which is no name'),
    ({"npz": {"file": "run.npz", "count": "9", "bytes": 1}}, '(npz.count is "9", not a whole number)'),
    ({"npz": {"file": 3, "count": 9, "bytes": 1}}, "(npz.file is 3, not text)"),
    ({"npz": "run.npz"}, '(npz is "run.npz", not an object or null)'),
    ({"sessions": [{"world_size": 10**9, "images_before": 0}]}, "world_size is 1000000000"),
    ({"sessions": [{"world_size": "../..", "images_before": 0}]}, '(sessions[0].world_size is "../..", not a whole number)'),
    ({"sessions": 3}, "(sessions is 3, not a list)"),
    ({"sessions": {}}, "(sessions is {}, not a list)"),
    ({"npz": {"file": "run.npz", "count": 9}}, "(npz has no bytes)"),
    ({"sessions": [[]]}, "(sessions[0] is [], not an object)"),
    ({"sessions": [{"world_size": 1}]}, "(sessions[0] has no images_before)"),
    ({"sessions": [{"world_size": 10**6, "images_before": 0}] * 3, "merged": 0}, "sessions had 3,000,000 ranks"),
    ({"merged": 5}, "(merged is 5, not 0 to 1)"),
    ({"merged": None}, "(merged is null, not a whole number)"),
    ({"identity": {"model": "DiT-XL/2"}}, "(identity has no per_proc_batch_size)"),
    ({"identity": []}, "(identity is [], not an object)"),
    ({"format": ["fiducial-run-2"]}, "its format is"),
    ({"class_names": {"sha256": "0" * 64, "source": "x", "names": [*"0123456789"]}}, "not those of their hash"),
    ({"class_names": {"sha256": names_sha256("012"), "source": "x", "names": [*"012"]}}, "not those of their hash"),
    (
        {"class_names": {"sha256": names_sha256(range(10)), "source": "x", "names": [*range(10)]}},
        "(class_names.names[0] is 0, not text)",
    ),
    (
        {"class_names": {"sha256": names_sha256("0123456789"), "source": 7, "names": [*"0123456789"]}},
        "(class_names.source is 7, not text)",
    ),
    ({"class_names": {"sha256": "", "names": []}}, "(class_names has no source)"),
    ({"class_names": "abc"}, '(class_names is "abc", not an object)'),
]


@pytest.mark.parametrize(("fields", "said"), HAND_EDITED, ids=lambda value: str(value)[:50] if isinstance(value, dict) else "")
def test_a_manifest_edited_by_hand_is_refused(fields, said, run):
    change(run, **fields)
    with pytest.raises(UserError, match=r"manifest\.json is not a whole manifest") as refused:
        status(run)
    assert said in str(refused.value)
    with pytest.raises(UserError, match="not a whole manifest"):
        list(verify(run, lambda _: None))


def test_an_identity_that_lies_consistently_is_refused_too(run):
    identity = json.loads((run / "manifest.json").read_text())["identity"] | {"image_size": 10**9}
    change(run, identity=identity, fingerprint=fingerprint(identity))
    with pytest.raises(UserError, match="image_size is 1000000000"):
        list(verify(run, lambda _: None))


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\xfe", b'{"format": "fiducial-run-2"}', b"[" * 100_000])
def test_a_manifest_that_is_none_is_refused(content, run):
    (run / "manifest.json").write_bytes(content)
    done = run_command("-m", "sampling", "status", run)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is not a whole manifest" in done.stderr


def test_verify_names_what_is_damaged(run):
    assert run_command("-m", "sampling", "verify", run).returncode == 0
    (run / "000003.png").unlink()
    shutil.copy(run / "000001.png", run / "000002.png")
    with open(run.with_name("run.npz"), "r+b") as file:
        file.seek(65536 + 4 * 64 * 64 * 3)
        file.write(b"damage")
    done = run_command("-m", "sampling", "verify", run)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        f"{run}/000002.png: damaged PNG",
        f"{run}/000003.png: PNG is missing",
        f"{run}/000004.png: damaged in the npz",
    ]
    assert lines[3].startswith(f"{run}: 9 of 9 images drawn, 3 damaged copies")


def test_status_needs_no_torch():
    code = "import sys, sampling.commands.status; sys.exit('torch' in sys.modules)"
    assert run_command("-c", code).returncode == 0
    assert DIGITS.is_dir()
