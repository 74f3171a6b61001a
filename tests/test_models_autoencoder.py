"""Rounding to uint8, decoding as diffusers decodes, and what is said about an autoencoder that is not one."""

import hashlib
import json
import shutil
import time

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.upsampling import Upsample2D
from safetensors.torch import load_file, save_file

from fiducial import UserError
from fiducial.models.decoders.autoencoder import WEIGHTS_FILE, Autoencoder, merge_doubling, resolve
from fiducial.models.decoders.rounding import to_uint8

CPU = torch.device("cpu")
REPOSITORY = "fiducial-tests/no-such-vae"


@pytest.fixture(scope="module")
def saved_vae(tmp_path_factory):
    """A random autoencoder of two levels as diffusers saves it; leave it as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            latent_channels=4,
            sample_size=16,
        )
    network.save_pretrained(folder := tmp_path_factory.mktemp("vae"))
    return folder


@pytest.fixture
def vae(saved_vae, tmp_path):
    """A copy of it, to damage."""
    return shutil.copytree(saved_vae, tmp_path / "vae")


@pytest.fixture
def offline_cache(monkeypatch, tmp_path):
    """The hub's client as HF_HUB_OFFLINE makes it, with an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def message(function, *arguments):
    """The one sentence that a call fails with."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def grey(*values):
    return torch.tensor(values).view(1, 1, 1, -1).expand(1, 3, 1, -1)


@pytest.mark.parametrize(
    ("rounding", "levels"),
    [("dit", [0, 0, 0, 64, 128, 191, 254, 255, 255]), ("repa", [0, 0, 0, 63, 127, 191, 253, 255, 255])],
)
def test_levels_are_truncated_and_clamped(rounding, levels):
    """Rounding to the nearest would give 192 for DiT's 191.75 and 64 for REPA's 63.75."""
    images = to_uint8(grey(-30.0, -1.1, -1.0, -0.5, 0.0, 0.5, 0.99, 1.0, 30.0), rounding)
    assert images.dtype == torch.uint8
    assert images[0, 0, :, 0].tolist() == levels


def test_default_rounding_is_dits():
    assert to_uint8(grey(0.0)).flatten().tolist() == [128, 128, 128]


def test_images_survive_the_way_there_and_back():
    """A level k is at k / 127.5 - 1, as training scales images."""
    levels = torch.arange(256)
    assert torch.equal(to_uint8(grey(*(levels / 127.5 - 1).tolist()))[0, 0, :, 1].long(), levels)


def test_repa_is_half_a_level_darker():
    ramp = grey(*torch.linspace(-0.9, 0.9, 10_001).tolist())
    difference = to_uint8(ramp, "dit").double().mean() - to_uint8(ramp, "repa").double().mean()
    assert difference.item() == pytest.approx(0.5, abs=0.01)


def test_channels_come_last():
    images = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5) / 127.5 - 1
    pixels = to_uint8(images)
    assert pixels.shape == (2, 4, 5, 3)
    assert pixels[1, 2, 3].tolist() == [60 + 2 * 5 + 3, 60 + 20 + 2 * 5 + 3, 60 + 40 + 2 * 5 + 3]


LATENTS = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def decoded_by_diffusers(folder, scale=0.18215, shift=0.0):
    """Levels before truncation, (N, H, W, 3) float64, as pipelines that know of a shift decode."""
    kind = getattr(diffusers, json.loads((folder / "config.json").read_text())["_class_name"])
    images = kind.from_pretrained(folder, local_files_only=True).eval().decode(LATENTS / scale + shift).sample
    return np.clip(127.5 * images.double().numpy().transpose(0, 2, 3, 1) + 128, 0, 255)


def assert_truncated(levels, pixels):
    """Both (N, H, W, 3): the first before truncation."""
    assert pixels.shape == levels.shape
    assert levels.std() > 3
    differences = levels - pixels.numpy()
    assert differences.min() > -1e-3
    assert differences.max() < 1 + 1e-3


def test_decoding_is_diffusers(saved_vae):
    assert_truncated(decoded_by_diffusers(saved_vae), to_uint8(Autoencoder(saved_vae).load(CPU)(LATENTS)))


def test_comparison_notices_another_scale_or_shift(saved_vae):
    pixels = to_uint8(Autoencoder(saved_vae).load(CPU)(LATENTS)).numpy()
    for other in ({"scale": 1.0}, {"scale": 0.13025}, {"shift": 0.5}):
        assert np.abs(decoded_by_diffusers(saved_vae, **other) - pixels).max() > 3


@pytest.mark.parametrize("scale", [None, 0.18215, 0.13025, 0.3611, 1])
@pytest.mark.parametrize("shift", [None, 0.0, 0.1159, -2])
def test_scale_and_shift_are_the_configurations(vae, scale, shift):
    """None leaves the field out, as configurations of Stable Diffusion's time do."""
    edit_config(scaling_factor=scale, shift_factor=shift)(vae)
    wanted = {"scale": 0.18215 if scale is None else scale, "shift": shift or 0.0}
    files = Autoencoder(vae)
    assert {"scale": files.scale, "shift": files.shift} == wanted
    assert_truncated(decoded_by_diffusers(vae, **wanted), to_uint8(Autoencoder(vae).load(CPU)(LATENTS)))
    usual = {"latent_scale": 0.18215, "latent_shift": 0.0}
    said = {"latent_scale": wanted["scale"], "latent_shift": wanted["shift"]}
    unlike = {name: value for name, value in files.identity().items() if name in usual}
    assert unlike == {name: said[name] for name in usual if said[name] != usual[name]}


@pytest.fixture
def tiny(tmp_path):
    """A random AutoencoderTiny of two levels as diffusers saves it."""
    widths, counts = (8, 8), (1, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoencoderTiny(
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            num_encoder_blocks=counts,
            num_decoder_blocks=counts,
        )
    network.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize(("scale", "shift"), [(None, None), (1.0, None), (0.5, 0.25)])
def test_a_tiny_autoencoder_decodes_as_in_diffusers(tiny, scale, shift):
    """Its own scale is 1; its class drops a shift, which the folder may have all the same."""
    edit_config(scaling_factor=scale, shift_factor=shift)(tiny)
    files = Autoencoder(tiny)
    assert (files.kind, files.latent_channels, files.factor) == ("AutoencoderTiny", 4, 2)
    assert (files.scale, files.shift) == (scale or 1.0, shift or 0.0)
    assert_truncated(decoded_by_diffusers(tiny, files.scale, files.shift), to_uint8(Autoencoder(tiny).load(CPU)(LATENTS)))


def test_a_tiny_autoencoders_images_are_in_the_usual_range(tiny):
    """Its last layer gives 0 to 1, of which diffusers makes -1 to 1."""
    last = "decoder.layers.6"
    edit_weights(lambda s: s.update({f"{last}.weight": 0 * s[f"{last}.weight"], f"{last}.bias": torch.tensor([0.0, 0.5, 1.0])}))(
        tiny
    )
    assert to_uint8(Autoencoder(tiny).load(CPU)(LATENTS))[0, 0, 0].tolist() == [0, 128, 255]


def test_loaded_network_is_frozen_float32(vae):
    edit_weights(lambda state: state.update({key: value.half() for key, value in state.items()}))(vae)
    network = Autoencoder(vae).load(CPU).vae
    assert not network.training
    assert {(parameter.dtype, parameter.requires_grad) for parameter in network.parameters()} == {(torch.float32, False)}


def test_inspect_reads_the_shape_and_hashes_the_weights(saved_vae):
    files = Autoencoder(saved_vae)
    assert (files.folder, files.latent_channels, files.factor) == (saved_vae, 4, 2)
    assert files.sha256 == hashlib.sha256((saved_vae / WEIGHTS_FILE).read_bytes()).hexdigest()


def edit_config(**changes):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return damage


def write_config(text):
    return lambda folder: (folder / "config.json").write_text(text)


def truncate(size):
    return lambda folder: (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:size])


UNINSPECTABLE = {
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda folder: (folder / WEIGHTS_FILE).unlink(), f"has no {WEIGHTS_FILE}"),
    "another class": (edit_config(_class_name="VQModel"), "describes a VQModel, expected an AutoencoderKL or AutoencoderTiny"),
    "no class": (edit_config(_class_name=None), "_class_name"),
    "no latent channels": (edit_config(latent_channels=None), "latent_channels"),
    "blocks without a length": (edit_config(block_out_channels=8), "not the configuration of an autoencoder"),
    "empty configuration": (write_config(""), "is not whole JSON"),
    "a list for a configuration": (write_config("[1, 2]"), "holds a list, expected a JSON object"),
    "half the weights": (truncate(20_000), "not a whole safetensors file"),
    "half a header": (truncate(100), "not a whole safetensors file"),
    "empty weights": (truncate(0), "not a whole safetensors file"),
}


@pytest.mark.parametrize(("damage", "said"), UNINSPECTABLE.values(), ids=UNINSPECTABLE)
def test_inspect_refuses_in_one_sentence(vae, damage, said):
    damage(vae)
    sentence = message(lambda: Autoencoder(vae).identity())
    assert said in sentence
    assert str(vae) in sentence


def edit_weights(change):
    def damage(folder):
        state = load_file(folder / WEIGHTS_FILE)
        change(state)
        save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})

    return damage


UNLOADABLE = {
    "missing key": (edit_weights(lambda state: state.pop("decoder.conv_in.bias")), "decoder.conv_in.bias"),
    "surplus key": (edit_weights(lambda state: state.update({"decoder.odd": torch.ones(1)})), "decoder.odd"),
    "other shape": (edit_weights(lambda state: state.update({"decoder.conv_in.bias": torch.ones(3)})), "decoder.conv_in.bias"),
    "other width": (edit_config(block_out_channels=[8, 32]), ""),
    "unknown block": (edit_config(up_block_types=["Odd", "Odd"]), "Odd"),
}


@pytest.mark.parametrize(("damage", "said"), UNLOADABLE.values(), ids=UNLOADABLE)
def test_load_refuses_weights_that_do_not_fit(vae, damage, said):
    """What a header does not tell; diffusers by itself would leave a missing key random."""
    damage(vae)
    (found := Autoencoder(vae)).identity()
    sentence = message(found.load, CPU)
    assert said in sentence
    assert str(vae) in sentence


OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def use_old_names(state):
    for key in [key for key in state if ".attentions." in key]:
        new = next((name for name in OLD_NAMES if f".{name}." in key), None)
        if new:
            state[key.replace(new, OLD_NAMES[new])] = state.pop(key)


def test_published_names_of_the_attention_load(saved_vae, vae):
    """Stable Diffusion's autoencoders were saved when diffusers called the attention's layers otherwise."""
    edit_weights(use_old_names)(vae)
    assert "decoder.mid_block.attentions.0.query.weight" in load_file(vae / WEIGHTS_FILE)
    old, new = (Autoencoder(folder).load(CPU).state_dict() for folder in (vae, saved_vae))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in new)


def test_folder_is_its_own_answer(saved_vae, offline_cache):
    assert resolve(str(saved_vae)) == saved_vae
    assert not offline_cache.exists()


@pytest.mark.parametrize("source", ["no-such-folder", "./owner/name", "/owner/name", "~/name", "a/b/c"])
def test_what_is_neither_folder_nor_hub_id_is_refused(source):
    sentence = message(resolve, source)
    assert sentence.startswith(f"--vae {source}: no such folder")
    assert "hub id" in sentence


@pytest.mark.parametrize(
    ("source", "repository"),
    [(REPOSITORY, REPOSITORY), ("ema", "stabilityai/sd-vae-ft-ema"), ("mse", "stabilityai/sd-vae-ft-mse")],
)
@pytest.mark.usefixtures("offline_cache")
def test_without_internet_a_hub_id_is_refused_at_once(source, repository):
    start = time.monotonic()
    sentence = message(resolve, source)
    assert time.monotonic() - start < 5
    assert sentence.startswith(f"--vae {source}: {repository} is neither in the local hub cache nor")
    assert "give its folder" in sentence


@pytest.mark.usefixtures("offline_cache")
def test_malformed_hub_id_is_refused():
    assert "--vae owner/na me" in message(resolve, "owner/na me")


def test_cached_hub_id_needs_no_internet(offline_cache, saved_vae):
    repository = offline_cache / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = shutil.copytree(saved_vae, repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    assert Autoencoder(resolve(REPOSITORY)).folder == snapshot


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 6, 4, 4), (2, 6, 1, 7)])
def test_merged_doubling_is_doubling_and_convolution(shape):
    torch.manual_seed(0)
    upsampler = Upsample2D(6, use_conv=True, out_channels=5)
    x = torch.randn(shape)
    right = upsampler(x)
    merge_doubling(upsampler)
    assert isinstance(upsampler.conv, torch.nn.ConvTranspose2d)
    assert (upsampler(x) - right).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("dtype", "merge", "merged"),
    [(torch.float32, True, False), (torch.bfloat16, True, True), (torch.float16, True, True), (torch.bfloat16, False, False)],
)
def test_doubling_is_merged_in_half_precision_only(saved_vae, dtype, merge, merged):
    """`--exact` draws what it always drew."""
    upsamplers = [
        one for one in Autoencoder(saved_vae).load(CPU, dtype, merge).vae.decoder.modules() if isinstance(one, Upsample2D)
    ]
    assert [(one.use_conv_transpose, one.conv.weight.dtype) for one in upsamplers] == [(merged, dtype)]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["saved_vae", "tiny"])
def test_in_bfloat16_the_last_layer_is_float32(kind, request):
    """And the images lie pixel by pixel, so that kernels are fast; rounded to bfloat16 a pixel would lose half a grey level."""
    vae = Autoencoder(request.getfixturevalue(kind)).load(CPU, torch.bfloat16).vae
    layers = [module for module in vae.decoder.modules() if isinstance(module, torch.nn.Conv2d)]
    assert {layer.weight.dtype for layer in layers[:-1]} == {torch.bfloat16}
    assert layers[1].weight.is_contiguous(memory_format=torch.channels_last)
    image = vae.decode(torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).to(vae.dtype)).sample
    assert image.dtype == torch.float32
    assert (image.bfloat16().float() != image).any()
