"""`--evaluate-online`: the number of an ordinary run without its images, through kills, growth and damage."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, options, run_command

import sample_ddp
from fiducial import UserError
from fiducial.evaluation.results.reading import find_result
from fiducial.sampling.commands.status import status
from fiducial.sampling.run import feature_files
from fiducial.sampling.source.latent_diffusion import LatentDiffusion

ONLINE = ["--ref", "digits", "--evaluate-online"]


def score_here(arguments: list[str], monkeypatch) -> None:
    """The command in this process."""
    monkeypatch.setattr(sys, "argv", ["sample_ddp.py", *arguments])
    sample_ddp.main()


def result(folder: Path, name: str = "run-online") -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def comparable(found: dict) -> dict:
    """What must not depend on how a result came about."""
    return {"metrics": found["metrics"], "pixels": found["samples"]["pixels_sha256"], "names": found.get("class_names")}


@pytest.fixture(scope="module")
def ordinary(tiny_checkpoint, tmp_path_factory) -> dict:
    """The result of a run with images."""
    folder = tmp_path_factory.mktemp("ordinary")
    with pytest.MonkeyPatch.context() as patch:
        score_here([*options(tiny_checkpoint, folder), "--ref", "digits"], patch)
    return result(folder, "run")


def close(found: dict, expected: dict) -> bool:
    """Whether all numbers agree to 1e-9."""
    if found["metrics"].keys() != expected["metrics"].keys() or found["samples"]["pixels_sha256"] is None:
        return False
    one, other = comparable(found), comparable(expected)
    for name, metric in one.pop("metrics").items():
        theirs = expected["metrics"][name]
        for field in ("value", "error", "low", "high"):
            if metric[field] != (theirs[field] if theirs[field] is None else pytest.approx(theirs[field], rel=1e-9, abs=1e-9)):
                return False
    other.pop("metrics")
    return one == other


def test_the_number_is_that_of_a_run_with_images_and_no_image_is_written(ordinary, tiny_checkpoint, tmp_path, monkeypatch):
    score_here([*options(tiny_checkpoint, tmp_path), *ONLINE], monkeypatch)
    assert close(result(tmp_path), ordinary)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    features = {name for name in files if name.startswith("run-online/digits-")}
    results = {"run-online.json", "run-online.influences.f32", "run-online.html", "run-online/online.json"}
    assert files - features == results | {"run-online.newest.png", "run-online/progress.json"}
    assert sorted(Path(name).name for name in features) == [f"{start:08d}.npz" for start in range(0, 22, 4)]
    found = result(tmp_path)
    assert found["run"]["identity"]["cfg_scale"] == ordinary["run"]["identity"]["cfg_scale"]
    assert [session["images"] for session in found["run"]["sessions"]] == [22]
    assert found["samples"]["content_sha256"] is None


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.long)])
def test_ranks_score_together(ranks, ordinary, tiny_checkpoint, tmp_path):
    done = run_command("sample_ddp.py", *options(tiny_checkpoint, tmp_path), *ONLINE, ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert close(result(tmp_path), ordinary)


def test_a_killed_run_goes_on_with_the_blocks_that_are_missing(ordinary, tiny_checkpoint, tmp_path, monkeypatch):
    arguments = [*options(tiny_checkpoint, tmp_path), *ONLINE]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "sample_ddp.py", *arguments], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 60
        while not (kept := list(tmp_path.glob("run-online/digits-*/*.npz"))) and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert before
    score_here(arguments, monkeypatch)
    assert close(result(tmp_path), ordinary)
    assert all(path.stat().st_mtime_ns == time_before for path, time_before in before.items())


def test_a_block_that_a_file_system_shows_late_is_waited_for(ordinary, tiny_checkpoint, tmp_path, monkeypatch):
    finish, hidden = feature_files.FeatureFiles.finish, tmp_path / "not yet"

    def hide(sink: feature_files.FeatureFiles, manifest: object) -> str:
        next(tmp_path.glob("run-online/*/00000004.npz")).rename(hidden)
        return finish(sink, manifest)

    def show(_: float) -> None:
        hidden.rename(next(tmp_path.glob("run-online/*/00000000.npz")).with_name("00000004.npz"))

    monkeypatch.setattr(feature_files.FeatureFiles, "finish", hide)
    monkeypatch.setattr(feature_files, "time", SimpleNamespace(sleep=show, monotonic=time.monotonic))
    score_here([*options(tiny_checkpoint, tmp_path), *ONLINE], monkeypatch)
    assert close(result(tmp_path), ordinary)


def test_a_finished_run_draws_nothing_and_can_grow(ordinary, tiny_checkpoint, tmp_path, monkeypatch):
    few = [*options(tiny_checkpoint, tmp_path, num_fid_samples=14), *ONLINE]
    score_here(few, monkeypatch)
    kept = {path: path.read_bytes() for path in tmp_path.glob("run-online/digits-*/*.npz")}
    with monkeypatch.context() as patch:
        patch.setattr(LatentDiffusion, "blocks", lambda *_: pytest.fail("drawing began"))
        score_here(few, patch)
    score_here([*options(tiny_checkpoint, tmp_path), *ONLINE], monkeypatch)
    assert close(result(tmp_path), ordinary)
    whole = [path for path in kept if path.name != "00000012.npz"]  # images 12 and 13 of four
    assert len(whole) == 3
    assert all(path.read_bytes() == kept[path] for path in whole)
    with pytest.raises(SystemExit):
        score_here(few, monkeypatch)


@pytest.mark.parametrize("change", ["run", "labels", "features"])
def test_a_block_that_is_not_this_runs_is_drawn_again(change, ordinary, tiny_checkpoint, tmp_path, monkeypatch):
    """One of another seed that was copied here, one with other labels, one whose features are not finite."""
    arguments = [*options(tiny_checkpoint, tmp_path), *ONLINE]
    score_here(arguments, monkeypatch)
    path = next(tmp_path.glob("run-online/digits-*/00000008.npz"))
    if change == "run":
        score_here([*options(tiny_checkpoint, tmp_path, run_name="other", global_seed=1), *ONLINE], monkeypatch)
        shutil.copy(next(tmp_path.glob("other-online/digits-*/00000008.npz")), path)
    else:
        with np.load(path) as state:
            arrays = dict(state)
        arrays[change] = arrays[change] * (np.float32("nan") if change == "features" else 0)
        np.savez(path, **arrays)
    score_here(arguments, monkeypatch)
    assert close(result(tmp_path), ordinary)


def test_status_and_compare_know_what_it_is(tiny_checkpoint, tmp_path, monkeypatch):
    score_here([*options(tiny_checkpoint, tmp_path), *ONLINE], monkeypatch)
    with pytest.raises(UserError, match="is of --evaluate-online, which keeps no images"):
        status(tmp_path / "run-online")
    assert find_result(tmp_path / "run") == find_result(tmp_path / "run-online") == tmp_path / "run-online.json"


@pytest.mark.parametrize("damage", ["cut off", "empty", "bits", "other"])
def test_a_damaged_block_is_drawn_again(damage, ordinary, tiny_checkpoint, tmp_path, monkeypatch):
    arguments = [*options(tiny_checkpoint, tmp_path), *ONLINE]
    score_here(arguments, monkeypatch)
    path = next(tmp_path.glob("run-online/digits-*/00000008.npz"))
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "cut off": whole[:middle],
            "empty": b"",
            "bits": whole[:middle] + bytes(byte ^ 255 for byte in whole[middle : middle + 64]) + whole[middle + 64 :],
            "other": path.with_name("00000004.npz").read_bytes(),
        }[damage]
    )
    for file in tmp_path.glob("run-online.*"):
        file.unlink()
    score_here(arguments, monkeypatch)
    assert close(result(tmp_path), ordinary)


def test_another_configuration_in_the_same_folder_is_refused(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    score_here([*options(tiny_checkpoint, tmp_path), *ONLINE], monkeypatch)
    with pytest.raises(SystemExit) as ended:
        score_here([*options(tiny_checkpoint, tmp_path, cfg_scale=3), *ONLINE], monkeypatch)
    assert ended.value.code == 2
    assert "cfg_scale is 1.5 there and 3.0 here" in capsys.readouterr().err
    about = tmp_path / "run-online" / "online.json"
    about.write_text(about.read_text().replace('"cfg_scale": 1.5', '"cfg_scale": 3.0'))
    with pytest.raises(SystemExit):
        score_here([*options(tiny_checkpoint, tmp_path), *ONLINE], monkeypatch)
    assert "is not whole" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--evaluate-online"], "needs --ref"), ([*ONLINE, "--dry-run"], "--dry-run is for runs that keep their images")],
)
def test_what_cannot_be_meant_is_told(arguments, said):
    with pytest.raises(UserError, match=said):
        sample_ddp.parse(["--preset", "digits", *arguments])


def test_a_full_disk_is_told_before_anything_is_drawn(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fiducial.sampling.store.disk.room", lambda _: 100)
    with pytest.raises(SystemExit):
        score_here([*options(tiny_checkpoint, tmp_path), *ONLINE], monkeypatch)
    assert "features of the images need about" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_with_images_stands_beside_it(ordinary, tiny_checkpoint, tmp_path, monkeypatch):
    score_here([*options(tiny_checkpoint, tmp_path), *ONLINE], monkeypatch)
    shutil.rmtree(tmp_path / "run-online")
    score_here([*options(tiny_checkpoint, tmp_path), "--ref", "digits"], monkeypatch)
    assert comparable(result(tmp_path, "run")) == comparable(ordinary)
    assert np.load(tmp_path / "run.npz")["arr_0"].shape[0] == 22


@pytest.mark.parametrize("first", ["online", "images"])
def test_a_run_of_the_other_kind_is_refused(first, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    """`--run-name x --evaluate-online` and `--run-name x-online` would share a folder."""
    online = [*options(tiny_checkpoint, tmp_path, run_name="x"), *ONLINE]
    images = options(tiny_checkpoint, tmp_path, run_name="x-online")
    one, other = (online, images) if first == "online" else (images, online)
    score_here(one, monkeypatch)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as ended:
        score_here(other, monkeypatch)
    assert ended.value.code == 2
    assert f"{tmp_path / 'x-online'} belongs to a run" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    score_here(one, monkeypatch)
