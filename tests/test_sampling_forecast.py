"""--dry-run: what it says comes true when run, and it writes nothing."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DIGITS, draw_files, options, run_command
from made_runs import IDENTITY

import fiducial
import sample_ddp
from fiducial import UserError
from fiducial.sampling import forecast
from fiducial.sampling.forecast import Measured, add_up, duration
from fiducial.sampling.identity import Identity
from fiducial.sampling.source import latent_diffusion
from fiducial.sampling.store import disk, lock
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store.task import Task

UNITS = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def amount(pattern: str, text: str) -> float:
    """The bytes that stand where `pattern` has SIZE."""
    number, unit = re.search(pattern.replace("SIZE", r"([\d.e+]+) (\w+)"), text).groups()
    return float(number) * UNITS[unit]


def taken(folder: Path) -> int:
    """Bytes on the disk, but for what folders themselves take."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def said(config, beside, capsys) -> str:
    """A dry run in this process."""
    capsys.readouterr()
    forecast.forecast(config, fiducial.init("cpu"), not beside.no_png, 0)
    return capsys.readouterr().out


def test_disk_and_memory_of_the_digits_come_true_on_two_ranks(tmp_path):
    """Disk within 10 %, the npz to the byte, memory within 30 %."""
    settings = ["--preset", "digits", "--num-fid-samples", "60", "--num-sampling-steps", "4", "--per-proc-batch-size", "15"]
    command = ["sample_ddp.py", *settings, "--no-compile", "--sample-dir", tmp_path / "samples"]
    dry = run_command(*command, "--dry-run", ranks=2, timeout=300)
    assert dry.returncode == 0, dry.stderr
    assert list(tmp_path.iterdir()) == []
    assert "4 block(s) of 15 on 2 rank(s), at most 2 each" in dry.stdout
    assert "ddpm, 4 steps: 4 evaluations of the network for a block" in dry.stdout
    assert "60 of 64 x 64, of which 0 are there" in dry.stdout
    assert dry.stdout.count("measured ") == 1
    done = run_command(*command, ranks=2, timeout=300)
    assert done.returncode == 0, done.stderr
    npz = next((tmp_path / "samples").glob("*.npz"))
    assert f"{npz}, {disk.readable(npz.stat().st_size)}\n" in dry.stdout
    assert amount("disk +SIZE to be written", dry.stdout) == pytest.approx(taken(tmp_path), rel=0.1)
    manifest = json.loads((npz.with_suffix("") / "manifest.json").read_text())
    probed = manifest["probe"]  # which the manifest has, and a dry run says
    assert f"correlation {probed['correlation_at_999']:.3f} and size {probed['size_at_999']:.3f} at t = 999" in dry.stdout
    assert dry.stdout.count(f"and correlation {probed['correlation_at_500']:.3f} at t = 500") == 1
    assert amount("a rank held SIZE", dry.stdout) == pytest.approx(manifest["sessions"][0]["peak_memory"], rel=0.3)


def test_a_continued_run_is_told_from_a_new_one(tiny_checkpoint, tmp_path, capsys):
    arguments = options(tiny_checkpoint, tmp_path, num_fid_samples=9)
    draw_files(sample_ddp.parse(arguments)[0], fiducial.init("cpu"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    text = said(*sample_ddp.parse(arguments), capsys)
    assert "9 of 64 x 64, of which 9 are there" in text
    assert "nothing is to be drawn" in text
    assert "0 bytes to be written, no PNGs among it" in text
    text = said(*sample_ddp.parse([*arguments, "--num-fid-samples", "13"]), capsys)
    assert "13 of 64 x 64, of which 9 are there" in text
    assert "2 block(s) of 4 on 1 rank(s), at most 2 each" in text
    assert "4 PNGs among it" in text
    assert "probe     the network was not asked whether it predicts noise (--no-probe)\n" in text
    with lock.Lock(tmp_path / "run"):
        assert "note      locked by process" in said(*sample_ddp.parse(arguments), capsys)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "run"} == {
        path: stamp for path, stamp in before.items() if path.name != "run"
    }


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--sampler", "heun", "--num-sampling-steps", "10"], 19),
        (["--guidance-interval", "0,0.5", "--num-sampling-steps", "10"], 10),
        (["--labels", "null"], 3),
    ],
)
def test_evaluations_are_those_of_the_run(more, expected, tiny_checkpoint, tmp_path, capsys, monkeypatch):
    config, beside = sample_ddp.parse([*options(tiny_checkpoint, tmp_path, num_fid_samples=4), *more])
    assert f"{expected} evaluations of the network for a block" in said(config, beside, capsys)
    counted = []
    original = latent_diffusion.guided

    def guided(*arguments, **more):
        model = original(*arguments, **more)
        return lambda x, t: (counted.append(t), model(x, t))[1]

    monkeypatch.setattr(latent_diffusion, "guided", guided)
    draw_files(config, fiducial.init("cpu"))
    assert len(counted) == expected


def test_a_mistake_is_that_of_the_run(tiny_checkpoint, tmp_path, capsys):
    config, beside = sample_ddp.parse(options(tiny_checkpoint, tmp_path, num_classes=11))
    with pytest.raises(UserError, match="expected num_classes 11; found num_classes 10"):
        said(config, beside, capsys)
    assert list(tmp_path.iterdir()) == []


def test_the_command_neither_writes_nor_downloads(tiny_checkpoint, mirror, tmp_path):
    hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": mirror.url, "FIDUCIAL_MIRROR": mirror.url}
    published = ["--preset", "dit-xl-2-256", "--vae", str(DIGITS / "vae"), "--cache-dir", str(tmp_path)]
    for arguments in (options(tiny_checkpoint, tmp_path / "samples", vae="someone/something"), published):
        done = run_command("sample_ddp.py", *arguments, "--dry-run", **hub)
        assert done.returncode == 2
        assert "published, but not here, and a dry run downloads nothing" in done.stderr
    assert mirror.seen == []
    text = "import os, fiducial, pathlib\nwith fiducial.downloading_nothing():\n"
    text += f"    fiducial.download('http://127.0.0.1:9/a', pathlib.Path({str(tmp_path / 'a')!r}))"
    done = run_command("-c", text)
    assert "a is not there, and nothing is downloaded now; fetch it from http://127.0.0.1:9/a" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_found_by_the_checks(tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "file").touch()
    config, beside = sample_ddp.parse(options(tiny_checkpoint, tmp_path / "file" / "samples"))
    with pytest.raises(UserError, match=r"cannot create .*, because .*file cannot be written"):
        said(config, beside, capsys)


def test_what_ranks_measure_is_added_up(tmp_path):
    one = Measured(3.0, 6.0, 10, 10, 100, None, 5000)
    slow = Measured(5.0, 8.0, 10, 10, 300, 8192.0, 4000)
    done = np.zeros(45, dtype=bool)
    done[:10] = True  # four blocks are left, the last of them a part
    identity = Identity(IDENTITY | {"image_size": 64, "per_proc_batch_size": 10})
    task = Task(tmp_path / "run", 0, "", identity, done)
    found = add_up(task, 3, [one, slow, one], 35)
    assert (found.blocks, found.blocks_of_a_rank) == (4, 2)
    assert found.seconds_drawing == pytest.approx(2 * 8.0)
    assert (found.seconds_loading, found.memory) == (5.0, 300)
    assert found.npz == archive.size(45, 64)
    assert found.disk - disk.needed(task.folder, 45, 35, 64, 0) == 35 * 8192 + 5000


def test_files_take_whole_blocks():
    assert disk.on_disk(np.array([1, 4096, 4097], np.uint32)) == (4096 + 4096 + 8192) / 3


def test_a_block_that_does_not_fit_is_drawn_in_halves_and_that_is_said(tiny_checkpoint, tmp_path, capsys, monkeypatch):
    original = latent_diffusion.guided

    def guided(*arguments, **more):
        model = original(*arguments, **more)

        def fail(x, t):
            if len(x) > 2:
                raise torch.OutOfMemoryError("out of memory")
            return model(x, t)

        return fail

    monkeypatch.setattr(latent_diffusion, "guided", guided)
    config, beside = sample_ddp.parse(options(tiny_checkpoint, tmp_path))
    assert "a block did not fit, and was drawn by 2 images" in said(config, beside, capsys)


@pytest.mark.parametrize(("seconds", "text"), [(3.14159, "3.14 s"), (119, "119 s"), (150, "2 min"), (86400, "24 h 0 min")])
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_a_size_of_blocks_that_leaves_ranks_without_work_is_said_of_a_run_that_begins(tiny_checkpoint, tmp_path, capsys):
    note = "note: blocks of 16 keep the one rank busy with wanted images 53.1 % of the time; --per-proc-batch-size 9 would 94.4 %"
    config, beside = sample_ddp.parse(options(tiny_checkpoint, tmp_path, num_fid_samples=17, per_proc_batch_size=16))
    assert note in said(config, beside, capsys)
    draw_files(config, fiducial.init("cpu"), False)
    assert note in capsys.readouterr().out
    draw_files(config, fiducial.init("cpu"), False)
    assert "note: blocks" not in capsys.readouterr().out + said(config, beside, capsys)
    fitting, _ = sample_ddp.parse(options(tiny_checkpoint, tmp_path / "b", num_fid_samples=17, per_proc_batch_size=9))
    assert "note: blocks" not in said(fitting, beside, capsys)
