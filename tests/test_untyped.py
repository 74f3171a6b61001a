"""Model, number of classes and image size are in the checkpoint: they need not be given; what is given is compared with it."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import DIGITS, PLAIN, draw_files, randomised
from diffusers import AutoencoderKL
from safetensors.torch import save_file

import fiducial
import sample_ddp
from fiducial import UserError
from fiducial.models import DiT_models
from fiducial.models.commands import inspection
from fiducial.sampling.identity import fingerprint
from fiducial.sampling.options.config import PUBLISHED

QUICK = ("--num-fid-samples", "2", "--num-sampling-steps", "2", "--device", "cpu", *PLAIN)
SAID = {"model": "DiT-XS/8", "image_size": 128, "num_classes": 17}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """`large.safetensors` of 128 pixels and 17 classes, `odd.safetensors` of no known depth, `two.safetensors` for the
    autoencoder `vae` of two channels."""
    folder = tmp_path_factory.mktemp("files")
    state = randomised(DiT_models["DiT-XS/8"](input_size=16, num_classes=17)).state_dict()
    save_file(state, folder / "large.safetensors")
    save_file({key: value for key, value in state.items() if "blocks.5" not in key}, folder / "odd.safetensors")
    (folder / "beside").mkdir()
    two = randomised(DiT_models["DiT-XS/8"](input_size=32, num_classes=10, in_channels=2))
    save_file(two.state_dict(), folder / "beside" / "two.safetensors")
    sides = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(**sides, block_out_channels=(8, 8), layers_per_block=1, latent_channels=2, norm_num_groups=4)
    vae.save_pretrained(folder / "beside" / "vae")
    return folder


def drawn(folder: Path, *given: object) -> dict:
    """The manifest of a run in this process."""
    config, beside = sample_ddp.parse([*map(str, (*given, *QUICK, "--sample-dir", folder))])
    npz = draw_files(config, fiducial.init("cpu"), False, 0, vars(beside))
    manifest = json.loads((npz.with_suffix("") / "manifest.json").read_text())
    with np.load(npz) as arrays:
        assert arrays["arr_0"].shape == (2, *[manifest["identity"]["image_size"]] * 2, 3)
    return manifest


def test_the_file_says_what_was_not_given_and_the_run_is_the_same(files, tmp_path, capsys):
    given = "--ckpt", files / "large.safetensors", "--vae", DIGITS / "vae", "--no-probe"
    short = drawn(tmp_path, *given)
    assert {name: short["identity"][name] for name in SAID} == SAID
    assert {name: short["options"][name] for name in SAID} == SAID
    capsys.readouterr()
    typed = [text for name, value in SAID.items() for text in (f"--{name.replace('_', '-')}", value)]
    long = drawn(tmp_path, *given, *typed)
    assert long["fingerprint"] == short["fingerprint"] == fingerprint(short["identity"])
    assert "2 of 2 images are there" in capsys.readouterr().out


WRONG = {
    "model": (("--model", "DiT-S/8"), "expected model DiT-S/8; found model DiT-XS/8"),
    "classes": (("--num-classes", 1000), "expected num_classes 1000; found num_classes 17; give --num-classes 17"),
    "image size": (("--image-size", 64), "--image-size 64: {large} is of 128, with 16 latent pixels of which"),
    "what to give": (("--image-size", 64), "give --image-size 128, or leave it out"),
    "all three": (
        ("--model", "DiT-S/2", "--num-classes", 9, "--image-size", 64),
        "model DiT-S/2, num_classes 9; found model DiT-XS/8",
    ),
    "a label": (("--labels", "3,17"), "--labels '17' is not within the classes 0 to 16"),
    "names": (("--class-names", "{names}"), "names 2 classes, but --num-classes is 17, as in {large}"),
    "a preset": (("--preset", "digits"), "expected model DiT-XS/2, num_classes 10; found model DiT-XS/8, num_classes 17"),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG)
def test_what_is_given_is_held_against_the_file(given, said, files, tmp_path):
    names = {"large": files / "large.safetensors", "names": tmp_path / "names.txt"}
    names["names"].write_text("one\ntwo\n")
    more = [str(word).format(**names) for word in given]
    with pytest.raises(UserError) as refused:
        drawn(tmp_path / "samples", "--ckpt", names["large"], "--vae", DIGITS / "vae", "--no-probe", *more)
    assert said.format(**names) in str(refused.value)
    assert not (tmp_path / "samples").exists()


def test_a_size_that_there_is_not_is_told(files, tmp_path):
    with pytest.raises(UserError, match=r"odd.safetensors is a DiT-\(160 wide, 5 deep\)/8, and there are only DiT-XL/2"):
        drawn(tmp_path, "--ckpt", files / "odd.safetensors", "--vae", DIGITS / "vae")


def test_without_a_checkpoint_the_published_one_is_meant():
    config, _ = sample_ddp.parse([])
    assert {name: getattr(config, name) for name in PUBLISHED} == PUBLISHED
    assert sample_ddp.parse(["--image-size", "512"])[0].image_size == 512
    assert sample_ddp.parse(["--ckpt", "a.pt"])[0].untold() == ["model", "image_size", "num_classes"]
    assert sample_ddp.parse(["--ckpt", "a.pt", "--image-size", "512"])[0].untold() == ["model", "num_classes"]


def test_an_evaluation_knows_the_size_beforehand(files, tmp_path, monkeypatch, capsys):
    given = (
        "--ckpt",
        files / "large.safetensors",
        "--vae",
        DIGITS / "vae",
        "--ref",
        "digits",
        "--sample-dir",
        tmp_path / "samples",
    )
    monkeypatch.setattr("sys.argv", ["sample_ddp.py", *map(str, (*given, *QUICK))])
    with pytest.raises(SystemExit):
        sample_ddp.main()
    assert "images of 128 x 128, but the extractor digits takes 64 x 64 only" in capsys.readouterr().err
    assert not (tmp_path / "samples").exists()


def test_inspect_gives_the_shortest_command_that_works(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = files / "beside" / "two.safetensors"
    command = inspection.inspect(path)["command"]
    assert command == f"python sample_ddp.py --ckpt {path} --vae {path.with_name('vae')} --cfg-channels 2"
    manifest = drawn(tmp_path, *shlex.split(command)[2:], "--no-probe")
    assert (manifest["identity"]["image_size"], manifest["identity"]["cfg_channels"]) == (64, 2)
    with pytest.raises(
        UserError, match=r"--cfg-channels 3: the VAE .* has 2 latent channels; give --cfg-channels 2, which guides"
    ):
        drawn(tmp_path / "samples", *shlex.split(command)[2:-2], "--no-probe")
    assert drawn(tmp_path / "samples", *shlex.split(command)[2:-2], "--no-probe", "--cfg-scale", "1.0")
