"""The table of faults of docs/reliability.md: each is made to happen to a real run, which then continues to the same bytes."""

import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import conftest
import numpy as np
import pytest
from conftest import ROOT, contents, draw_files, run_command
from PIL import Image
from safetensors.torch import load_file, save_file

import fiducial
import sample_ddp
from fiducial import UserError
from fiducial.sampling.commands.status import status
from fiducial.sampling.commands.verify import verify
from fiducial.sampling.store import npz as archive

COUNT = 90
ENDS_WITHIN = 180 if os.environ.get("FIDUCIAL_FAST") else 60  # seconds; longer counts as hanging, and compiling takes some


# scripts/test.sh --all makes the whole table happen a second time, to bf16 and compiled code. Blocks and threads being equal,
# that ends in the same bytes too.
HOW = ["--precision", "bf16", "--compile"] if os.environ.get("FIDUCIAL_FAST") else ["--exact"]


def options(checkpoint: Path, folder: Path, **changes) -> list[str]:
    return [*conftest.options(checkpoint, folder, **{"num_fid_samples": COUNT, "num_sampling_steps": 20} | changes), *HOW]


def sessions(folder: Path) -> list[dict]:
    return json.loads((folder / "run" / "manifest.json").read_text())["sessions"]


class Launched:
    """A run through torchrun, as it goes on."""

    def __init__(self, folder: Path, arguments: list[str], ranks: int = 2, launcher: str = "--standalone", fault: str = ""):
        program = [ROOT / "tests" / "faulty.py", fault] if fault else ["sample_ddp.py"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *launcher.split(), f"--nproc_per_node={ranks}"]
        self.folder, self._log = folder / "run", folder / "log"
        with open(self._log, "w") as log:
            self.process = subprocess.Popen(
                [str(part) for part in (*torchrun, *program, *arguments)],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    @property
    def images(self) -> int:
        return status(self.folder).images if (self.folder / "manifest.json").exists() else 0

    def reach(self, images: int) -> "Launched":
        """Waits until so many images are there."""
        until = time.monotonic() + 120
        while self.images < images and self.process.poll() is None:
            assert time.monotonic() < until, self.said
            time.sleep(0.001)
        return self

    def workers(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def ended(self) -> int:
        """Waits for the end; returns how many images are there: some, not all."""
        assert self.process.wait(timeout=ENDS_WITHIN) != 0, self.said
        left = self.images
        assert 0 < left < COUNT, "the fault came too early or too late to prove anything"
        assert not archive.npz_path(self.folder).exists()
        return left


def draw_here(*arguments: str, with_png: bool = True) -> Path:
    """A run in this process, on one rank."""
    config, _ = sample_ddp.parse(list(arguments))
    return draw_files(config, fiducial.init("cpu"), with_png)


@pytest.fixture(scope="module")
def undisturbed(tiny_checkpoint, tmp_path_factory) -> Path:
    """What every disturbed run must become."""
    folder = tmp_path_factory.mktemp("undisturbed")
    draw_here(*options(tiny_checkpoint, folder))
    return folder


def continues(folder: Path, arguments: list[str], undisturbed: Path, ranks: int = 0) -> None:
    """The same command once more, here or on so many ranks, ends in the bytes of a run that nothing happened to."""
    if ranks:
        done = run_command("sample_ddp.py", *arguments, ranks=ranks)
        assert done.returncode == 0, done.stderr
    else:
        draw_here(*arguments)
    assert contents(folder) == contents(undisturbed)
    assert status(folder / "run").state == "complete"
    assert not (folder / "run" / "ended.json").exists()


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 20))]


@pytest.mark.parametrize("seed", SEEDS)
def test_sigkill_of_a_worker_at_any_moment(seed, tiny_checkpoint, undisturbed, tmp_path):
    """And a restart with another number of ranks, among them 1, 2, 3 and 5."""
    chance = random.Random(seed)
    run = Launched(tmp_path, arguments := options(tiny_checkpoint, tmp_path), ranks=2 + seed % 2)
    run.reach(chance.randrange(1, 60))
    os.kill(chance.choice(run.workers()), signal.SIGKILL)
    left = run.ended()
    assert "was killed from outside" in run.said
    assert (status(run.folder).state, status(run.folder).exit_code) == ("resumable", 75)
    continues(tmp_path, arguments, undisturbed, ranks=(3, 1, 2, 5)[seed % 4])
    assert [session["images_before"] for session in sessions(tmp_path)] == [0, left]
    assert "was killed from outside" in sessions(tmp_path)[0]["ended"]["message"]


@pytest.mark.long
@pytest.mark.parametrize("compiled", [False, True])
def test_the_fast_path_continues_in_the_same_bytes(compiled, tiny_checkpoint, tmp_path):
    """bf16, killed, and continued by another number of ranks."""
    fast = [*conftest.options(tiny_checkpoint, tmp_path, num_fid_samples=COUNT), "--precision", "bf16"]
    fast.append("--compile" if compiled else "--no-compile")
    draw_here(*fast, "--run-name", "undisturbed")
    run = Launched(tmp_path, fast)
    os.kill(run.reach(4).workers()[1], signal.SIGKILL)
    run.ended()
    draw_here(*fast)
    assert json.loads((run.folder / "manifest.json").read_text())["identity"]["compile"] is compiled
    assert (tmp_path / "run.npz").read_bytes() == (tmp_path / "undisturbed.npz").read_bytes()


@pytest.mark.long
def test_sigkill_without_pngs_loses_nothing_either(tiny_checkpoint, undisturbed, tmp_path):
    run = Launched(tmp_path, arguments := [*options(tiny_checkpoint, tmp_path), "--no-png"])
    os.kill(run.reach(30).workers()[0], signal.SIGKILL)
    left = run.ended()
    draw_here(*arguments, with_png=False)
    assert contents(tmp_path) == {"run.npz": (undisturbed / "run.npz").read_bytes()}
    assert [session["images_before"] for session in sessions(tmp_path)] == [0, left]


def test_sigkill_of_the_launcher(tiny_checkpoint, tmp_path):
    """Its workers are orphans then, and its store is gone."""
    run = Launched(tmp_path, arguments := options(tiny_checkpoint, tmp_path, num_sampling_steps=80))
    workers = run.reach(8).workers()
    run.process.kill()
    until = time.monotonic() + ENDS_WITHIN
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < until, "workers of a killed launcher draw on"
        time.sleep(0.1)
    run.ended()
    assert run.said.count("error (") == 1
    assert "frame #" not in run.said  # of torch's C++
    assert status(run.folder).exit_code == 75
    assert not (run.folder / "lock").exists()
    draw_here(*arguments)
    assert status(run.folder).state == "complete"
    assert not list(verify(run.folder, lambda _: None))


ALSO = [pytest.param(number, marks=pytest.mark.long) for number in (signal.SIGUSR1, signal.SIGHUP)]


@pytest.mark.parametrize("number", [signal.SIGTERM, *ALSO])
def test_a_signal_to_the_launcher(number, tiny_checkpoint, undisturbed, tmp_path):
    handled = "--standalone --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    run = Launched(tmp_path, arguments := options(tiny_checkpoint, tmp_path), launcher=handled)
    run.reach(20).process.send_signal(number)
    run.ended()
    assert len(re.findall(rf"stopped by {number.name} \(rank \d on .*\); the same command continues", run.said)) == 1
    assert not (run.folder / "lock").exists()
    assert "finished" not in sessions(tmp_path)[0]
    found = status(run.folder)
    assert (found.state, found.exit_code, found.reason) == ("resumable", 75, f"stopped by {number.name}")
    continues(tmp_path, arguments, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_signal_without_a_launcher(number, tiny_checkpoint, undisturbed, tmp_path):
    arguments = options(tiny_checkpoint, tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as many as here, or the fast path's pixels may differ
    command = [sys.executable, "sample_ddp.py", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "000007.png").exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    _, said = process.communicate(timeout=ENDS_WITHIN)
    assert process.returncode == (-number if number == signal.SIGINT else 75)  # a shell's loop ends by Ctrl-C
    assert said.count(f"stopped by {number.name}; the same command continues\n") == 1
    continues(tmp_path, arguments, undisturbed)


def test_a_rank_that_raises(tiny_checkpoint, undisturbed, tmp_path):
    run = Launched(tmp_path, arguments := options(tiny_checkpoint, tmp_path), fault="raise")
    assert run.process.wait(timeout=ENDS_WITHIN) != 0
    words = "RuntimeError: the thirteenth fan is on fire; while drawing images 4 to 7"
    ours, _, launchers = run.said.partition("Root Cause")
    assert ours.count(words) == 1
    assert f"error (rank 1 on {os.uname().nodename}): {words}" in ours
    assert words in launchers
    ended = json.loads((run.folder / "ended.json").read_text())
    assert (ended["message"], ended["rank"], ended["host"]) == (words, 1, os.uname().nodename)
    assert "raise_error" in ended["traceback"]
    assert (status(run.folder).state, status(run.folder).exit_code) == ("failed", 1)
    continues(tmp_path, arguments, undisturbed)


def test_a_rank_that_hangs(tiny_checkpoint, undisturbed, tmp_path):
    arguments = options(tiny_checkpoint, tmp_path)
    run = Launched(tmp_path, [*arguments, "--hang-timeout", "15"], fault="hang")
    run.ended()
    assert run.said.count("error (rank 1") == 1
    assert "hung: no progress for 15 s in faulty.py" in run.said.partition("Root Cause")[2]
    assert status(run.folder).exit_code == 75
    continues(tmp_path, arguments, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("rank", [1, 0])
def test_a_rank_that_is_frozen_by_the_system(rank, tiny_checkpoint, undisturbed, tmp_path):
    """Not even its threads run; another notices."""
    run = Launched(tmp_path, arguments := options(tiny_checkpoint, tmp_path))
    os.kill(run.reach(20).workers()[rank], signal.SIGSTOP)
    run.ended()
    ours, _, cause = run.said.partition("Root Cause")
    assert ours.count(f"rank {rank} (process ") == 1
    assert "has not been heard of for 15 s" in cause
    continues(tmp_path, arguments, undisturbed)


def differs_by(folder: Path, undisturbed: Path) -> float:
    """The largest difference of the drawn pixels, in levels, with labels and order equal."""
    found, expected = (np.load(place / "run.npz") for place in (folder, undisturbed))
    assert (found["arr_1"] == expected["arr_1"]).all()
    return np.abs(found["arr_0"].astype(int) - expected["arr_0"]).max()


@pytest.mark.parametrize("fault", ["out-of-memory", pytest.param("really-out-of-memory", marks=pytest.mark.long)])
def test_a_rank_out_of_memory_halves_its_batch(fault, tiny_checkpoint, undisturbed, tmp_path, monkeypatch):
    if fault == "really-out-of-memory":
        monkeypatch.setenv("ROOM", str(55 << 20))
    arguments = options(tiny_checkpoint, tmp_path, per_proc_batch_size=4 if fault == "out-of-memory" else 64)
    arguments.append("--no-vae-slicing")  # one at a time they fit
    run = Launched(tmp_path, arguments, fault=fault)
    assert run.process.wait(timeout=120) == 0, run.said
    events = sessions(tmp_path)[0]["events"]
    found = {event["event"] for event in events}
    assert "out of memory" + " while decoding" * (fault == "really-out-of-memory") in found
    assert found <= {"out of memory", "out of memory while decoding"}
    assert {event["rank"] for event in events} == {1}
    assert differs_by(tmp_path, undisturbed) <= 1


def test_a_machine_too_small_for_one_image_is_named(tiny_checkpoint, tmp_path):
    done = run_command(ROOT / "tests" / "faulty.py", "no-memory", *options(tiny_checkpoint, tmp_path))
    assert done.returncode == 2
    assert "out of memory for a single image, of images 0 to 3" in done.stderr
    assert not list(tmp_path.rglob("*.png"))


def test_a_number_that_overflows_is_drawn_again(tiny_checkpoint, undisturbed, tmp_path):
    run = Launched(tmp_path, options(tiny_checkpoint, tmp_path), fault="nan")
    assert run.process.wait(timeout=120) == 0, run.said
    (event,) = sessions(tmp_path)[0]["events"]
    assert (event["rank"], event["event"]) == (1, "not finite, drawn again in fp32")
    assert event["indices"] == [6]
    assert differs_by(tmp_path, undisturbed) <= 1


def test_weights_that_give_nan_are_named_and_write_no_image(tiny_checkpoint, tmp_path):
    broken = load_file(tiny_checkpoint)
    broken["final_layer.linear.bias"][0] = float("nan")
    save_file(broken, tmp_path / "nan.safetensors")
    done = run_command("sample_ddp.py", *options(tmp_path / "nan.safetensors", tmp_path))
    assert done.returncode != 0
    assert done.stderr.count("NaN or infinity for images ") == 1
    assert not list(tmp_path.rglob("*.png"))
    assert status(tmp_path / "run").exit_code == 1
    assert status(tmp_path / "run").images == 0


def mounted(folder: Path, size: str) -> Path:
    """A small disk of its own; needs to be root."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    return folder


@pytest.fixture
def small_disk(tmp_path):
    folder = mounted(tmp_path / "disk", "4m")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(disk: Path) -> Path:
    """A file that leaves no room for any other."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return filler


@pytest.mark.parametrize("pngs", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_disk_that_fills_up(pngs, tiny_checkpoint, undisturbed, small_disk):
    arguments = options(tiny_checkpoint, small_disk) + ([] if pngs else ["--no-png"])
    run = Launched(small_disk, arguments)
    filler = fill(run.reach(8).folder.parent)
    run.process.wait(timeout=ENDS_WITHIN)
    assert 0 < run.images < COUNT
    found = status(run.folder)
    assert (found.state, found.exit_code) == ("failed", 1)
    assert "no space is left" in found.reason

    refused = run_command("sample_ddp.py", *arguments)
    assert refused.returncode == 2
    assert re.search(r"disk/run has \d.*B of room, and \d+ images need about .*B", refused.stderr)
    filler.unlink()
    draw_here(*arguments, with_png=pngs)
    assert (small_disk / "run.npz").read_bytes() == (undisturbed / "run.npz").read_bytes()
    assert len(list((small_disk / "run").glob("*.png"))) == (COUNT if pngs else 0)
    assert not list((small_disk / "run").glob(".*"))


def test_a_folder_that_cannot_be_written(tiny_checkpoint, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(UserError, match=f"cannot create {small_disk}/run, because {small_disk} cannot be written"):
        draw_here(*options(tiny_checkpoint, small_disk))
    small = COUNT // 10
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    arguments = options(tiny_checkpoint, small_disk, num_fid_samples=small)
    draw_here(*arguments)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(UserError, match=f"^--sample-dir {small_disk}: {small_disk}/run cannot be written$"):
        draw_here(*arguments)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def exchange(path: Path) -> None:
    """A whole PNG of as many bytes, but another image."""
    image = np.asarray(Image.open(path)).copy()
    image[0, 0, 0] ^= 1
    for level in range(1, 10):
        for _ in range(50):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, format="PNG", compress_level=level)
            if len(buffer.getvalue()) == path.stat().st_size:
                path.write_bytes(buffer.getvalue())
                return
            image[np.random.default_rng(level).integers(64), 0, 0] ^= 3
    Image.fromarray(image).save(path)


@pytest.fixture(scope="module")
def finished(tiny_checkpoint, tmp_path_factory) -> Path:
    """A small whole run to damage copies of."""
    folder = tmp_path_factory.mktemp("finished")
    draw_here(*options(tiny_checkpoint, folder, num_fid_samples=22, num_sampling_steps=3))
    return folder


@pytest.mark.parametrize("slot", [False, True], ids=["only", "and its slot"])
@pytest.mark.parametrize("damage", [cut, empty, flip, exchange, Path.unlink], ids=lambda damage: damage.__name__)
def test_a_damaged_png_is_found_and_made_anew(damage, slot, finished, tiny_checkpoint, tmp_path):
    """From the npz, or where its slot is damaged too by drawing it."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "run" / "000013.png")
    if slot:
        damage_slot(tmp_path / "run.npz", 13)
    assert len(list(verify(tmp_path / "run", lambda _: None))) == 1 + slot
    draw_here(*options(tiny_checkpoint, tmp_path, num_fid_samples=22, num_sampling_steps=3))
    assert contents(tmp_path) == contents(finished)
    last = sessions(tmp_path)[-1]
    assert (last["copies_restored"], last["images_redrawn"]) == ((0, 1) if slot else (1, 0))
    assert not list(verify(tmp_path / "run", lambda _: None))


def damage_slot(npz: Path, index: int) -> None:
    with open(npz, "r+b") as file:
        file.seek(archive.slot(index, 64) + 77)
        file.write(b"damage")


@pytest.mark.parametrize("damage", ["slot", "slots without PNGs", "header", "labels", "cut", "gone"])
def test_a_damaged_npz_is_found_and_mended(damage, finished, tiny_checkpoint, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    npz, size = tmp_path / "run.npz", (finished / "run.npz").stat().st_size
    if damage.startswith("slot"):
        for index in (0, 13, 21):
            damage_slot(npz, index)
    elif damage in ("header", "labels"):
        with open(npz, "r+b") as file:
            file.seek(65536 - 60 if damage == "header" else size - 300)
            file.write(b"damage")
    elif damage == "cut":
        os.truncate(npz, size // 2)
    else:
        npz.unlink()
    if damage == "slots without PNGs":
        for path in (tmp_path / "run").glob("*.png"):
            path.unlink()
    if damage not in ("cut", "gone"):
        assert list(verify(tmp_path / "run", lambda _: None))
    else:
        assert status(tmp_path / "run").state == "resumable"
    draw_here(*options(tiny_checkpoint, tmp_path, num_fid_samples=22, num_sampling_steps=3))
    assert contents(tmp_path) == contents(finished)
    assert not list(verify(tmp_path / "run", lambda _: None))


def test_a_run_goes_on_with_pngs_or_without(finished, tiny_checkpoint, tmp_path):
    """Each of the two copies makes the other."""
    draw_here(*options(tiny_checkpoint, tmp_path, num_fid_samples=9, num_sampling_steps=3), with_png=False)
    assert not list((tmp_path / "run").glob("*.png"))
    arguments = options(tiny_checkpoint, tmp_path, num_fid_samples=22, num_sampling_steps=3)
    draw_here(*arguments)
    assert contents(tmp_path) == contents(finished)
    (tmp_path / "run.npz").unlink()
    draw_here(*arguments, with_png=False)
    assert contents(tmp_path) == contents(finished)


def test_two_runs_at_once(tiny_checkpoint, tmp_path):
    run = Launched(tmp_path, arguments := options(tiny_checkpoint, tmp_path))
    run.reach(4)
    with pytest.raises(UserError, match=f"^{tmp_path}/run is being drawn by another run, process "):
        draw_here(*arguments)
    assert status(run.folder).state == "running"
    assert run.process.wait(timeout=120) == 0, run.said
    assert status(run.folder).state == "complete"
    assert len(sessions(tmp_path)) == 1


@pytest.mark.long
def test_max_restarts_continues_by_itself(tiny_checkpoint, undisturbed, tmp_path):
    """The store outlives the workers; what the first attempt left in it must not be taken for the second's."""
    run = Launched(tmp_path, options(tiny_checkpoint, tmp_path), launcher="--standalone --max-restarts=1")
    os.kill(run.reach(20).workers()[-1], signal.SIGKILL)
    assert run.process.wait(timeout=120) == 0, run.said
    assert contents(tmp_path) == contents(undisturbed)
    first, second = sessions(tmp_path)
    assert second["images_before"] + second["images_drawn"] == COUNT
    assert "was killed from outside" in first["ended"]["message"]


@pytest.mark.long
def test_a_node_that_joins_later(tiny_checkpoint, tmp_path, monkeypatch):
    """torchrun restarts the workers then, without any sign of it in their environment."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # or torch 2.15's own second rendezvous fails
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = f"--nnodes=1:2 --rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:{port} --rdzv-id=job --max-restarts=3"
    launcher += " --rdzv-conf=last_call_timeout=3"
    arguments = options(tiny_checkpoint, tmp_path, num_sampling_steps=250)
    first = Launched(tmp_path, arguments, ranks=1, launcher=launcher)
    first.reach(4)
    (tmp_path / "second").mkdir()
    second = Launched(tmp_path / "second", arguments, ranks=1, launcher=launcher)
    assert first.process.wait(timeout=180) == 0, first.said
    assert second.process.wait(timeout=60) == 0, second.said
    assert [session["world_size"] for session in sessions(tmp_path)] == [1, 2]
    assert status(tmp_path / "run").state == "complete"
    assert not list(verify(tmp_path / "run", lambda _: None))


def test_what_is_redrawn_otherwise_is_recorded_anew(tiny_checkpoint, tmp_path):
    """As a GPU may do without --exact: the npz and the records must follow, or neither could be read again."""
    arguments = [
        text for text in options(tiny_checkpoint, tmp_path, num_fid_samples=22, num_sampling_steps=3) if text != "--exact"
    ]
    draw_here(*arguments)
    damage_slot(tmp_path / "run.npz", 13)
    flip(tmp_path / "run" / "000013.png")
    done = run_command(ROOT / "tests" / "faulty.py", "other-pixels", *arguments)
    assert done.returncode == 0, done.stderr
    assert not list(verify(tmp_path / "run", lambda _: None))
    with np.load(tmp_path / "run.npz") as arrays:  # which reads all of it against its CRC
        assert arrays["arr_0"].shape == (22, 64, 64, 3)
    draw_here(*arguments)
    assert [session["images_redrawn"] for session in sessions(tmp_path)] == [0, 1, 0]


def test_pngs_that_are_not_wanted_any_more_are_not_missed(finished, tiny_checkpoint, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "run").glob("*.png"):
        path.unlink()
    assert len(list(verify(tmp_path / "run", lambda _: None))) == 22
    arguments = options(tiny_checkpoint, tmp_path, num_fid_samples=22, num_sampling_steps=3)
    draw_here(*arguments, with_png=False)
    assert not list(verify(tmp_path / "run", lambda _: None))


@pytest.mark.long
def test_images_lost_on_a_second_node_are_redrawn_there(tiny_checkpoint, finished, tmp_path):
    """By a rank that had nothing to draw, and so no weights, while its node's first waits for it."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    damage_slot(tmp_path / "run.npz", 21)
    flip(tmp_path / "run" / "000021.png")
    arguments = options(tiny_checkpoint, tmp_path, num_fid_samples=22, num_sampling_steps=3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = f"--nnodes=2 --master-addr=127.0.0.1 --master-port={port}"
    (tmp_path / "first").mkdir()
    first = Launched(tmp_path / "first", arguments, ranks=1, launcher=f"{launcher} --node-rank=0")
    second = Launched(tmp_path, arguments, ranks=2, launcher=f"{launcher} --node-rank=1")
    assert first.process.wait(timeout=90) == 0, first.said
    assert second.process.wait(timeout=30) == 0, second.said
    assert contents(tmp_path) == contents(finished)


@pytest.mark.long
def test_a_rank_that_comes_late_is_waited_for(tiny_checkpoint, tmp_path):
    arguments = options(tiny_checkpoint, tmp_path, num_fid_samples=9, num_sampling_steps=3)
    run = Launched(tmp_path, arguments, ranks=3, fault="late")
    assert run.process.wait(timeout=120) == 0, run.said


@pytest.mark.long
def test_a_run_whose_shell_is_gone_goes_on(tiny_checkpoint, tmp_path):
    command = " ".join([sys.executable, "sample_ddp.py", *options(tiny_checkpoint, tmp_path)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", "-c", f"{command} > {tmp_path}/log 2>&1 & sleep 6"], cwd=ROOT, env=environment, check=True)
    until = time.monotonic() + 120
    while not (tmp_path / "run.npz").exists():
        assert time.monotonic() < until, (tmp_path / "log").read_text()
        time.sleep(0.2)


def test_a_foreign_npz_is_not_overwritten(tiny_checkpoint, tmp_path):
    (tmp_path / "run.npz").write_bytes(b"someone's own")
    with pytest.raises(UserError, match=r"run\.npz exists, but"):
        draw_here(*options(tiny_checkpoint, tmp_path))
    assert (tmp_path / "run.npz").read_bytes() == b"someone's own"
    assert sorted(tmp_path.iterdir()) == [tmp_path / "run.npz"]


@pytest.mark.parametrize("seconds", [600, 0])
def test_what_cannot_say_how_far_it_has_come_is_given_time(seconds):
    """Compiling, say: without that, it would count as hung."""

    def work() -> None:
        with fiducial.init("cpu") as group:
            group.on_end(None, 1.0)
            with group.allowing(seconds):
                time.sleep(4)
            raise RuntimeError("it was given time")

    with pytest.raises(fiducial.Stopped) as stopped:
        work()
    assert ("given time" in str(stopped.value)) == bool(seconds)


@pytest.mark.long
def test_a_disk_that_hangs_is_no_progress(tiny_checkpoint, tmp_path):
    done = run_command("tests/faulty.py", "hang-on-disk", *options(tiny_checkpoint, tmp_path), "--hang-timeout", "10")
    assert done.returncode == 75
    assert "error: hung: no progress for 10 s in " in done.stderr


def test_a_damaged_png_is_restored_even_if_no_more_are_wanted(finished, tiny_checkpoint, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    cut(tmp_path / "run" / "000003.png")
    arguments = options(tiny_checkpoint, tmp_path, num_fid_samples=22, num_sampling_steps=3)
    draw_here(*arguments, with_png=False)
    assert contents(tmp_path) == contents(finished)


@pytest.mark.long
def test_a_run_that_wakes_up_leaves_its_successor_alone(tiny_checkpoint, tmp_path):
    """Taken for dead while it slept, in another process scope, it must not write its own end over the other's state."""
    arguments = options(tiny_checkpoint, tmp_path, num_sampling_steps=500)
    first = Launched(tmp_path, arguments, ranks=1).reach(4)
    lock = json.loads((first.folder / "lock").read_text())
    (first.folder / "lock").write_text(json.dumps(lock | {"token": "another"}))
    assert first.process.wait(timeout=ENDS_WITHIN) != 0
    assert "was removed, or taken over by another run" in first.said
    assert not (first.folder / "ended.json").exists()
    assert json.loads((first.folder / "lock").read_text())["token"] == "another"


@pytest.mark.long
def test_a_hang_in_the_evaluation_is_noticed(tiny_checkpoint, tmp_path):
    arguments = options(tiny_checkpoint, tmp_path, num_fid_samples=22, num_sampling_steps=3)
    run = Launched(tmp_path, [*arguments, "--ref", "digits", "--hang-timeout", "15"], fault="hang-in-evaluation")
    assert run.process.wait(timeout=ENDS_WITHIN) != 0
    assert "hung: no progress for 15 s" in run.said
    assert status(run.folder).state == "complete"


def test_a_node_without_what_it_needs_ends_the_others(tiny_checkpoint, tmp_path):
    """It fails before anything is drawn, on a node of its own."""
    arguments = options(tiny_checkpoint, tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = f"--nnodes=2 --master-addr=127.0.0.1 --master-port={port}"
    (tmp_path / "second").mkdir()
    first = Launched(tmp_path, arguments, ranks=1, launcher=f"{launcher} --node-rank=0")
    second = Launched(tmp_path / "second", [*arguments, "--device", "cuda"], ranks=1, launcher=f"{launcher} --node-rank=1")
    assert first.process.wait(timeout=ENDS_WITHIN) != 0
    assert second.process.wait(timeout=ENDS_WITHIN) != 0
    assert "needs a GPU of its own" in first.said.partition("Root Cause")[2]
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.long
@pytest.mark.parametrize("seconds", [0.0, 1.5, 4.0])
def test_sigkill_of_the_launcher_while_its_workers_start(seconds, tiny_checkpoint, tmp_path):
    """They import torch, or wait for each other."""
    run = Launched(tmp_path, options(tiny_checkpoint, tmp_path), ranks=2)
    until = time.monotonic() + ENDS_WITHIN
    while len(workers := run.workers()) < 2:
        assert time.monotonic() < until, run.said
        time.sleep(0.02)
    time.sleep(seconds)
    run.process.kill()
    run.process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < until, "workers of a killed launcher wait on"
        time.sleep(0.1)
    assert run.said.count("is gone") == 1
    assert "Traceback" not in run.said


@pytest.mark.long
def test_a_rank_that_is_stopped_while_it_starts(tiny_checkpoint, tmp_path):
    run = Launched(tmp_path, options(tiny_checkpoint, tmp_path), ranks=2)
    until = time.monotonic() + ENDS_WITHIN
    while len(workers := run.workers()) < 2:
        assert time.monotonic() < until, run.said
        time.sleep(0.02)
    time.sleep(1)
    os.kill(workers[1], signal.SIGSTOP)
    assert run.process.wait(timeout=ENDS_WITHIN) != 0
    stopped = f"rank 1 (process {workers[1]} on {os.uname().nodename}) is stopped, and has not joined the others"
    assert run.said.partition("Root Cause")[0].count(f"error (rank 0 on {os.uname().nodename}): {stopped}") == 1
    assert not Path(f"/proc/{workers[1]}").exists()


def started_by_hand(folder: Path, arguments: list[str], ranks: int, program: str = "sample_ddp.py") -> list[subprocess.Popen]:
    """Ranks without a launcher, as srun or mpirun may start them: rank 0 holds the store. Each writes to a file of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        names = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = []
    for rank in range(ranks):
        environment = {**os.environ, **names, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        with open(folder / f"log-{rank}", "w") as log:
            command = [sys.executable, program, *arguments]
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    return processes


@pytest.mark.long
def test_rank_0_is_killed_without_a_launcher(tiny_checkpoint, undisturbed, tmp_path):
    """The store goes with it, and no other has local rank 0."""
    arguments = options(tiny_checkpoint, tmp_path)
    ranks, until = started_by_hand(tmp_path, arguments, 3), time.monotonic() + 120
    while not (tmp_path / "run" / "000009.png").exists():
        assert time.monotonic() < until, (tmp_path / "log-0").read_text()
        time.sleep(0.01)
    ranks[0].kill()
    assert [rank.wait(timeout=ENDS_WITHIN) for rank in ranks] == [-signal.SIGKILL, 75, 75]
    cause = f"rank 0 (process {ranks[0].pid} on {os.uname().nodename}) was killed from outside"
    said = "".join((tmp_path / f"log-{rank}").read_text() for rank in range(3))
    assert said.count(f"error (rank 1 on {os.uname().nodename}): {cause}") == 1
    assert cause in json.loads((tmp_path / "run" / "ended.json").read_text())["message"]
    assert status(tmp_path / "run").exit_code == 75
    continues(tmp_path, arguments, undisturbed)


LEAVES = """
import fiducial
import torch
from fiducial.evaluation import Evaluator
with fiducial.user_errors(), fiducial.init("cpu") as group:
    evaluator = Evaluator("digits", group=group)
    evaluator.update(torch.randint(256, (50, 3, 64, 64), dtype=torch.uint8))
    if group.is_main:
        evaluator.compute()
"""


@pytest.mark.long
def test_rank_0_that_computes_alone_ends_with_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "loop.py").write_text(LEAVES)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = run_command(tmp_path / "loop.py", ranks=2)
    assert done.returncode != 0
    words = f"error: rank 0 waits for rank 1 on {os.uname().nodename}, which has left"
    assert done.stderr.partition("Root Cause")[0].count(words) == 1
