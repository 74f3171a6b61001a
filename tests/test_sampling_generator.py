"""--generator: a user's Python draws under the plan, noise and files of every run, and its mistakes are one sentence."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, contents, run_command

import sample_ddp
from fiducial import UserError
from fiducial.sampling import plan
from fiducial.sampling.commands.status import status
from fiducial.sampling.commands.verify import verify
from fiducial.sampling.noise import standard_normal
from fiducial.sampling.source.generator import as_pixels, options_of

SIZE, COUNT, BLOCK = 64, 22, 4
MODULE = f"""
import os, time
import torch

def draw(labels, noise, device, scale=1.0):
    time.sleep(float(os.environ.get("SLOW", "0")))
    assert labels.device == device and labels.dtype == torch.int64
    x = noise((3, {SIZE}, {SIZE})) * scale + noise((3, 1, 1), step=1)
    return (0.5 + 0.1 * x + 0.03 * (labels.float()[:, None, None, None] - 5)).clip(0, 1)

def careless(labels, noise, device):
    return torch.rand(len(labels), {SIZE}, {SIZE}, 3)

def to_uint8(labels, noise, device):
    return (labels[:, None, None, None] * torch.ones(1, {SIZE}, {SIZE}, 3)).to(torch.uint8).numpy()

def squared(labels, noise, device):
    return noise((3, {SIZE}, {SIZE}))

def nothing(labels, noise, device):
    return None

def small(labels, noise, device):
    return noise((3, 32, 32)).clip(0, 1)

def whole_numbers(labels, noise, device):
    return torch.zeros(len(labels), 3, {SIZE}, {SIZE}, dtype=torch.int64)

def not_a_number(labels, noise, device):
    x = torch.zeros(len(labels), 3, {SIZE}, {SIZE})
    x[noise.indices.index(5) if 5 in noise.indices else 0] = float("nan")
    return x

def broken(labels, noise, device):
    raise KeyError("no such thing")

def leaving(labels, noise, device):
    raise SystemExit

def by_time(labels, noise, device):
    return noise((3, {SIZE}, {SIZE}), step=0.96)

def absent_options(labels, noise, device, scale):
    return None

def deep(labels, noise, device):
    return torch.nn.functional.interpolate(torch.zeros(2), 3)

def of_a_table(labels, noise, device):
    x = torch.full((len(labels), 3, {SIZE}, {SIZE}), 0.5)
    x[[index >= {COUNT} for index in noise.indices]] = torch.nan
    return x

number = 7
"""


def place(text: str) -> str:
    """Where the module has `text`."""
    return f"own_images.py, line {next(number for number, line in enumerate(MODULE.splitlines(), 1) if text in line)}"


@pytest.fixture(scope="module")
def module(tmp_path_factory) -> Path:
    """The folder of a module `own_images`."""
    folder = tmp_path_factory.mktemp("module")
    (folder / "own_images.py").write_text(MODULE)
    return folder


def command(folder: Path, name: str = "draw", *more: str | Path) -> list[str | Path]:
    small = [
        "--image-size",
        str(SIZE),
        "--num-classes",
        "10",
        "--num-fid-samples",
        str(COUNT),
        "--per-proc-batch-size",
        str(BLOCK),
    ]
    where = ["--sample-dir", folder, "--run-name", "run", "--device", "cpu"]
    return ["sample_ddp.py", "--generator", f"own_images:{name}", *small, *where, "--exact", *more]


def draw(folder: Path, module: Path, *more: str | Path, name: str = "draw", ranks: int = 0, **environment: str):
    return run_command(*command(folder, name, *more), ranks=ranks, PYTHONPATH=str(module), timeout=300, **environment)


@pytest.fixture(scope="module")
def undisturbed(module, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = draw(folder, module, "--generator-options", "scale=1.5")
    assert done.returncode == 0, done.stderr
    return folder


def test_images_are_those_of_the_function_by_label_and_index(undisturbed):
    with np.load(undisturbed / "run.npz") as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert (labels == plan.labels("random", 10, 0, 0, COUNT)).all()
    for index in (0, 5, 21):
        x = standard_normal(0, index, 0, (3, SIZE, SIZE)) * np.float32(1.5) + standard_normal(0, index, 1, (3, 1, 1))
        expected = np.clip(0.5 + 0.1 * x + 0.03 * (float(labels[index]) - 5), 0, 1).transpose(1, 2, 0)
        assert np.abs(images[index] - 255 * expected).max() <= 0.5 + 1e-3
    assert status(undisturbed / "run").state == "complete"
    assert not list(verify(undisturbed / "run", lambda _: None))


def test_two_ranks_and_a_killed_run_give_the_same_bytes(undisturbed, module, tmp_path):
    given = ("--generator-options", "scale=1.5")
    done = draw(tmp_path / "two", module, *given, ranks=2)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two") == contents(undisturbed)
    environment = os.environ | {"PYTHONPATH": str(module), "SLOW": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *map(str, command(tmp_path, "draw", *given))], cwd=ROOT, env=environment)
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("run/*.png"))) < 2 * BLOCK and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(list(tmp_path.glob("run/*.png"))) < COUNT
    done = draw(tmp_path, module, *given, ranks=2)
    assert done.returncode == 0, done.stderr
    assert " 0 of 22" not in done.stdout
    assert contents(tmp_path) == contents(undisturbed)


def test_code_that_draws_from_global_generators_is_repeatable_too(module, tmp_path):
    for folder, ranks in ((tmp_path / "one", 0), (tmp_path / "two", 2)):
        done = draw(folder, module, name="careless", ranks=ranks)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    with np.load(tmp_path / "one" / "run.npz") as arrays:
        assert len({image.tobytes() for image in arrays["arr_0"]}) == COUNT


def test_the_module_and_its_options_are_part_of_the_run(undisturbed, module, tmp_path):
    manifest = json.loads((undisturbed / "run" / "manifest.json").read_text())
    identity = manifest["identity"]
    assert (identity["generator"], identity["generator_options"]) == ("own_images:draw", "scale=1.5")
    assert manifest["paths"] == {"generator": str(module / "own_images.py")}
    assert not {"checkpoint_sha256", "sampler", "cfg_scale"} & set(identity)
    manifest["options"]["sampler"] = "ddpm"  # as it once was recorded of every run
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert sample_ddp.parse(["--config", str(tmp_path / "manifest.json")])[0].sampler is None
    done = draw(undisturbed, module, "--generator-options", "scale=2")
    assert "generator_options is scale=1.5 there and scale=2 here" in done.stderr
    (tmp_path / "own_images.py").write_text(MODULE + "# changed\n")
    done = draw(undisturbed, tmp_path, "--generator-options", "scale=1.5")
    assert done.returncode == 2
    assert "belongs to a different configuration: generator_sha256 is" in done.stderr
    again = run_command("sample_ddp.py", "--config", undisturbed / "run" / "manifest.json", PYTHONPATH=str(module))
    assert "22 of 22 images are there" in again.stdout, again.stderr


def test_it_is_evaluated_online(module, tmp_path):
    done = draw(tmp_path, module, "--ref", "digits", "--evaluate-online", ranks=2)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run-online.json").read_text())["run"]["identity"]["generator"] == "own_images:draw"


def test_floats_are_evaluated_as_they_are_and_the_result_says_so(module, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(module)
    words = [str(text) for text in command(tmp_path, "draw", "--rounding", "none", "--ref", "digits", "--evaluate-online")]
    monkeypatch.setattr(sys, "argv", words)
    sample_ddp.main()
    result = json.loads((tmp_path / "run-online.json").read_text())
    assert result["run"]["identity"]["rounding"] == result["samples"]["rounding"] == "none"
    (tmp_path / "files").mkdir()
    monkeypatch.setattr(sys, "argv", [str(text) for text in command(tmp_path / "files", "draw", "--rounding", "none")])
    with pytest.raises(SystemExit):
        sample_ddp.main()
    assert "--rounding none: files of images hold no floats" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "gave NoneType, not an array or tensor of images"),
        ("small", "gave shape (4, 3, 32, 32) for 4 labels, not (4, 64, 64, 3) or (4, 3, 64, 64); --image-size is 64"),
        ("whole_numbers", "gave int64; give uint8, or floats in [0, 1]"),
        ("not_a_number", "gave NaN or infinity for image "),
        ("squared", "give floats in [0, 1], or uint8; x.clip(0, 1) cuts off what is beyond"),
        ("broken", "for images 0 to 3 it raised KeyError: 'no such thing' ("),
        ("leaving", "for images 0 to 3 it raised SystemExit, which would have ended the program with None ("),
        ("by_time", "step=0.96): a step must be a whole number of at least 0; count those of the loop ("),
        ("by_time", f"{place('0.96')})"),
        ("deep", f"{place('interpolate')})"),
        ("absent_options", "cannot be called with (labels, noise, device) (missing a required argument: 'scale')"),
        ("absent", "own_images has no function absent"),
        ("number", "own_images has, but not as a function, number"),
    ],
)
def test_a_generator_that_cannot_be_used_is_told_in_one_sentence(name, said, module, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(module)
    monkeypatch.setattr(sys, "argv", [str(text) for text in command(tmp_path, name) if text != "--exact"])
    with pytest.raises(SystemExit) as end:
        sample_ddp.main()
    assert end.value.code in (1, 2)
    error = capsys.readouterr().err
    assert f"--generator own_images:{name}: " in error
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--generator", "own_images"], "give a module and a function in it"),
        (["--generator", "nowhere.to.be:found"], "nowhere.to.be cannot be imported (ModuleNotFoundError: No module named"),
        (["--generator", "a:b", "--sampler", "ddim"], "--sampler: not with --generator"),
        (["--generator", "a:b", "--ckpt", "x.pt"], "--ckpt: not with --generator"),
        (["--generator", "a:b", "--preset", "digits"], "--preset digits: not with --generator"),
        (["--generator", "a:b", "--generator-options", "scale"], "must be NAME=VALUE"),
        (["--generator-options", "scale=1"], "only used with --generator"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, said, tmp_path):
    done = run_command("sample_ddp.py", *options, "--image-size", "64", "--sample-dir", tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_script_that_ends_the_program_is_no_module(tmp_path):
    (tmp_path / "own_script.py").write_text("import sys\nsys.exit()\n")
    done = draw(tmp_path, tmp_path, "--generator", "own_script:main")
    assert done.returncode == 2
    assert "own_script cannot be imported (SystemExit, which would have ended the program with None)" in done.stderr


def test_options_that_the_function_does_not_take_are_told_before_a_folder_is_made(module, tmp_path):
    done = draw(tmp_path, module, "--generator-options", "scale=1,shift=2")
    assert done.returncode == 2
    assert "--generator-options scale=1,shift=2 (got an unexpected keyword argument 'shift')" in done.stderr
    assert not list(tmp_path.iterdir())


def test_images_that_only_fill_up_the_last_block_may_hold_anything(module, tmp_path):
    done = draw(tmp_path, module, name="of_a_table")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "run.npz") as arrays:
        assert (arrays["arr_0"] == 128).all()
    assert not {"sampler", "vae", "num_sampling_steps"} & set(
        json.loads((tmp_path / "run" / "manifest.json").read_text())["options"]
    )


def test_pixels_are_rounded_to_the_nearest_level():
    levels = np.arange(256, dtype=np.float32).repeat(12)[: 2 * 3 * 16 * 16].reshape(2, 3, 16, 16) / 255
    assert (as_pixels(levels, range(2), 16, 2) == np.rint(255 * levels).transpose(0, 2, 3, 1)).all()
    assert (as_pixels(levels.transpose(0, 2, 3, 1), range(2), 16, 2) == as_pixels(levels, range(2), 16, 2)).all()
    whole = np.rint(255 * levels).transpose(0, 2, 3, 1)
    above = np.clip(levels + np.float32(0.6 / 255), 0, 1)
    assert (as_pixels(above, range(2), 16, 2) == np.minimum(whole + 1, 255)).all()
    floats = as_pixels(above, range(2), 16, 2, rounded=False)
    assert np.allclose(floats, 255 * above.transpose(0, 2, 3, 1), rtol=0, atol=1e-4)
    assert floats.dtype == np.float32
    with pytest.raises(ValueError, match="gave uint8, of which --rounding none has no floats"):
        as_pixels(whole.astype(np.uint8), range(2), 16, 2, rounded=False)
    with pytest.raises(ValueError, match=r"\(x \+ 1\) / 2 makes them so"):
        as_pixels(2 * levels - 1, range(2), 16, 2)


def test_options_are_numbers_where_they_are_some():
    config, _ = sample_ddp.parse(["--generator", "a:b", "--generator-options", "n=3,scale=1.5,kind=ode"])
    assert options_of(config) == {"n": 3, "scale": 1.5, "kind": "ode"}
    for wrong, said in (("1x=3", "NAME=VALUE"), ("n=3, n=4", "n is given twice")):
        with pytest.raises(UserError, match=said):
            sample_ddp.parse(["--generator", "a:b", "--generator-options", wrong])
