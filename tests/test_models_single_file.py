"""Codecs of one file against other writings of them: latent-diffusion's autoencoders and RAE's decoder, all weights random; and
diffusers' own of SDXL, SD3 and FLUX.
"""

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import draw_files, options
from diffusers import AutoencoderKL
from ldm_layers import Layers, Weights
from safetensors.torch import save_file

import fiducial
from fiducial import UserError
from fiducial.models import DiT_models
from fiducial.models.commands.inspection import inspect
from fiducial.models.decoders.affine import Affine
from fiducial.models.decoders.autoencoder import Autoencoder
from fiducial.models.decoders.ldm import LDMAutoencoder
from fiducial.models.decoders.table import decoder_of
from fiducial.models.decoders.vit import ViTDecoder
from fiducial.sampling.options.parser import parse

CPU = torch.device("cpu")
F8D4, F16D32, SMALL = ((1, 2, 4, 4), 4, ()), ((1, 1, 2, 2, 4), 32, (4,)), ((1, 2), 4, (0,))  # multiples, channels, with attention


def ldm_weights(multiples: tuple[int, ...], channels: int, attends: tuple[int, ...], width: int = 32, blocks: int = 2) -> Weights:
    """A decoder's names and shapes as latent-diffusion has them, with what a training leaves beside."""
    found = Weights()
    widths = [width * multiple for multiple in multiples]
    found.layer("post_quant_conv", channels, channels, 1, 1, std=0.5)
    found.layer("decoder.conv_in", widths[-1], channels, 3, 3)
    found.block("decoder.mid.block_1", widths[-1], widths[-1])
    found.attention("decoder.mid.attn_1", widths[-1])
    found.block("decoder.mid.block_2", widths[-1], widths[-1])
    before = widths[-1]
    for level in reversed(range(len(multiples))):
        for number in range(blocks + 1):
            found.block(f"decoder.up.{level}.block.{number}", before, widths[level])
            before = widths[level]
            if level in attends:
                found.attention(f"decoder.up.{level}.attn.{number}", before)
        if level:
            found.layer(f"decoder.up.{level}.upsample.conv", before, before, 3, 3)
    found.layer("decoder.norm_out", before)
    found.layer("decoder.conv_out", 3, before, 3, 3)
    found.layer("encoder.conv_in", widths[0], 3, 3, 3)
    found.layer("quant_conv", 2 * channels, 2 * channels, 1, 1)
    found.layer("loss.discriminator.main.0", 4, 3, 4, 4)
    return found


def ldm_decoded(state: dict, z: torch.Tensor) -> torch.Tensor:
    """Latent-diffusion's decoder once more, by its names."""
    its = Layers(state)
    x = its.middle(
        "decoder.mid", its.conv("decoder.conv_in", its.conv("post_quant_conv", z) if "post_quant_conv.weight" in state else z)
    )
    for level in reversed(range(1 + max(int(name.split(".")[2]) for name in state if name.startswith("decoder.up.")))):
        x = its.blocks(f"decoder.up.{level}", x)
        if level:
            x = its.conv(f"decoder.up.{level}.upsample.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    return its.last("decoder.norm_out", "decoder.conv_out", x)


def latents(channels: int, side: int = 4, count: int = 2) -> torch.Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 0.05
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


SAVED = {
    "bare.safetensors": lambda state, path: save_file(dict(state), path),
    "bare.pt": lambda state, path: torch.save(dict(state), path),
    "lightning.ckpt": lambda state, path: torch.save({"epoch": 3, "state_dict": dict(state)}, path),
    "repa-e.pt": lambda state, path: torch.save({"ema": {"x": torch.ones(1)}, "vae": dict(state), "steps": 4}, path),
}


@torch.no_grad()
@pytest.mark.parametrize("form", [F8D4, F16D32, SMALL], ids=["f8d4", "f16d32", "attention at the image"])
def test_latent_diffusions_decoder_is_as_its_names_say(form, tmp_path):
    state = ldm_weights(*form)
    SAVED["lightning.ckpt"](state, tmp_path / "vae.ckpt")
    codec = LDMAutoencoder(tmp_path / "vae.ckpt")
    assert (codec.latent_channels, codec.factor) == (form[1], 2 ** (len(form[0]) - 1))
    codec.affine = Affine(0.5, 0.25)
    z = latents(form[1])
    assert_same(codec.load(CPU)(z), ldm_decoded(state, z / 0.5 + 0.25))


@torch.no_grad()
@pytest.mark.parametrize("name", SAVED)
def test_weights_are_found_in_whatever_they_are_nested(name, tmp_path):
    state = ldm_weights(*SMALL, blocks=1)
    SAVED[name](state, tmp_path / name)
    assert decoder_of(str(tmp_path / name)).name == "ldm"
    codec = decoder_of(str(tmp_path / name)).open(tmp_path / name)
    assert_same(codec.load(CPU)(latents(4)), ldm_decoded(state, latents(4)))
    assert codec.identity()["vae_sha256"] == fiducial.file_sha256(tmp_path / name)


@torch.no_grad()
def test_without_a_convolution_before_the_decoder(tmp_path):
    state = {name: value for name, value in ldm_weights(*SMALL).items() if "quant" not in name}
    save_file(state, tmp_path / "vae.safetensors")
    assert_same(LDMAutoencoder(tmp_path / "vae.safetensors").load(CPU)(latents(4)), ldm_decoded(state, latents(4)))


@torch.no_grad()
def test_in_half_precision_it_is_near(tmp_path):
    state = ldm_weights(*SMALL)
    save_file(dict(state), tmp_path / "vae.safetensors")
    codec = LDMAutoencoder(tmp_path / "vae.safetensors")
    found, expected = codec.load(CPU, torch.bfloat16, merge=True, slicing=True)(latents(4)), ldm_decoded(state, latents(4))
    assert found.dtype == torch.float32
    assert 0 < ((found - expected).norm() / expected.norm()).item() < 0.05


def vit_weights(channels: int = 24, side: int = 4, width: int = 128, hidden: int = 80, depth: int = 3, patch: int = 2) -> Weights:
    found = Weights(2)
    found.layer("decoder_embed", width, channels)
    found["decoder_pos_embed"] = torch.randn(1, side * side + 1, width, generator=found._random)
    found["trainable_cls_token"] = torch.randn(1, 1, width, generator=found._random)
    for number in range(depth):
        name = f"decoder_layers.{number}"
        for part in (
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
            "attention.output.dense",
        ):
            found.layer(f"{name}.{part}", width, width)
        found.layer(f"{name}.intermediate.dense", hidden, width)
        found.layer(f"{name}.output.dense", width, hidden)
        found.layer(f"{name}.layernorm_before", width)
        found.layer(f"{name}.layernorm_after", width)
    found.layer("decoder_norm", width)
    found.layer("decoder_pred", patch * patch * 3, width)
    return found


def vit_decoded(state: dict, z: torch.Tensor, patch: int = 2, wide: int = 64) -> torch.Tensor:
    """RAE's decoder once more, image by image and head by head, to [-1, 1]."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-12).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    images = []
    for one in z:
        channels, side, _ = one.shape
        x = linear("decoder_embed", one.permute(1, 2, 0).reshape(-1, channels))
        x = torch.cat([state["trainable_cls_token"][0], x]) + state["decoder_pos_embed"][0]
        number = 0
        while f"decoder_layers.{number}.output.dense.weight" in state:
            name = f"decoder_layers.{number}"
            q, k, v = (
                linear(f"{name}.attention.attention.{part}", norm(f"{name}.layernorm_before", x))
                for part in ("query", "key", "value")
            )
            heads = [
                torch.softmax(q[:, a:b] @ k[:, a:b].T / wide**0.5, 1) @ v[:, a:b]
                for a, b in pairwise(range(0, q.shape[1] + 1, wide))
            ]
            x = x + linear(f"{name}.attention.output.dense", torch.cat(heads, 1))
            h = linear(f"{name}.intermediate.dense", norm(f"{name}.layernorm_after", x))
            x = x + linear(f"{name}.output.dense", h * 0.5 * (1 + torch.erf(h / 2**0.5)))
            number += 1
        tokens = linear("decoder_pred", norm("decoder_norm", x[1:]))
        image = torch.empty(3, side * patch, side * patch)
        for place, token in enumerate(tokens):
            row, column = divmod(place, side)
            part = token.view(patch, patch, 3).permute(2, 0, 1)
            image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = part
        images.append(image)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (torch.stack(images) * std + mean - 0.5) / 0.5


@torch.no_grad()
def test_raes_decoder_is_as_its_names_say(tmp_path):
    state = vit_weights()
    torch.save({"model": dict(state)}, tmp_path / "decoder.pt")
    spec = decoder_of(str(tmp_path / "decoder.pt"))
    codec = spec.open(tmp_path / "decoder.pt")
    assert (spec.name, codec.latent_channels, codec.factor, codec.only_size) == ("vit", 24, 2, 8)
    mean, scale = torch.randn(24, 4, 4), torch.rand(24, 4, 4) + 0.5
    codec.affine = Affine(scale, mean)
    assert_same(codec.load(CPU)(latents(24)), vit_decoded(state, latents(24) / scale + mean))
    assert torch.allclose(codec.load(CPU, slicing=True)(latents(24)), vit_decoded(state, latents(24) / scale + mean), atol=1e-4)
    near = codec.load(CPU, torch.bfloat16)(latents(24))
    assert near.dtype == torch.float32
    with pytest.raises(UserError, match="--vae-tiling: RAE's decoder looks at all of an image at once"):
        codec.load(CPU, tiling=True)


class Hostile:
    def __reduce__(self):
        return os.mkdir, (str(Hostile.mark),)


def without(name: str) -> Weights:
    found = ldm_weights(*SMALL)
    del found[name]
    return found


ODD = {
    "no tensors": (lambda: {"a": 1}, "holds no tensors by name"),
    "another network": (lambda: {"x.weight": torch.ones(2)}, "nor RAE's decoder: it has no decoder.conv_in.weight"),
    "no last layer": (lambda: without("decoder.conv_out.weight"), "it has no decoder.conv_out.weight"),
    "whole numbers": (
        lambda: ldm_weights(*SMALL) | {"decoder.conv_in.bias": torch.ones(64, dtype=torch.int64)},
        "no floating point",
    ),
    "unlike": (
        lambda: ldm_weights(*SMALL) | {"post_quant_conv.weight": torch.ones(4, 8, 1, 1)},
        "post_quant_conv makes 4 channels of 8",
    ),
    "half a vit": (
        lambda: {name: value for name, value in vit_weights().items() if "pos" not in name},
        "no whole ViT-MAE decoder",
    ),
    "a vit of an odd grid": (lambda: vit_weights() | {"decoder_pos_embed": torch.ones(1, 8, 128)}, "8 places"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_file_of_something_else_is_one_sentence(kind, tmp_path):
    made, said = ODD[kind]
    torch.save(dict(made()), tmp_path / "vae.pt")
    with pytest.raises(UserError, match="--vae") as caught:
        decoder_of(str(tmp_path / "vae.pt")).open(tmp_path / "vae.pt")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda: without("decoder.mid.block_1.conv2.bias"), "decoder.mid_block.resnets.0.conv2.bias is missing"),
        (lambda: ldm_weights(*SMALL) | {"decoder.mid.attn_1.q.bias": torch.ones(3)}, "to_q.bias has the shape [3]"),
        (lambda: ldm_weights(*SMALL) | {"decoder.more.weight": torch.ones(3)}, "decoder.more.weight has the shape [3]"),
    ],
)
def test_weights_that_are_not_whole_are_told(changed, said, tmp_path):
    torch.save(dict(changed()), tmp_path / "vae.pt")
    with pytest.raises(UserError) as caught:
        LDMAutoencoder(tmp_path / "vae.pt").load(CPU)
    assert said in str(caught.value)


def test_no_code_of_a_file_runs(tmp_path):
    Hostile.mark = tmp_path / "ran"
    torch.save({"state_dict": {"decoder.conv_in.weight": Hostile()}}, tmp_path / "vae.pt")
    with pytest.raises(UserError, match="was not unpickled"):
        decoder_of(str(tmp_path / "vae.pt"))
    assert not Hostile.mark.exists()


@pytest.fixture(scope="module")
def f8d4(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("f8d4") / "vae.pt"
    torch.save({"state_dict": dict(ldm_weights(*F8D4, blocks=1))}, path)
    return path


def test_a_run_decodes_by_such_a_file_and_its_statistics(f8d4, tiny_checkpoint, tmp_path):
    given = options(tiny_checkpoint, tmp_path, num_fid_samples=2, per_proc_batch_size=2, vae=f8d4)
    config, _ = parse([*given, "--latent-stats", "scale=0.5"])
    draw_files(config, fiducial.init("cpu"))
    identity = json.loads((tmp_path / "run" / "manifest.json").read_text())["identity"]
    assert identity["vae_sha256"] == fiducial.file_sha256(f8d4)
    assert len(identity["latent_stats_sha256"]) == 64
    with pytest.raises(UserError, match="does not say by what latents are normalised; give --latent-stats"):
        draw_files(parse(given)[0], fiducial.init("cpu"))


def test_latents_of_other_channels_or_sizes_are_refused(tiny_checkpoint, tmp_path):
    torch.save(dict(vit_weights(channels=4, side=4, patch=8)), tmp_path / "vit.pt")
    given = options(tiny_checkpoint, tmp_path, vae=tmp_path / "vit.pt")
    with pytest.raises(UserError, match=r"--image-size 64: --vae .*vit\.pt decodes images of 32 alone"):
        draw_files(parse([*given, "--latent-stats", "scale=1"])[0], fiducial.init("cpu"))
    torch.save(dict(ldm_weights((1, 1, 1, 1), 16, ())), tmp_path / "f8d16.pt")
    given = options(tiny_checkpoint, tmp_path, vae=tmp_path / "f8d16.pt")
    with pytest.raises(UserError, match="has 16 latent channels, but"):
        draw_files(parse([*given, "--latent-stats", "scale=1"])[0], fiducial.init("cpu"))


# As the configurations of these say it.
PUBLISHED = {
    "SDXL": ({"latent_channels": 4, "scaling_factor": 0.13025}, lambda z: z / 0.13025),
    "SD3": (
        {
            "latent_channels": 16,
            "scaling_factor": 1.5305,
            "shift_factor": 0.0609,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        lambda z: z / 1.5305 + 0.0609,
    ),
    "FLUX": (
        {
            "latent_channels": 16,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        lambda z: z / 0.3611 + 0.1159,
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", PUBLISHED)
def test_diffusers_autoencoders_are_decoded_as_their_pipelines_do(name, tmp_path):
    config, formula = PUBLISHED[name]
    levels = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoencoderKL(**levels, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **config).eval()
    network.save_pretrained(tmp_path / "vae")
    codec, z = Autoencoder(tmp_path / "vae"), latents(config["latent_channels"])
    assert codec.latent_channels == config["latent_channels"]
    assert_same(codec.load(CPU)(z), network.decode(formula(z)).sample)
    assert (network.decode(z).sample - network.decode(formula(z)).sample).abs().max() > 0.01


def test_a_vit_is_not_taken_for_an_autoencoder(tmp_path):
    torch.save(dict(vit_weights()), tmp_path / "vit.pt")
    assert isinstance(decoder_of(str(tmp_path / "vit.pt")).open(tmp_path / "vit.pt"), ViTDecoder)


KNOWN_FILES = {  # content of a file, and what is said of it
    "ldm": (
        lambda: {"state_dict": dict(ldm_weights(*SMALL))},
        {
            "family": "AutoencoderKL in latent-diffusion's form",
            "latent_channels": 4,
            "factor": 2,
            "missing": None,
            "refused": None,
        },
    ),
    "a weight that is missing": (
        lambda: {name: value for name, value in ldm_weights(*SMALL).items() if name != "decoder.mid.block_1.conv1.bias"},
        {"missing": "1: decoder.mid_block.resnets.0.conv1.bias", "unexpected": None, "option": "--vae {path}"},
    ),
    "a weight too many": (
        lambda: dict(ldm_weights(*SMALL)) | {"decoder.other": torch.zeros(2)},
        {"missing": None, "unexpected": "1: decoder.other", "refused": "weights are not as its own others want them"},
    ),
    "vit": (
        lambda: dict(vit_weights(4, 8)),
        {"family": "RAE's decoder, a ViT-MAE's", "latents": "4 x 8 x 8", "image_size": 16, "missing": None, "unexpected": None},
    ),
    "statistics by channel": (
        lambda: {"mean": torch.ones(1, 3, 1, 1), "std": torch.tensor([0.5, 1, 2]).view(1, 3, 1, 1)},
        {"family": "statistics of latents, of each channel", "latents": "3 channels", "scale": "0.5 to 2", "shift": "1 to 1"},
    ),
    "statistics by element": (
        lambda: {"mean": torch.zeros(3, 2, 2), "var": torch.ones(3, 2, 2)},
        {"family": "statistics of latents, of each element", "latents": "3 x 2 x 2", "option": "--latent-stats {path}"},
    ),
}


@pytest.mark.parametrize("name", KNOWN_FILES)
def test_inspect_says_what_files_beside_a_checkpoint_are(name, tmp_path):
    make, wanted = KNOWN_FILES[name]
    torch.save(make(), path := tmp_path / "file.pt")
    found = inspect(path)
    said = {key: value.format(path=path) if isinstance(value, str) else value for key, value in wanted.items()}
    assert {key: found[key] for key in said} == said
    assert found["sha256"] == fiducial.file_sha256(path)


def test_inspect_takes_a_network_with_its_codec_for_a_checkpoint(tmp_path):
    network = DiT_models["DiT-XS/8"](input_size=8, num_classes=10)
    torch.save({"ema": network.state_dict(), "vae": dict(ldm_weights(*SMALL))}, path := tmp_path / "both.pt")
    assert inspect(path)["model"] == "DiT-XS/8"
