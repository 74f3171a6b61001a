"""The identity codec: a tiny DiT of three channels, whose latents are the images."""

import json

import numpy as np
import pytest
import torch
from conftest import contents, draw_files, options, randomised, run_command
from safetensors.torch import save_file

import fiducial
import sample_ddp
from fiducial import UserError
from fiducial.diffusion.prediction import from_noise
from fiducial.diffusion.samplers import sample_ddim
from fiducial.diffusion.schedule import Schedule
from fiducial.models import DiT_models
from fiducial.models.decoders.table import DECODERS, decoder_of
from fiducial.sampling.noise import standard_normal

PIXELS = {"vae": "pixels", "image_size": 16, "cfg_channels": 3, "sampler": "ddim"}


@pytest.fixture(scope="module")
def network():
    return randomised(DiT_models["DiT-XS/8"](input_size=16, num_classes=10, in_channels=3), std=0.1)


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("pixels") / "dit.safetensors"
    save_file(network.state_dict(), path)
    return path


@torch.no_grad()
def test_an_image_is_what_the_sampler_ends_at(network, checkpoint, tmp_path):
    config, _ = sample_ddp.parse(options(checkpoint, tmp_path, **PIXELS, labels="3", num_fid_samples=6))
    draw_files(config, fiducial.init("cpu"))
    x = torch.from_numpy(standard_normal(0, 5, 0, (1, 3, 16, 16)))

    def guided(x, t):
        strong, weak = (network(x, torch.tensor([1000 * t]), torch.tensor([label])) for label in (3, 10))
        return torch.cat([weak[:, :3] + 1.5 * (strong - weak)[:, :3], strong[:, 3:]], dim=1)

    x = sample_ddim(from_noise(guided), x, Schedule.create("3"), iter(()))
    expected = (127.5 * x + 128).clamp(0, 255).byte()[0].permute(1, 2, 0).numpy().astype(int)
    with np.load(tmp_path / "run.npz") as arrays:
        drawn = arrays["arr_0"][5].astype(int)
    assert 0 < expected.mean() < 255
    assert expected.std() > 1
    assert np.abs(drawn - expected).max() <= 1
    assert (drawn != expected).mean() < 0.01
    identity = json.loads((tmp_path / "run" / "manifest.json").read_text())["identity"]
    assert (identity["vae_sha256"], identity["latent_scale"], identity["image_size"]) == ("pixels", 1.0, 16)


def test_inspect_gives_the_command_that_draws_it(checkpoint):
    done = run_command("-m", "models", "inspect", checkpoint, "--probe", "--json")
    found = json.loads(done.stdout)
    assert found["image_size"] == 16
    assert "correlation_at_999" in found
    assert "4 latent channels" not in str(found["refused"])
    done = run_command("-m", "models", "inspect", checkpoint)
    assert done.returncode == 0, done.stdout
    assert "--vae pixels" in done.stdout


@pytest.mark.long  # as test_any_ranks.py does for every network
def test_two_ranks_draw_the_same_bytes(checkpoint, tmp_path):
    for ranks, name in ((1, "one"), (2, "two")):
        done = run_command("sample_ddp.py", *options(checkpoint, tmp_path / name, **PIXELS), "--exact", ranks=ranks)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 23


def test_a_network_of_latents_is_not_drawn_as_pixels(tiny_checkpoint, tmp_path):
    config, _ = sample_ddp.parse(options(tiny_checkpoint, tmp_path / "samples", **PIXELS | {"image_size": 8}))
    with pytest.raises(UserError, match=r"--vae pixels: has 3 latent channels, but .* takes 4"):
        draw_files(config, fiducial.init("cpu"))
    assert not (tmp_path / "samples").exists()


def test_every_other_source_is_an_autoencoder():
    assert decoder_of("pixels") is DECODERS["pixels"]
    for source in ("ema", "mse", "./pixels", "someone/pixels"):
        assert decoder_of(source) is DECODERS["autoencoder"]
