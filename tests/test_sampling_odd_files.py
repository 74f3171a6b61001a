"""What is no file in the place of one of a run's: told at once, never waited for, never written through, never read whole."""

import os
import shutil

import numpy as np
import pytest
from conftest import DIGITS
from made_runs import make_run
from odd_files import KINDS, left_by_a_dead_process, make_sparse, no_waiting, put

from fiducial import NotAFile, UserError
from fiducial.classes import read as class_names
from fiducial.models.checkpoints import checkpoint
from fiducial.models.decoders.autoencoder import Autoencoder
from fiducial.sampling.__main__ import show_verify
from fiducial.sampling.commands.status import status
from fiducial.sampling.commands.verify import verify
from fiducial.sampling.store import lock, records, repair, writer
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store.folder import read_ended
from fiducial.sampling.store.places import check_places
from fiducial.sampling.store.png import read_png, remove_unfinished, write_png
from fiducial.sampling.store.task import events_path, read_events
from sample_ddp import parse

WRITTEN = ("run.npz", "run.npz.part", "run.json", "run.html")
WRITTEN += tuple(f"run/{name}" for name in ("manifest.json", "online.json", "ended.json", ".reserve", "lock", "records.bin"))


@pytest.fixture(autouse=True)
def _guard():
    with no_waiting():
        yield


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, marked=False)


@pytest.fixture
def victim(tmp_path):
    (path := tmp_path / "victim").write_bytes(b"precious")
    yield path
    assert path.read_bytes() == b"precious"


def looked_at(run) -> list[str]:
    return list(verify(run, lambda _: None))


@pytest.mark.parametrize("kind", KINDS)
def test_verify_says_what_stands_in_the_place_of_a_png(kind, run):
    path = put(kind, run / "000005.png")
    assert looked_at(run) == [f"{path}: it is a {kind}, not a file"]


def test_a_png_of_a_terabyte_is_damaged_and_not_read(run):
    path = make_sparse(run / "000005.png")
    assert looked_at(run) == [f"{path}: damaged PNG"]
    assert read_png(path, 8) is None


@pytest.mark.parametrize("kind", [*KINDS[1:], "loop", "sparse"])
def test_a_png_whose_place_is_taken_is_restored(kind, run):
    path = run / "000005.png"
    right = path.read_bytes()
    if kind == "loop":
        path.unlink()
        path.symlink_to(path.name)
    else:
        make_sparse(path) if kind == "sparse" else put(kind, path)
    npz = os.open(archive.npz_path(run), os.O_RDWR)
    found = repair.mend(repair.Copies(run, npz, 8), records.table(run, 0, 9), True, np.ones(9, bool), lambda _: None)
    os.close(npz)
    assert (found.pngs, found.lost, path.read_bytes()) == ([5], [], right)


@pytest.mark.parametrize("kind", KINDS)
def test_verify_says_what_stands_in_the_place_of_the_npz(kind, run):
    path = put(kind, archive.npz_path(run))
    assert f"{path}: it is a {kind}, not a file" in looked_at(run)
    assert status(run).state == "resumable"


@pytest.mark.parametrize(("kind", "name"), [("folder", "run/000005.png"), ("folder", "run.npz"), ("named pipe", "run.npz")])
def test_verify_says_that_the_next_run_is_refused(kind, name, run, capsys):
    path = put(kind, run.parent / name)
    assert show_verify(run) == 1
    assert f"and the next run is refused: {path}: it is a {kind}, not a file" in (said := capsys.readouterr().out)
    assert "restores" not in said


def test_verify_says_that_the_next_run_restores(run, capsys):
    put("named pipe", run / "000005.png")
    assert show_verify(run) == 1
    assert "1 damaged copies; the next run of the same command restores or redraws them" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["manifest.json", "lock", "records.bin"])
def test_what_cannot_be_read_of_a_run_ends_status_at_once(name, kind, run):
    path = put(kind, run / name)
    with pytest.raises((NotAFile, UserError), match=f"it is a {kind}, not a file") as told:
        status(run)
    assert str(path) in (told.value.filename if isinstance(told.value, NotAFile) else str(told.value))


@pytest.mark.parametrize("kind", KINDS)
def test_why_the_last_session_ended_is_unknown_where_that_is_no_file(kind, run):
    put(kind, run / "ended.json")
    assert read_ended(run) is None
    assert status(run).state == "complete"


@pytest.mark.parametrize("kind", ["folder", "named pipe", "socket", "link"])
@pytest.mark.parametrize("name", WRITTEN)
def test_nothing_is_begun_where_a_file_of_a_run_cannot_be_written(name, kind, run, tmp_path, victim):
    path = tmp_path / name
    if kind == "link":
        path.unlink(missing_ok=True)
        path.symlink_to(victim)
    else:
        put(kind, path)
    with pytest.raises(UserError, match=f"{path}: it is a {kind}, not a file.*; move it away, or choose another --run-name"):
        check_places(run)


def test_a_run_as_it_should_be_can_go_on_also_in_a_folder_behind_a_link(run, tmp_path):
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    check_places(run)
    check_places(tmp_path / "elsewhere" / "run")
    (run / "records").rmdir()
    (run / "records").touch()
    with pytest.raises(UserError, match="run/records: it is no folder; move it away"):
        check_places(run)


@pytest.mark.parametrize("kind", ["link", "named pipe", "socket", "file"])
def test_a_png_is_written_whatever_stands_where_it_is_made(kind, run, victim):
    beside = run / ".000005.png.tmp"
    if kind == "link":
        beside.symlink_to(victim)
    else:
        beside.write_bytes(b"half") if kind == "file" else put(kind, beside)
    (run / "000005.png").unlink()
    (run / "000005.png").symlink_to(victim)
    write_png(run / "000005.png", b"new")
    assert (run / "000005.png").read_bytes() == b"new"
    assert not (run / "000005.png").is_symlink()
    assert not beside.exists()


def test_a_folder_in_the_place_of_a_png_is_named(run):
    path = put("folder", run / "000005.png")
    with pytest.raises(NotAFile, match="it is a folder, not a file") as told:
        write_png(path, b"new")
    assert told.value.filename == str(path)
    assert not (run / ".000005.png.tmp").exists()


def test_no_row_is_added_through_a_link(run, victim):
    path = records.part_path(run, 2, 0)
    recorder = records.Recorder(run, 2, 0)
    path.symlink_to(victim)
    with pytest.raises(NotAFile, match="it is a link"):
        recorder.add(records.table(run, 0, 1))
    with pytest.raises(NotAFile, match="it is a link"):  # before anything is drawn
        records.Recorder(run, 2, 0)


@pytest.mark.parametrize("name", ["run.npz", "run.npz.part"])
def test_no_image_is_written_through_a_link(name, run, tmp_path, victim):
    (path := tmp_path / name).unlink(missing_ok=True)
    path.symlink_to(victim)
    with pytest.raises(NotAFile, match="it is a link"):
        writer.BlockWriter(run, path, 8, True, records.Recorder(run, 2, 0), print)
    with pytest.raises(NotAFile, match="it is a link"):
        archive.complete(path, tmp_path / "whole.npz", (b"head", b"tail"))


def test_of_records_that_are_too_long_only_those_that_count_are_read(run, monkeypatch):
    monkeypatch.setattr(records, "CHUNK", 1 << 10)
    first = records.table(run, 0, 9)
    records.Recorder(run, 2, 0).add(first[3:6])
    (run / "records.bin").unlink()
    for path in (run / "records.bin", records.part_path(run, 2, 0)):
        make_sparse(path)
    assert np.flatnonzero(records.done(run, 9, {2: 1})).tolist() == [3, 4, 5]
    assert (records.latest(run, 9, {2: 1})[3:6] == first[3:6]).all()
    records.merge(run, {2: 1}, 9)
    assert np.flatnonzero(records.done(run, 9, {})).tolist() == [3, 4, 5]
    assert (records.table(run, 3, 6) == first[3:6]).all()
    assert records.without_png(run, 9) == 0


def test_a_row_of_an_image_beyond_the_run_does_not_lengthen_the_table(run):
    records.Recorder(run, 2, 0).add(records.row(1 << 50, b"", 0))
    before = (run / "records.bin").stat().st_size
    records.merge(run, {2: 1}, 9)
    assert (run / "records.bin").stat().st_size == before


def test_a_lock_that_is_a_pipe_is_not_waited_for(run):
    put("named pipe", run / "lock")
    with pytest.raises(NotAFile, match="it is a named pipe"):
        lock.Lock(run)


def test_events_are_not_read_out_of_a_pipe(run):
    put("named pipe", events_path(run, 1, 0))
    with pytest.raises(NotAFile, match="it is a named pipe"):
        read_events(run, 1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_the_place_of_a_file_of_a_folder_is_named(kind, tmp_path):
    weights = "diffusion_pytorch_model.safetensors"
    for name in ("config.json", weights, f"{weights}.index.json"):
        said = rf"its {name} cannot be read \(it is a {kind}, not a file\)$"
        folder = tmp_path / name / "transformer"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        put(kind, folder / name)
        with pytest.raises(UserError, match=said.replace("its ", "its transformer/")):
            checkpoint.find(folder.parent)
        if not name.endswith("index.json"):
            vae = shutil.copytree(DIGITS / "vae", tmp_path / name / "vae")
            put(kind, vae / name)
            with pytest.raises(UserError, match=said):
                Autoencoder(vae).identity()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_what_is_given_as_a_file_and_is_none_is_one_sentence(kind, tmp_path):
    path = put(kind, tmp_path / "given")
    for read in (checkpoint.read, checkpoint.read_json, lambda path: class_names(path, "x")):
        with pytest.raises(UserError, match=f"it is a {kind}, not a file"):
            read(path)
    with pytest.raises(UserError, match=rf"--config {path}: cannot be read \(it is a {kind}, not a file\)"):
        parse(["--config", str(path)])


def test_what_killed_processes_left_of_pngs_is_removed(run):
    (run / "from-0000100000").mkdir()
    left = [run / ".000003.png.tmp", run / ".1000003.png.tmp", run / "from-0000100000" / ".100003.png.tmp"]
    left.append(left_by_a_dead_process(run / "manifest.json"))
    for path in left:
        path.write_bytes(b"half")
    (run / ".mine.png.tmp").write_bytes(b"not ours")
    before = {path for path in run.rglob("*") if path not in left}
    remove_unfinished(run)
    assert set(run.rglob("*")) == before
