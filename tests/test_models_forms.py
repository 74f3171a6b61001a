"""Every form of checkpoint gives the same images; each, and each autoencoder, damaged in several ways is one sentence."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import randomised
from formats import AUTOENCODERS, CHECKPOINTS, WEIGHTS, change_config, change_weights, config_file, weights_file
from safetensors.torch import load_file, save_file

import sample_ddp
from fiducial import UserError, file_sha256
from fiducial.models import DiT_models
from fiducial.models.checkpoints import checkpoint
from fiducial.models.checkpoints.checkpoint import read, sha256
from fiducial.models.checkpoints.shapes import check
from fiducial.models.latent import LatentShape
from fiducial.sampling.identity import Identity, fingerprint
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.source import from_checkpoint
from fiducial.sampling.source.node_files import NodeFiles

SHAPE = {"model": "DiT-XS/8", "num_classes": 10, "latent": LatentShape(4, 8)}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    return randomised(DiT_models["DiT-XS/8"](input_size=8, num_classes=10))


@pytest.fixture(scope="module")
def written(network, tmp_path_factory):
    """Every form by name, whole; leave them as they are."""
    folder = tmp_path_factory.mktemp("forms")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoders = {name: write(folder) for name, write in AUTOENCODERS.items()}
    return {name: write(network, folder) for name, write in CHECKPOINTS.items()} | autoencoders


@pytest.mark.parametrize("form", CHECKPOINTS)
def test_every_form_has_the_same_bits(written, network, form):
    state = read(written[form]).state
    check(state, written[form], **SHAPE)
    loaded = read(written[form]).load("DiT-XS/8", 10, CPU).state_dict()
    assert loaded.keys() == network.state_dict().keys()
    assert all(torch.equal(value, loaded[key]) for key, value in network.state_dict().items())


def sample(monkeypatch, folder, *given):
    """The pixels of two images by `sample_ddp.py`, with this process's own settings of torch."""
    fixed = ["--preset", "digits", "--model", "DiT-XS/8", "--num-fid-samples", "2", "--per-proc-batch-size", "2"]
    fixed += ["--num-sampling-steps", "2", "--precision", "fp32", "--no-compile", "--no-png", "--no-probe", "--run-name", "run"]
    monkeypatch.setattr("sys.argv", ["sample_ddp.py", *fixed, "--sample-dir", str(folder), *map(str, given)])
    sample_ddp.main()
    return np.load(folder / "run.npz")["arr_0"]


@pytest.fixture(scope="module")
def pixels(written, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return sample(patch, tmp_path_factory.mktemp("run"), "--ckpt", written["safetensors"])


@pytest.mark.parametrize("form", ["compiled under DDP", "diffusers sharded", "DiTPipeline"])
def test_every_form_draws_the_same_images(written, pixels, tmp_path, monkeypatch, form):
    assert pixels.std() > 5
    assert np.array_equal(sample(monkeypatch, tmp_path, "--ckpt", written[form]), pixels)


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        (("--network", "diffusers"), {"network": "diffusers"}),
        (("--vae", "AutoencoderKL"), {"latent_scale": 0.36, "latent_shift": 0.12}),
        (("--vae", "AutoencoderTiny"), {"latent_scale": 1.0}),
    ],
)
def test_another_network_or_autoencoder_draws_others(written, pixels, tmp_path, monkeypatch, given, recorded):
    option, value = given
    value = written[value] if value in AUTOENCODERS else value
    drawn = sample(monkeypatch, tmp_path, "--ckpt", written["diffusers"], option, value)
    assert drawn.shape == pixels.shape
    assert not np.array_equal(drawn, pixels)
    identity = json.loads((tmp_path / "run" / "manifest.json").read_text())["identity"]
    assert {name: identity[name] for name in recorded} == recorded
    assert not {"network", "latent_scale", "latent_shift"} & identity.keys() - recorded.keys()


def config(**changes):
    return SamplingConfig(**{"ckpt": Path("DiT.pt"), "model": "DiT-XL/2", "vae": "ema"} | changes)


def test_only_a_network_that_is_not_official_changes_a_runs_name():
    usual, official, other = (
        fingerprint(config(**changes).identity()) for changes in ({}, {"network": "official"}, {"network": "diffusers"})
    )
    assert usual == official != other


def test_a_pipelines_folder_names_the_run_also_from_within():
    assert config(ckpt=Path("hub/DiT-XL-2-256/transformer")).named_run("0").startswith("DiT-XL-2-DiT-XL-2-256-size")


def test_a_node_whose_folder_holds_other_shards_is_told(written, tmp_path):
    """Every shard counts; what another node has under the same name may be another file."""
    path = copied(written["diffusers sharded"], tmp_path)
    vae = written["AutoencoderTiny"]
    hashes = {"checkpoint_sha256": sha256(path), "vae_sha256": file_sha256(vae / WEIGHTS)}

    def found():
        return NodeFiles(config(ckpt=path, vae=str(vae)), Identity(hashes), SimpleNamespace(is_main=False)).codec().folder

    assert found() == vae
    last = max(path.glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"sharded on .* is missing or another file than on the first node"):
        found()
    shutil.rmtree(path)
    with pytest.raises(UserError, match="is missing or another file than on the first node"):
        found()


def cut(path):
    file = weights_file(path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return "whole"


def emptied(path):
    weights_file(path).write_bytes(b"")
    return "whole"


def flipped_header(path):
    file = weights_file(path)
    content = bytearray(file.read_bytes())
    content[0] ^= 0x10
    file.write_bytes(content)
    return str(path)


def a_key(state):
    return min(key for key in state if key.endswith("bias"))


def missing_key(path):
    removed = []
    change_weights(path, lambda state: removed.append(state.pop(key := a_key(state)) is None or key))
    return removed[0].removeprefix("module._orig_mod.")


def surplus_key(path):
    change_weights(path, lambda state: state.update({a_key(state) + ".odd": torch.ones(1)}))
    return ".odd"


def wrong_shape(path):
    change_weights(path, lambda state: state.update({a_key(state): torch.ones(7)}))
    return "(7,)" if path.name not in AUTOENCODER_FOLDERS else ""


def wrong_dtype(path):
    change_weights(path, lambda state: state.update({key: value.int() for key, value in state.items()}))
    return "torch.int32" if path.name not in AUTOENCODER_FOLDERS else "is of no floating point dtype"


AUTOENCODER_FOLDERS = ("kl", "taesd")
DAMAGES = [cut, emptied, flipped_header, missing_key, surplus_key, wrong_shape, wrong_dtype]


def refusal(monkeypatch, capsys, folder, *given):
    """What `sample_ddp.py` says in the place of drawing."""
    monkeypatch.setattr(
        "fiducial.sampling.source.latent_diffusion.LatentDiffusion.blocks", lambda *_: pytest.fail("drawing began")
    )
    with pytest.raises(SystemExit) as ended:
        sample(monkeypatch, folder / "samples", *given)
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert not (folder / "samples").exists()
    return err


def copied(path, folder):
    return shutil.copytree(path, folder / path.name) if path.is_dir() else shutil.copy(path, folder / path.name)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("form", [*CHECKPOINTS, *AUTOENCODERS])
def test_damage_is_one_sentence(written, tmp_path, monkeypatch, capsys, form, damage):
    path = copied(written[form], tmp_path)
    said = damage(path)
    option = ["--vae", path] if form in AUTOENCODERS else ["--ckpt", path]
    sentence = refusal(
        monkeypatch, capsys, tmp_path, *option, *([] if form in CHECKPOINTS else ["--ckpt", written["safetensors"]])
    )
    assert said in sentence
    assert str(path) in sentence


def other_embedder(path):
    key = "transformer_blocks.3.norm1.emb.class_embedder.embedding_table.weight"
    change_weights(path, lambda state: state.update({key: state[key] + 1}))


def mixed_attention(path):
    key = "transformer_blocks.3.attn1.to_k.weight"
    change_weights(path, lambda state: state.update({key: state[key].half()}))


def configured(**changes):
    return lambda path: change_config(path, **changes)


def without_config(path):
    config_file(path).unlink()


def without_weights(path):
    weights_file(path).unlink()


CONTRADICTIONS = {
    "embedders that differ": (
        other_embedder,
        "its blocks have embedders of their own, as only a network that was trained in diffusers",
    ),
    "attention of two dtypes": (mixed_attention, "to_k.weight, transformer_blocks.3.attn1.to_v.weight are of several dtypes"),
    "fewer blocks": (configured(num_layers=5), "describes 5 blocks of 5 heads of 32"),
    "other heads": (configured(num_attention_heads=10, attention_head_dim=16), "6 blocks of 10 heads of 16"),
    "other classes": (configured(num_embeds_ada_norm=17), "(18, 160); found torch.strided torch.float32 (11, 160)"),
    "other patches": (
        configured(patch_size=4),
        "is dense floating point (160, 4, 4, 4); found torch.strided torch.float32 (160, 4, 8, 8)",
    ),
    "other channels": (configured(in_channels=3, out_channels=6), "(160, 3, 8, 8)"),
    "odd channels": (configured(out_channels=7), "out_channels 7"),
    "no variance": (configured(out_channels=4), "(256"),
    "another size of latents": (configured(sample_size=16), "expected input_size 8; found input_size 16"),
    "no size of latents": (configured(sample_size=None), "has sample_size None"),
    "a huge size of latents": (configured(sample_size=10**9), "has sample_size 1000000000, expected a number from 1 to 1,024"),
    "a true number": (configured(num_layers=True), "has num_layers True"),
    "another epsilon": (configured(norm_eps=1e-6), "has norm_eps 1e-06; a DiT has 1e-05"),
    "another norm": (configured(norm_type="ada_norm_single"), "has norm_type 'ada_norm_single'"),
    "another class": (configured(_class_name="UNet2DModel"), "describes a UNet2DModel, expected a DiTTransformer2DModel"),
    "no configuration": (without_config, "it has no config.json"),
    "no weights": (without_weights, f"it has no {WEIGHTS}"),
    "a list": (lambda path: config_file(path).write_text("[]"), "holds a list, expected a JSON object"),
    "text": (lambda path: config_file(path).write_text("<html>"), "is not whole JSON"),
}


@pytest.mark.parametrize(("damage", "said"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_folder_that_contradicts_itself_is_one_sentence(written, tmp_path, monkeypatch, capsys, damage, said):
    path = copied(written["diffusers"], tmp_path)
    damage(path)
    assert said in refusal(monkeypatch, capsys, tmp_path, "--ckpt", path)


def key_in_two_shards(path):
    first, second = sorted(path.glob("*.safetensors"))[:2]
    repeated = dict([next(iter(load_file(first).items()))])
    save_file(load_file(second) | repeated, second.with_suffix(".new"), metadata={"format": "pt"})
    second.with_suffix(".new").replace(second)


def other_index(change):
    def damage(path):
        index = path / f"{WEIGHTS}.index.json"
        index.write_text(change(index.read_text()))

    return damage


SHARDS = {
    "a shard is missing": (without_weights, "it has no 'diffusion_pytorch_model-00001-of-0000"),
    "a shard elsewhere": (
        other_index(lambda text: text.replace("diffusion_pytorch_model-00001", "../elsewhere")),
        "'../elsewhere",
    ),
    "a key in two shards": (key_in_two_shards, "is in more than one of its shards"),
    "an index of nothing": (other_index(lambda _: "{}"), "has no weight_map"),
    "half an index": (other_index(lambda text: text[:100]), "is not whole JSON"),
}


@pytest.mark.parametrize(("damage", "said"), SHARDS.values(), ids=SHARDS)
def test_shards_that_are_not_whole_are_one_sentence(written, tmp_path, monkeypatch, capsys, damage, said):
    path = copied(written["diffusers sharded"], tmp_path)
    damage(path)
    assert said in refusal(monkeypatch, capsys, tmp_path, "--ckpt", path)


def test_the_class_of_older_folders_is_the_same_network(written, network, tmp_path):
    path = copied(written["diffusers"], tmp_path)
    change_config(path, _class_name="Transformer2DModel")
    assert torch.equal(read(path).state["blocks.5.attn.qkv.weight"], network.blocks[5].attn.qkv.weight)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_class_name": "AutoencoderDC"}, "describes a AutoencoderDC, expected an AutoencoderKL or AutoencoderTiny"),
        ({"latents_mean": [0.0] * 4}, "latents_mean and latents_std are not"),
        ({"scaling_factor": 0}, "scaling_factor 0"),
        ({"scaling_factor": "1"}, "scaling_factor '1'"),
        ({"shift_factor": float("nan")}, "shift_factor nan"),
        ({"latent_channels": 16}, "has 16 latent channels, but"),
    ],
)
@pytest.mark.parametrize("form", AUTOENCODERS)
def test_an_autoencoder_of_another_kind_is_one_sentence(written, tmp_path, monkeypatch, capsys, form, changes, said):
    path = copied(written[form], tmp_path)
    change_config(path, **changes)
    assert said in refusal(monkeypatch, capsys, tmp_path, "--ckpt", written["safetensors"], "--vae", path)


def test_an_ema_in_a_folder_of_its_own_never_passes_silently(network, tmp_path, capsys):
    """As diffusers' trainings leave it: `transformer_ema` beside `transformer`."""
    raw = CHECKPOINTS["DiTPipeline"](network, tmp_path)
    shutil.copytree(raw / "transformer", average := raw / "transformer_ema")
    change_config(average, decay=0.9999, optimization_step=1000)
    change_weights(average, lambda state: state.update({key: value + 1 for key, value in state.items()}))
    beside = "transformer_ema (an EMA), for which give that folder as --ckpt"
    for path in (raw, raw / "transformer"):
        found = checkpoint.read(path)
        from_checkpoint.tell_of_weights(
            SimpleNamespace(ckpt=path, image_size=64, num_classes=10), replace(found, trained_classes=10), has_null=True
        )
        said = capsys.readouterr().err
        assert said == f"warning: weights of {path}: transformer, not an EMA; beside it: {beside}\n"
    found = checkpoint.read(average)
    assert (found.state["x_embedder.proj.bias"] == network.state_dict()["x_embedder.proj.bias"] + 1).all()
    from_checkpoint.tell_of_weights(
        SimpleNamespace(ckpt=average, image_size=64, num_classes=10), replace(found, trained_classes=10), has_null=True
    )
    heard = capsys.readouterr()
    assert heard.err == ""
    assert "transformer_ema, an EMA; beside it: transformer" in heard.out
    with pytest.raises(UserError, match=r"holds one network; give .*pipeline/transformer_ema as --ckpt instead"):
        checkpoint.read(raw, "transformer_ema")
    with pytest.raises(UserError, match="holds one network; leave it out"):
        checkpoint.read(raw, "ema")
    shutil.rmtree(average)
    assert checkpoint.read(raw).beside == ""
