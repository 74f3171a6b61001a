"""Downloads from a server that cuts, stalls, lies and changes its mind: nothing half-written ever has the final name."""

import hashlib
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT
from odd_files import KINDS, no_waiting, put

from fiducial import UserError, download, file_sha256, files

BODY = random.Random(0).randbytes(200_000)
OTHER = random.Random(1).randbytes(200_000)
HALF = f"bytes={len(BODY) // 2}-"


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """How long a download would have waited between its attempts; it does not wait here."""
    seconds = []
    monkeypatch.setattr(files, "time", SimpleNamespace(sleep=seconds.append))
    return seconds


@pytest.fixture
def server(mirror):
    mirror.content["/weights.bin"] = BODY
    return mirror


def fetch(server, folder, sha256: str | None = None):
    return download(f"{server.url}/weights.bin", folder / "cache" / "weights.bin", sha256)


def left(folder) -> set[str]:
    """What a download has left beside its lock."""
    return {path.name for path in (folder / "cache").iterdir() if path.suffix != ".lock"}


# What the server does at each request, and what part it is asked for then.
COURSES = {
    "well": (["well"], [None]),
    "slow": (["drip"], [None]),
    "cut": (["cut", "well"], [None, HALF]),
    "cut twice": (["cut", "cut", "well"], [None, HALF, f"bytes={len(BODY) * 3 // 4}-"]),
    "cut in chunks": (["cut in chunks", "well"], [None, HALF]),
    "cut, then without ranges": (["cut", "no ranges"], [None, HALF]),
    "busy": ([503, 429, "well"], [None, None, None]),
    "longer than it says, then right": (["long", "well"], [None, f"bytes={len(BODY)}-"]),
}


@pytest.mark.parametrize("course", COURSES)
def test_a_file_comes_whole_whatever_happens_on_the_way(course, server, tmp_path, waits):
    server.moods, asked = COURSES[course]
    path = fetch(server, tmp_path)
    assert path.read_bytes() == BODY
    assert server.ranges() == asked
    assert len(waits) == len(asked) - 1
    assert left(tmp_path) == {"weights.bin"}
    assert fetch(server, tmp_path) == path
    assert len(server.seen) == len(asked)


@pytest.mark.usefixtures("waits")
def test_a_server_that_says_nothing_is_asked_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SILENCE_SECONDS", 0.3)
    server.moods = ["stall", "well"]
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert server.ranges() == [None, HALF]
    assert not server.gave_up


def test_slowness_is_not_silence(server, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SILENCE_SECONDS", 0.5)
    server.moods, server.content["/weights.bin"] = ["drip"], BODY[:160_000]
    began = time.monotonic()
    assert fetch(server, tmp_path).read_bytes() == BODY[:160_000]
    assert time.monotonic() - began > 0.5
    assert len(server.seen) == 1


def test_halves_of_two_files_are_never_put_together(server, tmp_path, monkeypatch):
    def change(_: float) -> None:
        server.content["/weights.bin"], server.version = OTHER, '"2"'

    monkeypatch.setattr(files, "time", SimpleNamespace(sleep=change))
    server.moods = ["cut", "well"]
    assert fetch(server, tmp_path).read_bytes() == OTHER
    assert server.ranges() == [None, HALF]
    assert server.seen[1][1]["If-Range"] == '"1"'


# What the server does, how often it is asked, and what is said.
REFUSALS = {
    "not there": ([404], 1, "404|Not Found"),
    "never as long as it says": (["long"], 1 + files.TRIES, "200,000 of 200,010 bytes came"),
    "always busy": ([503], files.TRIES, "503|Service Unavailable"),
    "no length": (["no length"], 1, "does not say how long"),
}


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_cannot_be_had_is_a_sentence(refusal, server, tmp_path):
    server.moods, asked, said = REFUSALS[refusal]
    with pytest.raises(UserError, match=said) as error:
        fetch(server, tmp_path)
    assert f"put it at {tmp_path}/cache/weights.bin" in str(error.value)
    assert server.url in str(error.value)
    assert "\n" not in str(error.value)
    assert len(server.seen) == asked
    assert "weights.bin" not in left(tmp_path)


@pytest.mark.parametrize("page", [b"<html>Please log in</html>", b""])
def test_a_proxys_page_is_not_taken_for_weights(page, server, tmp_path):
    server.content["/DiT.pt"] = page
    with pytest.raises(UserError, match=r"what came is no \.pt file, and begins with"):
        download(f"{server.url}/DiT.pt", tmp_path / "cache" / "DiT.pt")
    assert left(tmp_path) == set()


def test_another_hash_than_expected_leaves_nothing(server, tmp_path):
    right = hashlib.sha256(BODY).hexdigest()[:8]
    server.content["/weights.bin"] = OTHER
    with pytest.raises(UserError, match=f"not {right}"):
        fetch(server, tmp_path, right)
    assert left(tmp_path) == set()
    server.content["/weights.bin"] = BODY
    assert fetch(server, tmp_path, right).read_bytes() == BODY


def start(server, folder, *arguments: str) -> subprocess.Popen:
    """A process of its own that downloads; it prints the SHA-256 of what it then finds."""
    code = f"""
import resource, sys
from pathlib import Path
from fiducial import download, file_sha256, user_errors
if len(sys.argv) > 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
with user_errors():
    print(file_sha256(download("{server.url}/weights.bin", Path("{folder}/cache/weights.bin"))))
"""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_of_several_processes_one_downloads(server, tmp_path):
    server.moods = ["drip"]
    processes = [start(server, tmp_path) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out.strip()) == (0, hashlib.sha256(BODY).hexdigest()), err
    assert server.ranges() == [None]
    assert left(tmp_path) == {"weights.bin"}


def test_a_killed_process_is_continued(server, tmp_path):
    server.moods = ["stall", "well"]
    process = start(server, tmp_path)
    partial = tmp_path / "cache" / "weights.bin.partial"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    had = partial.stat().st_size
    assert "weights.bin" not in left(tmp_path)
    assert file_sha256(fetch(server, tmp_path)) == hashlib.sha256(BODY).hexdigest()
    assert server.ranges() == [None, f"bytes={had}-"]


def test_a_disk_that_takes_no_more_is_not_asked_twice(server, tmp_path):
    process = start(server, tmp_path, "50000")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert "File too large" in err
    assert len(server.seen) == 1
    assert "weights.bin" not in left(tmp_path)


def test_a_place_that_cannot_be_written_is_a_sentence(server, tmp_path, waits):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"File exists|Not a directory"):
        fetch(server, tmp_path)
    assert server.seen == []
    assert waits == []


def test_a_mirror_is_asked_for_the_same_path(server, tmp_path, monkeypatch):
    server.content["/copies/of/DiT/weights.bin"] = BODY
    monkeypatch.setenv("FIDUCIAL_MIRROR", f"{server.url}/copies/of/")
    url = "https://weights.invalid/DiT/weights.bin"
    assert download(url, tmp_path / "weights.bin").read_bytes() == BODY
    assert server.seen[0][0] == "/copies/of/DiT/weights.bin"
    server.content.clear()
    with pytest.raises(UserError, match=f"{server.url}/copies/of/DiT/weights.bin cannot be fetched .* fetch {url} where"):
        download(url, tmp_path / "other.pt")
    monkeypatch.setenv("FIDUCIAL_MIRROR", "ftp://somewhere")
    with pytest.raises(UserError, match="FIDUCIAL_MIRROR=ftp://somewhere: must begin with http"):
        download(url, tmp_path / "other.pt")


@pytest.mark.parametrize("kind", [*KINDS, "link"])
@pytest.mark.parametrize("ending", ["", ".partial", ".partial.etag", ".lock"])
def test_nothing_is_fetched_to_where_there_is_no_file(ending, kind, server, tmp_path):
    """The file itself may be a link: it is only read, or replaced."""
    (tmp_path / "cache").mkdir()
    (victim := tmp_path / "victim").write_bytes(b"precious")
    path = tmp_path / "cache" / f"weights.bin{ending}"
    if kind == "link":
        path.symlink_to(victim)
    else:
        put(kind, path)
    with no_waiting():
        if (kind, ending) == ("link", ""):
            assert fetch(server, tmp_path) == path
        else:
            said = "link" if kind == "device" and ending else kind
            with pytest.raises(UserError, match=f"{path}: it is a {said}, not a file"):
                fetch(server, tmp_path)
    assert not server.seen
    assert victim.read_bytes() == b"precious"
