"""Encoders of codecs: as diffusers' own `encode`, and latent-diffusion's by another writing of it, all weights random."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import DIGITS
from diffusers import AutoencoderKL, AutoencoderTiny
from formats import AUTOENCODERS
from ldm_layers import Layers, Weights
from safetensors.torch import load_file, save_file
from test_models_single_file import SMALL, assert_same, ldm_weights, vit_weights

from fiducial.models.decoders.affine import Affine
from fiducial.models.decoders.autoencoder import Autoencoder
from fiducial.models.decoders.ldm import LDMAutoencoder
from fiducial.models.decoders.pixels import Pixels
from fiducial.models.decoders.vit import ViTDecoder

CPU = torch.device("cpu")


def images(side: int = 64, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(3)) * 2 - 1


def noise(shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def test_mode_and_sample_are_those_of_diffusers():
    x, codec = images(), Autoencoder(DIGITS / "vae").load(CPU, encoder=True)
    posterior = AutoencoderKL.from_pretrained(DIGITS / "vae", local_files_only=True).eval().encode(x).latent_dist
    e = noise(posterior.mean.shape)
    assert codec.posterior
    assert codec.cannot_encode() is None
    assert_same(codec.encode(x), posterior.mode() * 0.18215)
    assert_same(codec.encode(x, e), (posterior.mean + posterior.std * e) * 0.18215)
    assert posterior.std.mean() > 0.005  # of this codec, so that the two differ
    assert (codec.encode(x, e) - codec.encode(x)).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_scale_and_shift_are_taken_and_taken_back(kind, tmp_path):
    folder = AUTOENCODERS[kind](tmp_path)
    own = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}[kind].from_pretrained(folder).eval()
    codec, x = Autoencoder(folder).load(CPU, encoder=True), images()
    found = own.encode(x)
    is_tiny = kind == "AutoencoderTiny"
    z = found.latents if is_tiny else found.latent_dist.mode()
    assert_same(codec.encode(x) * 10, (z if is_tiny else (z - 0.12) * 0.36) * 10)
    assert codec.posterior == (kind == "AutoencoderKL")
    assert_same(codec(codec.encode(x)), own.decode(z).sample)


@torch.no_grad()
def test_each_channels_own_statistics(tmp_path):
    shutil.copytree(DIGITS / "vae", tmp_path / "vae")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    changed = {"latents_mean": [0.5, -0.5, 0.0, 1.0], "latents_std": [1.0, 2.0, 0.5, 4.0], "scaling_factor": 2.0}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config | changed))
    x = images()
    z = Autoencoder(DIGITS / "vae").load(CPU, encoder=True).encode(x) / 0.18215
    mean, std = (torch.tensor(changed[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
    assert_same(Autoencoder(tmp_path / "vae").load(CPU, encoder=True).encode(x), (z - mean) / std * 2)


@torch.no_grad()
def test_in_half_precision_latents_are_near():
    x, codec = images(), Autoencoder(DIGITS / "vae")
    exact = codec.load(CPU, encoder=True).encode(x)
    near = Autoencoder(DIGITS / "vae").load(CPU, torch.bfloat16, encoder=True).encode(x)
    assert near.dtype == torch.float32
    assert 0 < ((near - exact).norm() / exact.norm()).item() < 0.05


def ldm_encoder(multiples: tuple[int, ...], channels: int, attends: tuple[int, ...], width: int = 32, blocks: int = 2) -> Weights:
    """An encoder's names and shapes as latent-diffusion has them."""
    found = Weights(9)
    widths = [width * multiple for multiple in multiples]
    found.layer("encoder.conv_in", width, 3, 3, 3)
    before = width
    for level, after in enumerate(widths):
        for number in range(blocks):
            found.block(f"encoder.down.{level}.block.{number}", before, after)
            before = after
            if level in attends:
                found.attention(f"encoder.down.{level}.attn.{number}", after)
        if level < len(widths) - 1:
            found.layer(f"encoder.down.{level}.downsample.conv", after, after, 3, 3)
    found.block("encoder.mid.block_1", before, before)
    found.attention("encoder.mid.attn_1", before)
    found.block("encoder.mid.block_2", before, before)
    found.layer("encoder.norm_out", before)
    found.layer("encoder.conv_out", 2 * channels, before, 3, 3)
    found.layer("quant_conv", 2 * channels, 2 * channels, 1, 1)
    return found


def ldm_encoded(state: dict, x: torch.Tensor) -> torch.Tensor:
    """Latent-diffusion's encoder once more, by its names: means above log-variances, (N, 2C, h, w)."""
    its, level = Layers(state), 0
    x = its.conv("encoder.conv_in", x)
    while f"encoder.down.{level}.block.0.conv1.weight" in state:
        x = its.blocks(f"encoder.down.{level}", x)
        if (name := f"encoder.down.{level}.downsample.conv.weight") in state:  # one row and column of zeros beyond the last ones
            x = F.conv2d(F.pad(x, (0, 1, 0, 1)), state[name], state[name.replace("weight", "bias")], stride=2)
        level += 1
    x = its.last("encoder.norm_out", "encoder.conv_out", its.middle("encoder.mid", x))
    return its.conv("quant_conv", x)


@torch.no_grad()
@pytest.mark.parametrize("form", [((1, 2, 4, 4), 4, ()), ((1, 1, 2), 16, (2,)), SMALL], ids=["f8d4", "attention", "at the image"])
def test_latent_diffusions_encoder_is_as_its_names_say(form, tmp_path):
    state = ldm_weights(*form) | ldm_encoder(*form)
    torch.save({"state_dict": dict(state)}, tmp_path / "vae.ckpt")
    codec = LDMAutoencoder(tmp_path / "vae.ckpt")
    assert codec.cannot_encode() is None
    codec.affine = Affine(0.5, 0.25)
    x = images(16)
    codec.load(CPU, encoder=True)
    mean, log_variance = ldm_encoded(state, x).chunk(2, 1)
    assert_same(codec.encode(x), (mean - 0.25) * 0.5)
    e = noise(mean.shape)
    assert_same(codec.encode(x, e), (mean + (0.5 * log_variance.clamp(-30, 20)).exp() * e - 0.25) * 0.5)


def test_codecs_that_cannot_encode_say_why(tmp_path):
    save_file(dict(ldm_weights(*SMALL)), tmp_path / "ldm.safetensors")
    save_file(dict(vit_weights()), tmp_path / "vit.safetensors")
    shutil.copytree(DIGITS / "vae", tmp_path / "vae")
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    state = {name: value for name, value in load_file(weights).items() if not name.startswith("encoder.")}
    save_file(state, weights, metadata={"format": "pt"})
    assert LDMAutoencoder(tmp_path / "ldm.safetensors").cannot_encode() == (
        "the file has no encoder.conv_out.weight, so no whole encoder"
    )
    assert ViTDecoder(tmp_path / "vit.safetensors").cannot_encode().startswith("the file holds a ViT decoder alone")
    assert Autoencoder(tmp_path / "vae").cannot_encode() == "diffusion_pytorch_model.safetensors holds no encoder"


def test_pixels_are_their_own_latents():
    x = images(8)
    assert Pixels().cannot_encode() is None
    assert torch.equal(Pixels().encode(x), x)
