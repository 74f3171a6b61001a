"""What killed processes were making is removed, and nobody else's."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from fiducial import in_the_making, own_process, remove_leftovers, write_whole
from fiducial.leftovers import LEFTOVER

MAKE = """
import sys, time
from pathlib import Path
from fiducial import in_the_making
path = Path(sys.argv[1])
file, folder = in_the_making(path), in_the_making(path)
file.write_bytes(b"half")
folder.mkdir()
(folder / "inside").write_bytes(b"half")
print(file.name, folder.name, flush=True)
time.sleep(600)
"""


@pytest.fixture
def maker(tmp_path):
    """Another process that is making RESULT.json, and what it has of that so far."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE, tmp_path / "RESULT.json"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    process.made = set(process.stdout.readline().split())
    yield process
    process.kill()
    process.wait()


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_a_living_process_makes_is_left_alone_and_what_a_dead_one_made_is_removed(maker, tmp_path):
    remove_leftovers(tmp_path)
    assert names(tmp_path) == maker.made
    maker.kill()
    maker.wait()
    write_whole(tmp_path / "OTHER.json", lambda path: path.write_text("whole"))
    assert names(tmp_path) == {"OTHER.json"}


def test_a_killed_process_that_nobody_has_waited_for_yet_is_dead(maker, tmp_path):
    maker.kill()
    maker.stdout.read()  # to its end
    os.waitid(os.P_PID, maker.pid, os.WEXITED | os.WNOWAIT)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == set()


def test_what_another_machine_makes_is_left_alone(maker, tmp_path):
    maker.kill()
    maker.wait()
    name = next(iter(sorted(maker.made)))
    scope = LEFTOVER.fullmatch(name)[1]
    (tmp_path / name.replace(scope, "0" * len(scope))).touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {name.replace(scope, "0" * len(scope))}
    remove_leftovers(tmp_path, nobody_writes=True)
    assert names(tmp_path) == set()


def test_a_number_that_another_process_has_by_now_does_not_keep_what_the_dead_left(tmp_path):
    own = own_process()
    name = in_the_making(tmp_path / "x").name
    (tmp_path / name).touch()
    (tmp_path / name.replace(f"-{own['started']}-", "-1-")).touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {name}


@pytest.mark.parametrize("name", [".r.npz.1234.tmp", "r.json", ".000005.png.tmp", ".x.0123456789ab-1-2-01234567.tmpx", ".hidden"])
def test_what_is_called_otherwise_is_left_alone(name, tmp_path):
    (tmp_path / name).touch()
    remove_leftovers(tmp_path, nobody_writes=True)
    assert names(tmp_path) == {name}


@pytest.mark.parametrize("name", ["a" * 255, "ü" * 127, "r.npz"])
def test_any_name_that_a_file_can_have_can_be_made(name, tmp_path):
    write_whole(tmp_path / name, lambda path: path.write_text("whole"))
    assert names(tmp_path) == {name}
    assert in_the_making(tmp_path / name) != in_the_making(tmp_path / name)


def test_a_whole_file_replaces_a_link_and_not_what_it_leads_to(tmp_path):
    (victim := tmp_path / "victim").write_text("precious")
    (path := tmp_path / "result.json").symlink_to(victim)
    write_whole(path, lambda beside: beside.write_text("new"))
    assert (path.read_text(), victim.read_text(), path.is_symlink()) == ("new", "precious", False)


def test_a_folder_in_the_place_of_a_file_is_told_before_anything_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder, where a file is to be written"):
        write_whole(tmp_path / "there", lambda _: pytest.fail("it was written"))
    assert names(tmp_path) == {"there"}
