"""REPA and REPA-E: against a second writing, and their files as their trainings leave them."""

import argparse
import json

import pytest
import torch
from families import TOLERANCE, difference, keys_of, lively, write
from safetensors.torch import save_file
from second_writings import of_sit
from test_models_main import command

from fiducial import UserError
from fiducial.models import DiT_models
from fiducial.models.checkpoints import checkpoint, shapes
from fiducial.models.networks import repa
from fiducial.models.networks.repa import REPA, REPA_models
from fiducial.models.networks.table import NETWORKS, asked

CPU = torch.device("cpu")
SMALL = {"input_size": 8, "hidden_size": 32, "depth": 3, "num_heads": 4, "num_classes": 10}
TRAINED = argparse.Namespace(model="SiT-XL/2", path_type="linear", prediction="v", num_classes=10, qk_norm=False)
PROJECTORS = {f"projectors.0.{layer}.{kind}": torch.ones(2) for layer in (0, 2, 4) for kind in ("weight", "bias")}
STATISTICS = {
    "bn.running_mean": torch.tensor([0.5, -1.0, 0.0, 2.0]),
    "bn.running_var": torch.tensor([4.0, 0.25, 1.0, 16.0]),
    "bn.num_batches_tracked": torch.tensor(7),
}


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("patch", [1, 2])
def test_is_the_second_writing(qk_norm, patch):
    network = lively(REPA(**SMALL | {"input_size": 4 * patch}, patch_size=patch, qk_norm=qk_norm, in_channels=3))
    found = difference(network, lambda x, t, y: of_sit(network.state_dict(), x, t, y, 4, qk_norm), 4 * patch)
    assert found < TOLERANCE


def test_its_time_is_one_at_noise():
    seen = []
    spec = NETWORKS["REPA"]

    def network(x, t, _):
        seen.append(t.item())
        return x

    out = asked(network, spec, shared_timestep=True)(torch.ones(1, 4, 2, 2), 0.75, torch.tensor([0]))
    assert seen == [0.75]
    assert torch.equal(out, torch.ones(1, 4, 2, 2))


def test_xl_has_the_parameters_and_names_of_the_sit():
    with torch.device("meta"):
        network, sit = REPA_models["REPA-XL/2"](), DiT_models["DiT-XL/2"](learn_sigma=False)
    assert {key: value.shape for key, value in network.state_dict().items()} == {
        key: value.shape for key, value in sit.state_dict().items()
    }
    assert sum(parameter.numel() for parameter in network.parameters()) == 675_129_632 - 16 * 1153
    with torch.device("meta"):
        normalised = set(REPA(**SMALL, qk_norm=True).state_dict()) - set(REPA(**SMALL).state_dict())
    assert normalised == {f"blocks.{i}.attn.{n}_norm.{kind}" for i in range(3) for n in "qk" for kind in ("weight", "bias")}


def small(**options):
    return lively(REPA_models["REPA-XS/2"](input_size=8, num_classes=10, **options))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("form", ["bare", "training", "legacy"])
def test_files_of_its_training_are_read(form, qk_norm, tmp_path):
    network = small(qk_norm=qk_norm)
    state = network.state_dict()
    in_file = {legacy(key): value for key, value in state.items()} if form == "legacy" else state
    in_file = in_file | PROJECTORS
    content = in_file if form == "bare" else {"model": in_file, "ema": in_file, "opt": {}, "args": TRAINED, "steps": 400_000}
    path = write(content, tmp_path)
    found = checkpoint.read(path)
    assert (found.family, found.unused, found.says_family) == ("REPA", ("projectors.",), True)
    described = shapes.describe(found.state, path, found.family)
    assert (described["model"], described["num_classes"], described["latent"].channels) == ("REPA-XS/2", 10, 4)
    shapes.check(found.state, path, **described)
    loaded = found.load("REPA-XS/2", 10, CPU)
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.9]), torch.tensor([3, 10])
    assert torch.equal(loaded(x, t, y), network(x, t, y))


def legacy(key, encoder=2):
    parts = key.split(".")
    if parts[0] != "blocks" or int(parts[1]) < encoder:
        return key
    return ".".join(["decoder_blocks", str(int(parts[1]) - encoder), *parts[2:]])


def test_inspect_names_what_is_left_out(tmp_path):
    path = write({"ema": small().state_dict() | PROJECTORS | STATISTICS, "args": TRAINED}, tmp_path)
    _, out = command("inspect", path, "--json")
    told = json.loads(out)
    assert (told["family"], told["model"], told["unused"]) == ("REPA", "REPA-XS/2", "projectors.*, bn.*")
    assert told["latents"] is not None


def test_bare_weights_are_a_repa_by_name_alone(tmp_path):
    path = tmp_path / "bare.safetensors"
    save_file(small().state_dict(), path)
    found = checkpoint.read(path)
    assert found.family == "DiT"
    checkpoint.require_family(found, path, "REPA-XS/2")
    assert shapes.describe(found.state, path, "REPA")["model"] == "REPA-XS/2"
    _, out = command("inspect", path)
    assert "DiT, or SiT, or REPA, as the file does not tell" in out


def test_another_path_or_family_is_refused(tmp_path):
    others = [argparse.Namespace(**vars(TRAINED) | {"path_type": name}) for name in ("cosine", "GVP")]
    paths = []
    for number, other in enumerate(others):
        (tmp_path / str(number)).mkdir()
        paths.append(write({"ema": small().state_dict() | PROJECTORS, "args": other}, tmp_path / str(number)))
    assert checkpoint.read(paths[0]).trained == {"path": "gvp"}
    assert checkpoint.read(paths[0]).family == "REPA"
    with pytest.raises(UserError, match="is a REPA with path_type GVP, which no sampler here takes"):
        checkpoint.require_family(checkpoint.read(paths[1]), paths[1], None)
    path = write({"ema": small().state_dict(), "args": TRAINED}, tmp_path)
    with pytest.raises(UserError, match=r"of REPA's kind, which is fed another time .* as a SiT; leave --model out"):
        checkpoint.require_family(checkpoint.read(path), path, "SiT-XS/2")


def test_statistics_of_repa_e_are_a_scale_and_a_bias(tmp_path):
    path = write({"ema": small().state_dict() | PROJECTORS | STATISTICS, "args": TRAINED}, tmp_path)
    found = checkpoint.read(path)
    assert found.statistics.scale.flatten().tolist() == [0.5, 2.0, 1.0, 0.25]
    assert found.statistics.bias.flatten().tolist() == [0.5, -1.0, 0.0, 2.0]
    assert found.statistics.scale.shape == (1, 4, 1, 1)
    assert set(found.state) == keys_of(REPA_models["REPA-XS/2"], input_size=8)
    assert checkpoint.read(write({"ema": small().state_dict()}, tmp_path)).statistics is None
    assert repa.statistics({}) is None


@torch.no_grad()
def test_blocks_multiply_in_bfloat16():
    whole, half = small(qk_norm=True), small(qk_norm=True).to_half(torch.bfloat16)
    assert half.blocks[0].attn.q_norm.weight.dtype == torch.float32
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.9]), torch.tensor([3, 10])
    expected = whole(x, t, y)
    assert 0 < (half(x, t, y) - expected).abs().max() < 0.03 * expected.abs().max()
