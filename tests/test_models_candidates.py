"""Which weights of several are drawn from: the EMA, whatever it is called and however it is kept, or what is asked for."""

import argparse
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from conftest import draw_files, options, randomised, run_command
from formats import training_checkpoint, wrapped
from safetensors.torch import load_file, save_file

import fiducial
import sample_ddp
from fiducial import UserError
from fiducial.models import DiT_models
from fiducial.models.checkpoints.candidates import _walk, is_averaged
from fiducial.models.checkpoints.checkpoint import read
from fiducial.models.checkpoints.diffusers_form import POSITIONS
from fiducial.models.checkpoints.shapes import check
from fiducial.models.latent import LatentShape
from fiducial.sampling.source import from_checkpoint

MODEL = {"model": "DiT-XS/8", "num_classes": 10, "latent": LatentShape(4, 8)}
VAE_KEYS = {"vae.decoder.conv_in.weight": torch.ones(2, 2), "loss.scale": torch.ones(())}


@pytest.fixture
def ema(tiny_checkpoint):
    """In the order of the parameters, which a safetensors file does not keep."""
    from fiducial.models import DiT_models

    state = load_file(tiny_checkpoint)
    return {key: state[key] for key in DiT_models["DiT-XS/8"](input_size=8, num_classes=10).state_dict()}


@pytest.fixture
def raw(ema):
    return {key: value + (key != POSITIONS) for key, value in ema.items()}


def found(content, folder, key=None):
    save_file(content, path := folder / "a.safetensors") if all(map(torch.is_tensor, content.values())) else torch.save(
        content, path := folder / "a.pt"
    )
    checkpoint = read(path, key)
    check(checkpoint.state, path, **MODEL)
    return checkpoint


def is_of(state, wanted):
    return state.keys() == wanted.keys() and all(torch.equal(state[key], wanted[key]) for key in wanted)


def shadow(ema, positions=True, **more):
    """As torch_ema and diffusers' EMAModel leave it."""
    values = [value for key, value in ema.items() if positions or key != POSITIONS]
    return {"decay": 0.999, "num_updates": 7, "shadow_params": values, "collected_params": None, **more}


def flattened(state, positions=False):
    """As an EMA keeps it in buffers, whose names have no dots; what is not trained is left out."""
    return {key.replace(".", ""): value for key, value in state.items() if positions or key != POSITIONS}


def trained(state):
    """As named_parameters give it, without what needs no gradient."""
    return {key: value for key, value in state.items() if key != POSITIONS}


def sharded(state):
    """As FSDP, checkpointing of activations and torch.compile of blocks name them."""
    inside = {key.replace(".attn.", "._checkpoint_wrapped_module._orig_mod.attn."): value for key, value in state.items()}
    return wrapped(
        {key.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."): value for key, value in inside.items()}, "module."
    )


ONE = torch.ones(())
AVERAGES = {
    "model_ema": (lambda ema, raw: {"model": raw, "model_ema": ema}, "model_ema"),
    "ema_model": (lambda ema, raw: {"model": raw, "ema_model": ema}, "ema_model"),
    "state_dict_ema": (lambda ema, raw: {"state_dict": raw, "state_dict_ema": ema}, "state_dict_ema"),
    "emaWeights": (lambda ema, raw: {"model": raw, "emaWeights": ema}, "emaWeights"),
    "EMA": (lambda ema, raw: {"net": raw, "EMA": ema}, "EMA"),
    "the first by name": (lambda ema, raw: {"model": raw, "model_ema": raw, "ema": ema}, "ema"),
    "an averaged model": (lambda ema, raw: {"model": raw, "avg": {"averaged": wrapped(ema, "module.") | {"n": ONE}}}, "avg"),
    "in module": (lambda ema, raw: {"model": raw, "ema": {"module": ema, "decay": 0.99}}, "ema"),
    "under DDP": (lambda ema, raw: {"model": raw, "ema": {"module": wrapped(ema, "module.")}}, "ema"),
    "scalars beside": (lambda ema, raw: {"model": raw, "ema": ema | {"decay": 0.99, "updates": None}}, "ema"),
    "one in another": (lambda ema, raw: {"state": {"net": raw, "net_ema": ema}, "epoch": 1}, "state.net_ema"),
    "the same twice": (lambda ema, _: {"model": ema, "ema": ema}, "ema"),
    "shadow_params": (lambda ema, raw: {"model": raw, "ema": shadow(ema)}, "ema"),
    "shadow_params, positions frozen": (lambda ema, raw: {"model": raw, "ema": shadow(ema, positions=False)}, "ema"),
    "shadow_params of DDP": (lambda ema, raw: {"model": wrapped(raw, "module."), "ema": shadow(ema)}, "ema"),
    "shadow_params alone": (lambda ema, raw: {"model": raw, **shadow(ema)}, "shadow_params"),
    "collected_params": (
        lambda ema, raw: {"model": raw, "ema": shadow(ema, collected_params=list(raw.values()))},
        "ema.shadow_params",
    ),
    "a list": (lambda ema, raw: {"model": raw, "ema": list(ema.values())}, "ema"),
    "Lightning's": (
        lambda ema, raw: {"state_dict": wrapped(raw, "denoiser.") | wrapped(ema, "ema_denoiser.") | VAE_KEYS},
        "state_dict.ema_denoiser",
    ),
    "Lightning's alone": (lambda ema, _: {"state_dict": wrapped(ema, "ema_denoiser.") | VAE_KEYS}, "state_dict"),
    "buffers": (
        lambda ema, raw: {"state_dict": wrapped(raw, "model.") | wrapped(flattened(ema) | {"decay": ONE}, "model_ema.")},
        "state_dict.model_ema",
    ),
    "online and average": (
        lambda ema, raw: {"ema": wrapped(raw, "online_model.") | wrapped(ema, "ema_model.") | {"step": ONE}},
        "ema.ema_model",
    ),
    "trained parameters by name": (lambda ema, raw: {"model": raw, "ema": trained(ema)}, "ema"),
    "avg_model": (lambda ema, raw: {"model": raw, "avg_model": ema}, "avg_model"),
    "model_avg": (lambda ema, raw: {"model": raw, "model_avg": ema}, "model_avg"),
    "modelema": (lambda ema, raw: {"model": raw, "modelema": ema}, "modelema"),
    "emas by decay": (lambda ema, raw: {"model": raw, "emas": {"0.9999": ema}}, "emas"),
    "torch's AveragedModel": (lambda ema, raw: {"model": raw, "second": wrapped(ema, "module.") | {"n_averaged": ONE}}, "second"),
    "an AveragedModel in a module": (
        lambda ema, raw: {
            "state_dict": wrapped(raw, "net.") | wrapped(ema, "slow.module.") | {"slow.n_averaged": ONE, "other.x": ONE}
        },
        "state_dict.slow",
    ),
    "in a list": (lambda ema, raw: {"model": raw, "ema": [ema]}, "ema"),
    "NeMo's": (
        lambda ema, raw: {"model": raw, "optimizer_states": [{"optimizer": {}, "ema": tuple(ema.values())}]},
        "optimizer_states",
    ),
    "sharded": (lambda ema, raw: {"model": sharded(raw), "ema": sharded(ema)}, "ema"),
    "moments of the same names": (lambda ema, raw: {"net": raw, "ema": ema, "opt": {"exp_avg": raw, "exp_avg_sq": raw}}, "ema"),
    "prefixes alone": (lambda ema, raw: wrapped(raw, "net.") | wrapped(ema, "net_ema."), "net_ema"),
}


@pytest.mark.parametrize(("content", "key"), AVERAGES.values(), ids=AVERAGES)
def test_the_average_is_drawn_whatever_it_is_called(ema, raw, tmp_path, content, key):
    checkpoint = found(content(ema, raw), tmp_path)
    assert is_of(checkpoint.state, ema)
    assert checkpoint.kind == key
    assert checkpoint.kind in checkpoint.averages


RAW = {
    "model": (lambda raw: {"model": raw, "epoch": 3}, "model", "model, not an EMA"),
    "an empty EMA": (lambda raw: {"model": raw, "ema": None}, "model", "model, not an EMA"),
    "Lightning's model.": (lambda raw: {"state_dict": wrapped(raw, "model.")}, "state_dict", "state_dict, which may"),
    "net. and a VAE": (lambda raw: {"state_dict": wrapped(raw, "net.") | VAE_KEYS}, "state_dict", "state_dict, which may"),
    "compiled": (lambda raw: {"state_dict": wrapped(raw, "model._orig_mod.")}, "state_dict", "state_dict, which may"),
    "a name of its own": (lambda raw: {"denoiser": raw}, "denoiser", "denoiser, which may"),
    "net. alone": (lambda raw: wrapped(raw, "net."), "plain", "the only ones"),
    "weights and a number": (lambda raw: raw | {"epoch": 3}, "plain", "the only ones"),
}


@pytest.mark.parametrize(("content", "key", "said"), RAW.values(), ids=RAW)
def test_weights_without_an_average_are_drawn_and_called_what_they_are(raw, tmp_path, content, key, said):
    checkpoint = found(content(raw), tmp_path)
    assert is_of(checkpoint.state, raw)
    assert (checkpoint.kind, checkpoint.weights[: len(said)]) == (key, said)


def test_an_empty_average_is_said(raw, tmp_path):
    assert found({"model": raw, "ema": None}, tmp_path).beside == "ema is empty"


@pytest.mark.parametrize(("key", "named"), [("model", "raw"), ("model_ema", "ema"), (None, "ema")])
def test_the_weights_that_are_asked_for_are_drawn_on_every_rank(ema, raw, tmp_path, key, named):
    """A rank loads by file and key alone."""
    torch.save({"model": raw, "model_ema": ema}, path := tmp_path / "a.pt")
    state = read(path, key).load("DiT-XS/8", 10, torch.device("cpu")).state_dict()
    assert is_of(state, raw if named == "raw" else ema)


def test_what_is_beside_is_said(ema, raw, tmp_path):
    content = {"model": raw, "model_ema": ema}
    drawn = found(content, tmp_path)
    assert (drawn.weights, drawn.beside) == ("model_ema, an EMA", "beside it: model (--weights-key)")
    asked = found(content, tmp_path, "model")
    assert (asked.weights, asked.beside) == ("model, not an EMA", "beside it: model_ema (an EMA) (--weights-key)")


def test_identities_name_weights_only_where_they_are_others_than_before(ema, raw, tmp_path):
    """Runs that were begun with `ema`, `model`, `state_dict` or the only weights keep their fingerprints."""
    assert found({"model": raw, "ema": ema}, tmp_path).is_usual
    assert not found({"model": raw, "ema": ema}, tmp_path, "model").is_usual
    assert not found({"model": raw, "model_ema": ema}, tmp_path).is_usual
    assert found({"model": raw, "model_ema": ema}, tmp_path, "model").is_usual
    assert found(ema, tmp_path).is_usual
    assert found(ema, tmp_path, "plain").is_usual


KEY = ["--weights-key", "model"]
ASKED = "weights_key is model there and model_ema here; give --weights-key model to go on with it, or choose"
UNASKED = "weights_key is model_ema there and other weights are taken here; give --weights-key model_ema to go"


@pytest.mark.parametrize(("first", "then", "said"), [(KEY, [], ASKED), ([], KEY, UNASKED)], ids=["left out", "given"])
def test_a_run_of_other_weights_names_the_option(tmp_path, first, then, said):
    one, other = (randomised(DiT_models["DiT-XS/8"](input_size=8, num_classes=10), seed).state_dict() for seed in (0, 1))
    torch.save({"model": one, "model_ema": other}, path := tmp_path / "a.pt")
    arguments = options(path, tmp_path, num_classes=10, num_fid_samples=2, num_sampling_steps=2)
    draw_files(sample_ddp.parse([*arguments, *first])[0], fiducial.init("cpu"))
    with pytest.raises(UserError) as refused:
        draw_files(sample_ddp.parse([*arguments, *then])[0], fiducial.init("cpu"))
    assert said in str(refused.value)


def test_what_the_average_is_of_is_none_itself(ema, raw, tmp_path):
    content = {"ema": wrapped(raw, "online_model.") | wrapped(ema, "ema_model.")}
    checkpoint = found(content, tmp_path)
    assert (checkpoint.networks, checkpoint.averages) == (("ema.online_model", "ema.ema_model"), ("ema.ema_model",))
    assert is_of(found({"ema": {"model": raw, "ema_model": ema}}, tmp_path).state, ema)
    assert found({"model": raw, "ema": {"model": ema}}, tmp_path).averages == ("ema",)


@pytest.mark.parametrize(
    "name", ["schema", "cinema", "exp_avg", "exp_avg_sq", "cache", "model", "stage", "savgol", "demand", "schemas", "network"]
)
def test_names_of_no_average(name):
    assert not is_averaged(name)


def test_raw_weights_beside_another_network_are_warned_of(ema, raw, tmp_path, capsys):
    torch.save({"model": raw, "second": ema}, path := tmp_path / "a.pt")
    config, _ = sample_ddp.parse(options(path, tmp_path, num_classes=10))
    from_checkpoint.tell_of_weights(config, read(path), has_null=True)
    assert capsys.readouterr().err.startswith(f"warning: weights of {path}: model, not an EMA; beside it: second")


def test_long_lists_of_logs_are_no_hindrance(raw, tmp_path):
    content = {"model": raw, "losses": [0.5] * 1_100_000, "log": [{"step": 1}] * 1_100_000}
    assert [where for where, _ in _walk(content, tmp_path)] == [("model",)]


def permuted(values):
    return [values[-1], *values[1:-1], values[0]]


def alphabetical(state):
    return dict(sorted(state.items()))


def fewer(ema):
    return shadow(ema, shadow_params=list(ema.values())[5:])


def exchanged(ema):
    return shadow(ema, shadow_params=permuted(list(ema.values())))


def of_something_else():
    return {f"layer{number}": torch.ones(2) for number in range(20)}


REFUSED = {
    "another name": (lambda ema, raw: {"model": raw, "ema": ema}, "net", ["--weights-key 'net'", "holds model, ema"]),
    "a name for the only one": (lambda ema, _: ema, "ema", ["--weights-key 'ema'", "one network, without a name; leave it out"]),
    "two averages": (
        lambda ema, raw: {"model": raw, "ema_0.99": ema, "ema_0.9": raw},
        None,
        ["several networks", "--weights-key"],
    ),
    "two networks": (lambda ema, raw: {"student": raw, "other": ema}, None, ["several networks, student, other"]),
    "too few": (
        lambda ema, raw: {"model": raw, "ema": fewer(ema)},
        None,
        ["do not match the 72 of model", "--weights-key model"],
    ),
    "another order": (lambda ema, raw: {"model": raw, "ema": exchanged(ema)}, None, ["do not match the 72 of model"]),
    "no order": (lambda ema, raw: {"model": alphabetical(raw), "ema": shadow(ema)}, None, ["alphabetical order"]),
    "no names": (lambda ema, _: {"ema": shadow(ema)}, None, ["no state dict"]),
    "another network's": (
        lambda _, raw: {"model": raw, "model_ema": of_something_else()},
        None,
        ["from its model_ema", "its 20 tensors are not a DiT checkpoint's"],
    ),
    "without a block": (
        lambda ema, raw: {"model": raw, "ema": {key: value for key, value in ema.items() if not key.startswith("blocks.0.")}},
        None,
        ["of the keys that model has, its ema lacks 10, as 'blocks.0.", "--weights-key model"],
    ),
    "without positions": (lambda ema, _: {"ema": trained(ema)}, None, ["its ema lacks pos_embed, which is not trained"]),
    "a key too many": (lambda ema, raw: {"model": raw, "ema": ema | {"odd": torch.ones(1)}}, None, ["surplus 1"]),
}


@pytest.mark.parametrize(("content", "key", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_clear_is_refused(ema, raw, tmp_path, content, key, said):
    with pytest.raises(UserError) as caught:
        found(content(ema, raw), tmp_path, key)
    assert all(part in str(caught.value) for part in said), caught.value
    assert "\n" not in str(caught.value)


def test_raw_weights_beside_an_unusable_average_can_be_asked_for(ema, raw, tmp_path):
    content = {"model": raw, "ema": fewer(ema)}
    assert is_of(found(content, tmp_path, "model").state, raw)


def test_a_structure_of_shared_dictionaries_ends(raw, tmp_path):
    inner = {"a": {}}
    for _ in range(40):
        inner = {f"n{number}": inner for number in range(50)}
    with pytest.raises(UserError, match="more than 1,000,000 entries"):
        found({"model": raw, "beside": inner}, tmp_path)


def test_an_optimiser_is_no_network(raw, tmp_path):
    parameters = [torch.nn.Parameter(value) for value in raw.values()]
    optimiser = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    assert found(training_checkpoint(raw, opt=optimiser.state_dict()), tmp_path).networks == ("model", "ema")


def test_ordered_dictionaries_and_hyper_parameters_of_lightning(ema, tmp_path):
    content = {"state_dict": OrderedDict(wrapped(ema, "model.")), "hyper_parameters": {"num_classes": 10}, "global_step": 5}
    checkpoint = found(content, tmp_path)
    assert (checkpoint.trained_classes, checkpoint.step) == (10, 5)


def test_inspect_lists_and_convert_takes_what_is_asked_for(ema, raw, tmp_path):
    path, out = tmp_path / "a.pt", tmp_path / "out.safetensors"
    torch.save({"model": raw, "model_ema": ema, "args": argparse.Namespace(num_classes=10)}, path)
    done = run_command("-m", "models", "inspect", path, "--weights-key", "model")
    assert done.returncode == 0, done.stderr
    assert "model, not an EMA" in done.stdout
    assert "beside it: model_ema (an EMA)" in done.stdout
    assert done.stdout.rstrip().endswith("--weights-key model")
    done = run_command("-m", "models", "convert", path, out, "--to", "safetensors", "--weights-key", "model")
    assert done.returncode == 0, done.stderr
    assert is_of(read(Path(out)).state, raw)
