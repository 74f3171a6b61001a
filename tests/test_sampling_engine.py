"""Runs as a user makes them, on files: torchrun, several ranks, kills, and what is equal to the byte afterwards."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DIGITS, ROOT, run_command
from PIL import Image

import distributed
import sample_ddp
from distributed import UserError
from sampling import engine


def options(checkpoint: Path, folder: Path, **changes) -> list[str]:
    settings = {
        "preset": "digits",
        "model": "DiT-XS/8",
        "ckpt": checkpoint,
        "num_fid_samples": 22,
        "per_proc_batch_size": 4,
        "num_sampling_steps": 3,
        "sample_dir": folder,
        "run_name": "run",
    } | changes
    return [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def contents(folder: Path) -> dict[str, bytes]:
    """Every image of a run and its npz."""
    return {path.name: path.read_bytes() for path in [*(folder / "run").glob("*.png"), folder / "run.npz"]}


def draw_here(*arguments: str) -> Path:
    """A run in this process, on one rank."""
    config, _ = sample_ddp.parse(list(arguments))
    return engine.run(config, distributed.init("cpu"))


@pytest.fixture
def undo_exact():
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(tiny_checkpoint, tmp_path_factory) -> Path:
    """The exact run that others are compared with, drawn by one rank."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run_command("sample_ddp.py", *options(tiny_checkpoint, folder), "--exact")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_number_of_ranks_draws_the_same_bytes(ranks, undisturbed, tiny_checkpoint, tmp_path):
    done = run_command("sample_ddp.py", *options(tiny_checkpoint, tmp_path), "--exact", ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == contents(undisturbed)
    assert len(contents(tmp_path)) == 23
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["identity"]["noise"] == "philox-v1"
    assert manifest["sessions"][0]["world_size"] == ranks
    assert manifest["sessions"][0]["images_drawn"] == 22


def test_the_npz_holds_the_images_in_order(undisturbed):
    with np.load(undisturbed / "run.npz", allow_pickle=False) as arrays:
        assert arrays["arr_0"].shape == (22, 64, 64, 3)
        assert arrays["arr_1"].shape == (22,)
        for index, pixels in enumerate(arrays["arr_0"]):
            assert (np.asarray(Image.open(undisturbed / "run" / f"{index:06d}.png")) == pixels).all()
        assert len({pixels.tobytes() for pixels in arrays["arr_0"]}) == 22  # no two draws are one


def test_batch_sizes_change_neither_labels_nor_noise(tiny_checkpoint, tmp_path):
    paths = [draw_here(*options(tiny_checkpoint, tmp_path / str(size), per_proc_batch_size=size)) for size in (7, 16)]
    (images_a, labels_a), (images_b, labels_b) = ((file["arr_0"], file["arr_1"]) for file in map(np.load, paths))
    assert (labels_a == labels_b).all()
    # Other noise changes pixels by dozens of levels; another order of summation, by one where a value is at the edge.
    assert np.abs(images_a.astype(int) - images_b).max() <= 1


@pytest.mark.usefixtures("undo_exact")
def test_a_run_that_grows_keeps_its_images_and_equals_one_drawn_at_once(undisturbed, tiny_checkpoint, tmp_path):
    draw_here(*options(tiny_checkpoint, tmp_path, num_fid_samples=9), "--exact")
    before = {
        name: (tmp_path / "run" / name).stat().st_mtime_ns for name in os.listdir(tmp_path / "run") if name.endswith(".png")
    }
    assert len(before) == 9
    draw_here(*options(tiny_checkpoint, tmp_path), "--exact")
    assert contents(tmp_path) == contents(undisturbed)
    assert all((tmp_path / "run" / name).stat().st_mtime_ns == when for name, when in before.items())
    with pytest.raises(UserError, match="can grow but not shrink"):
        draw_here(*options(tiny_checkpoint, tmp_path, num_fid_samples=9), "--exact")


def test_a_finished_run_is_left_alone(tiny_checkpoint, tmp_path):
    npz = draw_here(*options(tiny_checkpoint, tmp_path))
    before = npz.stat().st_mtime_ns
    draw_here(*options(tiny_checkpoint, tmp_path))
    assert npz.stat().st_mtime_ns == before
    whole = npz.read_bytes()
    npz.write_bytes(whole[:-100])
    draw_here(*options(tiny_checkpoint, tmp_path))
    assert npz.read_bytes() == whole
    npz.unlink()
    draw_here(*options(tiny_checkpoint, tmp_path))
    assert npz.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"cfg_scale": 2.0}, "cfg_scale is 1.5 there and 2.0 here"),
        ({"global_seed": 1}, "global_seed"),
        ({"labels": "balanced"}, "labels is random there and balanced here"),
        ({"per_proc_batch_size": 5}, "per_proc_batch_size"),
        ({"num_sampling_steps": "ddim10"}, "num_sampling_steps"),
        ({"ckpt": "OTHER"}, "checkpoint_sha256"),
        ({"vae": "OTHER"}, "vae_config_sha256"),
    ],
)
def test_another_configuration_is_refused_by_the_field_that_differs(change, named, tiny_checkpoint, tmp_path):
    draw_here(*options(tiny_checkpoint, tmp_path, num_fid_samples=4))
    before = contents(tmp_path)
    if change.get("ckpt") == "OTHER":
        other = tmp_path / "other.safetensors"
        other.write_bytes(tiny_checkpoint.read_bytes()[:-4] + b"\0\0\0\0")
        change = {"ckpt": other}
    if change.get("vae") == "OTHER":  # the same weights, put to another use
        shutil.copytree(DIGITS / "vae", tmp_path / "vae")
        config = (tmp_path / "vae" / "config.json").read_text()
        (tmp_path / "vae" / "config.json").write_text(config.replace('"silu"', '"relu"'))
        change = {"vae": tmp_path / "vae"}
    with pytest.raises(UserError, match=named):
        draw_here(*options(tiny_checkpoint, tmp_path, num_fid_samples=4, **change))
    assert contents(tmp_path) == before


def test_run_names_of_different_configurations_differ(tiny_checkpoint, tmp_path):
    common = options(tiny_checkpoint, tmp_path, num_fid_samples=1, per_proc_batch_size=1, num_sampling_steps=1)
    common = common[: common.index("--run-name")]
    other = tmp_path / "other" / tiny_checkpoint.name  # as trainers name them: 0400000.pt in each experiment's folder
    other.parent.mkdir()
    other.write_bytes(tiny_checkpoint.read_bytes()[:-4] + b"\0\0\0\0")
    changes = [[], ["--eta", "0.5", "--sampler", "ddim"], ["--sampler", "ddim"], ["--labels", "3"], ["--ckpt", str(other)]]
    paths = {draw_here(*common, *change) for change in changes}
    assert len(paths) == len(changes)
    assert all(path.name.startswith("DiT-XS-8-tiny-size-64-vae-digits-cfg-1.5-seed-0-") for path in paths)


@pytest.mark.parametrize(
    "extra", [["--sampler", "ddim", "--eta", "0.7"], ["--sampler", "ddim"], ["--labels", "null"], ["--cfg-scale", "1"]]
)
def test_every_way_to_sample_gives_its_own_images(extra, tiny_checkpoint, tmp_path):
    plain = np.load(draw_here(*options(tiny_checkpoint, tmp_path / "a", num_sampling_steps="ddim10")))["arr_0"]
    other = np.load(draw_here(*options(tiny_checkpoint, tmp_path / "b", num_sampling_steps="ddim10"), *extra))["arr_0"]
    assert (plain != other).mean() > 0.05


def worker_ids(launcher: int) -> list[int]:
    """Process ids of torchrun's workers."""
    return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


@pytest.mark.parametrize(("seed", "ranks", "ranks_after"), [(0, 2, 3), (1, 3, 1), (2, 2, 2), (3, 1, 2), (4, 3, 2)])
def test_a_killed_run_continues_to_the_same_bytes(seed, ranks, ranks_after, tiny_checkpoint, killed_reference, tmp_path):
    """SIGKILL of a worker at a random moment with some images there and some missing, then another number of ranks."""
    arguments = [*options(tiny_checkpoint, tmp_path, num_fid_samples=90, num_sampling_steps=50), "--exact"]
    chance = random.Random(seed)
    moment = chance.randrange(1, 60)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "sample_ddp.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*launch, *arguments], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    pictures = 0
    while pictures < moment and process.poll() is None:
        pictures = len(list((tmp_path / "run").glob("*.png"))) if (tmp_path / "run").exists() else 0
        time.sleep(0.001)
    os.kill(chance.choice(worker_ids(process.pid)), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0, said
    left = len(list((tmp_path / "run").glob("*.png")))
    assert 0 < left < 90, "the kill came too early or too late to prove anything"
    assert not (tmp_path / "run.npz").exists()

    done = run_command("sample_ddp.py", *arguments, ranks=ranks_after)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == contents(killed_reference)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert [session["images_before"] for session in manifest["sessions"]] == [0, left]
    assert not list((tmp_path / "run").glob(".*"))


@pytest.fixture(scope="module")
def killed_reference(tiny_checkpoint, tmp_path_factory) -> Path:
    """What the killed runs must become."""
    folder = tmp_path_factory.mktemp("never-killed")
    arguments = options(tiny_checkpoint, folder, num_fid_samples=90, num_sampling_steps=50)
    done = run_command("sample_ddp.py", *arguments, "--exact", ranks=2)
    assert done.returncode == 0, done.stderr
    return folder
