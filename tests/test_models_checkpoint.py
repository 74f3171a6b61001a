"""Checkpoints of every kind load to the same network; whatever else is in a file is refused in one sentence, and never run."""

import argparse
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from formats import training_checkpoint, wrapped
from safetensors.torch import load_file, save_file

from fiducial import UserError
from fiducial.models import DiT_models
from fiducial.models.checkpoints.checkpoint import read, require_family, sha256
from fiducial.models.checkpoints.shapes import check, describe
from fiducial.models.latent import LatentShape

MODEL = {"model": "DiT-XS/8", "num_classes": 10, "latent": LatentShape(4, 8)}
LABELS, POSITIONS = "y_embedder.embedding_table.weight", "pos_embed"


@pytest.fixture
def state(tiny_checkpoint):
    """The weights of `tiny_checkpoint`, to change."""
    return load_file(tiny_checkpoint)


def load(path):
    """A network the way `sample_ddp.py` gets it: read, check, load."""
    found = read(path)
    require_family(found, path, "DiT-")
    weights = found.state
    check(weights, path, **MODEL)
    return read(path).load("DiT-XS/8", 10, torch.device("cpu"))


def refusal(path):
    """The one sentence that `path` is refused with."""
    with pytest.raises(UserError) as caught:
        load(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    assert ". " not in sentence
    return sentence


def save_official(state, folder):
    torch.save(state, folder / "DiT-XL-2-256x256.pt")
    return folder / "DiT-XL-2-256x256.pt"


def save_training(state, folder):
    torch.save(training_checkpoint(state), folder / "0400000.pt")
    return folder / "0400000.pt"


def save_without_ema(state, folder):
    torch.save({"model": state, "epoch": 3}, folder / "last.pth")
    return folder / "last.pth"


def save_safetensors(state, folder):
    save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors"


FORMATS = [(save_official, "plain"), (save_training, "ema"), (save_without_ema, "model"), (save_safetensors, "plain")]


@pytest.mark.parametrize(("save", "kind"), FORMATS)
def test_every_format_gives_the_same_network(state, tmp_path, save, kind):
    path = save(state, tmp_path)
    network = load(path)
    assert read(path).kind == kind
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_a_checkpoint_is_opened_once_while_it_is_as_it_was(state, tmp_path):
    path = tmp_path / "a.pt"
    torch.save(training_checkpoint(state, class_to_idx={"pug": 0}), path)
    found, digest = read(path), sha256(path)
    assert read(path) is found
    assert read(path, "model") is not found
    torch.save(training_checkpoint(state, class_to_idx={"beagle": 0}), path)
    assert read(path).class_to_idx == {"beagle": 0}
    assert sha256(path) != digest


@pytest.mark.parametrize("save", [save for save, _ in FORMATS])
def test_a_checkpoint_without_a_class_mapping_has_none(state, tmp_path, save):
    assert read(save(state, tmp_path)).class_to_idx is None


def test_a_class_mapping_is_found_wherever_it_stands(state, tmp_path):
    mapping = {"beagle": 0, "pug": 1}
    args = argparse.Namespace(class_to_idx=mapping)
    for name, content in (("top", {"class_to_idx": mapping}), ("args", {"args": args}), ("plain", {})):
        path = tmp_path / f"{name}.pt"
        torch.save(training_checkpoint(state, **content), path)
        assert read(path).class_to_idx == (mapping if content else None)
        load(path)  # is not disturbed by it
    torch.save(training_checkpoint(state, class_to_idx=mapping, args=argparse.Namespace(class_to_idx={"x": 0})), path)
    assert read(path).class_to_idx == mapping
    path = tmp_path / "m.safetensors"
    save_file(state, path, metadata={"class_to_idx": json.dumps(mapping)})
    assert json.loads(read(path).class_to_idx) == mapping
    load(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("save", [save_training, save_safetensors])
def test_weights_of_any_precision_load_as_float32(state, tmp_path, save, dtype):
    network = load(save({key: value.to(dtype) for key, value in state.items()}, tmp_path))
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}
    assert all(torch.equal(value, state[key].to(dtype).float()) for key, value in network.state_dict().items())


def test_loaded_weights_are_their_own(state, tmp_path):
    """The file may go or change; on a cluster it is often overwritten by the training that is still running."""
    path = save_official(state, tmp_path)
    network = load(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


class Payload:
    """Runs code when it is unpickled: makes a folder."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.mkdir, (self.trace,)


def save_payload_alone(_state, path, payload):
    torch.save(payload, path)


def save_payload_among_weights(state, path, payload):
    torch.save(state | {"extra": payload}, path)


def save_payload_in_arguments(state, path, payload):
    torch.save(training_checkpoint(state, args=argparse.Namespace(model=payload)), path)


def save_payload_beside_ema(state, path, payload):
    torch.save(training_checkpoint(state, opt=payload), path)


def save_payload_in_old_format(state, path, payload):
    torch.save(state | {"extra": payload}, path, _use_new_zipfile_serialization=False)


def save_payload_as_bare_pickle(_state, path, payload):
    path.write_bytes(pickle.dumps(payload))


@pytest.mark.parametrize(
    "save",
    [
        save_payload_alone,
        save_payload_among_weights,
        save_payload_in_arguments,
        save_payload_beside_ema,
        save_payload_in_old_format,
        save_payload_as_bare_pickle,
    ],
)
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_code_in_a_pickle_is_refused_and_never_runs(state, tmp_path, save, name):
    path, trace = tmp_path / name, tmp_path / "it-ran"
    save(state, path, Payload(trace))
    refusal(path)
    assert not trace.exists()


def test_the_payload_is_live(state, tmp_path):
    """Without the caution the code would run, so the test above tests something."""
    path, trace = tmp_path / "weights.pt", tmp_path / "it-ran"
    save_payload_in_arguments(state, path, Payload(trace))
    torch.load(path, weights_only=False)
    assert trace.exists()


def weights_like(model, num_classes=10, input_size=8, **options):
    """Weights of another network that take no space: only shapes are looked at."""
    with torch.device("meta"):
        network = DiT_models[model](num_classes=num_classes, input_size=input_size, **options)
    return {key: torch.zeros(()).expand(value.shape) for key, value in network.state_dict().items()}


def replaced(**tensors):
    """A change of a state dict: these tensors, by names that have `__` for a dot."""
    return lambda state: state | {key.replace("__", "."): value for key, value in tensors.items()}


def without(*endings):
    return lambda state: {key: value for key, value in state.items() if not key.endswith(endings)}


# What is done to a state dict of the right network, and what has to be said: expected, found.
MISMATCHES = {
    "class count": (lambda _: weights_like("DiT-XS/8", num_classes=7), ["expected num_classes 10", "found num_classes 7"]),
    "patch": (lambda _: weights_like("DiT-XS/4", input_size=8), ["expected model DiT-XS/8", "found model DiT-XS/4"]),
    "input size": (lambda _: weights_like("DiT-XS/8", input_size=32), ["expected input_size 8", "found input_size 32"]),
    "model size": (lambda _: weights_like("DiT-S/8"), ["expected model DiT-XS/8", "found model DiT-S/8"]),
    "latent channels": (lambda _: weights_like("DiT-XS/8", in_channels=16), ["expected in_channels 4", "found in_channels 16"]),
    "everything": (
        lambda _: weights_like("DiT-B/2", num_classes=1000, input_size=32),
        ["expected model DiT-XS/8, num_classes 10, input_size 8", "found model DiT-B/2, num_classes 1000, input_size 32"],
    ),
    "depth of no model": (
        lambda state: {key: value for key, value in state.items() if "blocks.5." not in key},
        ["expected model DiT-XS/8", "found model DiT-(160 wide, 5 deep)/8"],
    ),
    "no learned variance": (
        lambda _: weights_like("DiT-XS/8", learn_sigma=False),
        ["was trained without a variance"],
    ),
    "missing key": (without("blocks.3.mlp.fc1.bias"), ["lacks 1 of the keys of DiT-XS/8", "blocks.3.mlp.fc1.bias"]),
    "missing layers": (without("fc1.bias", "fc2.bias"), ["lacks 12 of the keys", "blocks.0.mlp.fc1.bias"]),
    "no label table": (without(LABELS), ["not a DiT checkpoint", LABELS]),
    "no position embedding": (without(POSITIONS), ["not a DiT checkpoint", POSITIONS]),
    "surplus key": (replaced(blocks__0__attn__bias_table=torch.ones(32)), ["surplus 1", "blocks.0.attn.bias_table"]),
    "surplus key that is no string": (lambda state: {7: torch.ones(2)} | state, []),
    "wrong label table": (
        replaced(y_embedder__embedding_table__weight=torch.ones(11, 96)),
        ["(11, 160)", "(11, 96)"],
    ),
    "flat label table": (replaced(y_embedder__embedding_table__weight=torch.ones(11)), [LABELS, "(11,)"]),
    "flat position embedding": (replaced(pos_embed=torch.ones(1, 160)), [POSITIONS, "(1, 160)"]),
    "positions of no square": (replaced(pos_embed=torch.ones(1, 3, 160)), ["pos_embed", "(1, 1, 160)", "(1, 3, 160)"]),
    "oblong patches": (replaced(x_embedder__proj__weight=torch.ones(160, 4, 8, 4)), ["(160, 4, 8, 8)", "(160, 4, 8, 4)"]),
    "transposed layer": (replaced(blocks__0__mlp__fc1__weight=torch.ones(160, 640)), ["(640, 160)", "(160, 640)"]),
    "integer tensors": (lambda state: {key: value.to(torch.int8) for key, value in state.items()}, ["floating point", "int8"]),
    "an integer tensor": (replaced(blocks__2__attn__proj__bias=torch.ones(160).long()), ["floating point", "int64"]),
    "complex tensors": (replaced(blocks__2__attn__proj__bias=torch.ones(160) + 0j), ["floating point", "complex64"]),
    "keys of which some are wrapped": (
        lambda state: {key if "mlp" in key else f"module.{key}": value for key, value in state.items()},
        ["not a DiT checkpoint"],
    ),
    "no null label": (
        lambda _: weights_like("DiT-XS/8", num_classes=9),
        ["found num_classes 9; give --num-classes 9, unless its 10 rows are 10 classes: then it was trained without a null"],
    ),
    "another network": (lambda _: {"weight": torch.ones(2, 2)}, ["not a DiT checkpoint"]),
}


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "training"])
@pytest.mark.parametrize(("change", "said"), MISMATCHES.values(), ids=MISMATCHES)
def test_weights_of_another_network_are_refused(state, tmp_path, change, said, nested):
    weights = change(state)
    content = training_checkpoint(state, model=weights, ema=weights) if nested else weights
    torch.save(content, tmp_path / "weights.pt")
    sentence = refusal(tmp_path / "weights.pt")
    assert all(part in sentence for part in said), sentence


NO_STATE_DICT = {
    "a list": [torch.ones(2)],
    "a tensor": torch.ones(2),
    "a number": 3,
    "nothing": None,
    "an empty dictionary": {},
    "arguments": argparse.Namespace(model="DiT-XL/2"),
    "no tensors": {"a": 1, "b": "two"},
    "one value that is no tensor": {"a": torch.ones(2), "step": 4},
    "numbers for names": {"a": torch.ones(2), 7: torch.ones(2)},
    "an empty ema": {"ema": {}, "model": {"a": torch.ones(2)}},
    "a deeper nest": {"model": {"state": {"a": torch.ones(2)}}},
    "an optimiser": torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1).state_dict(),
}


@pytest.mark.parametrize("content", NO_STATE_DICT.values(), ids=NO_STATE_DICT)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    assert "holds no state dict: expected tensors by name" in refusal(tmp_path / "weights.pt")


def cut(fraction):
    """A change of a file: only its beginning is left."""
    return lambda path: path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])


def cut_tail(path):
    path.write_bytes(path.read_bytes()[:-1])


def swap_pickle(content):
    """A change of a .pt file: the archive is whole, but the pickle in it is `content`."""

    def change(path):
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, data in members.items():
                archive.writestr(name, content if name.endswith("data.pkl") else data)

    return change


def old_format(path):
    torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)


def other_format(save):
    """A change of a file: its content in another format under the same name. A mapped file must not be written to."""

    def change(path):
        save(load_file(path) if path.suffix == ".safetensors" else torch.load(path), path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    return change


DAMAGES = {
    "no bytes .pt": (save_official, cut(0.0), "not whole"),
    "one byte .pt": (save_official, lambda path: path.write_bytes(b"P"), "not whole"),
    "half a .pt": (save_official, cut(0.5), "not whole"),
    "all but the end of a .pt": (save_official, cut_tail, "not whole"),
    "half a training checkpoint": (save_training, cut(0.5), "not whole"),
    "text": (save_official, lambda path: path.write_text("<html>Not Found</html>"), "not whole"),
    "old format": (save_official, old_format, "re-save it with torch.save"),
    "safetensors as .pt": (save_official, other_format(save_file), "not whole"),
    "another archive": (save_official, lambda path: zipfile.ZipFile(path, "w").writestr("readme", "hello"), "not whole"),
    "empty pickle": (save_official, swap_pickle(b""), ""),
    "pickle without a value": (save_official, swap_pickle(b"\x80\x02."), ""),
    "pickle of a wrong call": (save_official, swap_pickle(b"\x80\x02cargparse\nNamespace\nK\x01\x85R."), ""),
    "no bytes .safetensors": (save_safetensors, cut(0.0), "not a whole safetensors file"),
    "half a .safetensors": (save_safetensors, cut(0.5), "not a whole safetensors file"),
    "all but the end of a .safetensors": (save_safetensors, cut_tail, "not a whole safetensors file"),
    "half a header": (save_safetensors, lambda path: path.write_bytes(path.read_bytes()[:50]), "not a whole safetensors file"),
    "a .pt as .safetensors": (save_safetensors, other_format(torch.save), "not a whole safetensors file"),
}


@pytest.mark.parametrize(("save", "change", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_refused(state, tmp_path, save, change, said):
    path = save(state, tmp_path)
    change(path)
    assert said in refusal(path)


@pytest.mark.parametrize("cut_at", range(0, 1400, 50))
def test_no_cut_of_a_pt_file_goes_unnoticed(tmp_path, cut_at):
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(3)}, path)
    content = path.read_bytes()
    assert cut_at < len(content)
    path.write_bytes(content[:cut_at])
    refusal(path)


@pytest.mark.parametrize("name", ["missing.pt", "missing.safetensors", "missing/folder"])
def test_no_file_is_said(tmp_path, name):
    assert refusal(tmp_path / name).endswith("no such checkpoint file or folder")


def test_a_folder_of_anything_else_is_said(tmp_path):
    assert refusal(tmp_path).endswith("not a folder of a DiTTransformer2DModel or DiTPipeline, it has no config.json")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("save", [save_official, save_training, save_safetensors])
def test_the_prefixes_of_wrappers_are_taken_off(state, tmp_path, prefix, save):
    loaded = load(save(wrapped(state, prefix), tmp_path)).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


PROJECTORS = {"projectors.0.0.weight": torch.ones(2, 2), "projectors.0.0.bias": torch.ones(2)}
SIT = argparse.Namespace(model="SiT-XL/2", num_classes=10, path_type="Linear", prediction="velocity", loss_weight=None)
OF_ANOTHER_FAMILY = {
    "SiT": (lambda state: training_checkpoint(state, args=SIT), "of SiT's kind"),
    "SiT with a dictionary of arguments": (lambda state: training_checkpoint(state, args=vars(SIT)), "of SiT's kind"),
    "SiT's arguments at the top": (lambda state: training_checkpoint(state) | vars(SIT), "of SiT's kind"),
    "SiT with a configuration": (lambda state: training_checkpoint(state, config={"transport": vars(SIT)}), "of SiT's kind"),
    "SiT's name alone": (lambda state: training_checkpoint(state, args={"model": "SiT-XL/2"}), "of SiT's kind"),
    "SiT's name in a configuration": (lambda state: training_checkpoint(state, cfg={"model": {"name": "SiT-B/4"}}), "SiT's kind"),
    "REPA's arguments": (lambda state: training_checkpoint(state, args={"prediction": "v"}), "of REPA's kind"),
    "REPA": (lambda state: training_checkpoint(state | PROJECTORS, args=SIT, steps=400_000), "of REPA's kind"),
    "REPA under DDP": (lambda state: training_checkpoint(wrapped(state | PROJECTORS, "module.")), "of REPA's kind"),
    "REPA's weights alone": (lambda state: state | PROJECTORS, "of REPA's kind"),
}


@pytest.mark.parametrize(("content", "said"), OF_ANOTHER_FAMILY.values(), ids=OF_ANOTHER_FAMILY)
def test_networks_that_predict_velocity_are_refused_where_the_file_tells(state, tmp_path, content, said):
    torch.save(content(state), tmp_path / "weights.pt")
    sentence = refusal(tmp_path / "weights.pt")
    assert said in sentence
    assert "predicts velocity" in sentence


@pytest.mark.parametrize(
    "said",
    [
        {"prediction": "epsilon"},
        {"prediction_type": "epsilon"},
        {"path_type": None},
        {"model": "DiT-XL/2"},
        {"name": "SiT or DiT"},
    ],
)
def test_a_dits_arguments_are_not_a_sits(state, tmp_path, said):
    torch.save(training_checkpoint(state, config=said, args=argparse.Namespace(**said)) | said, tmp_path / "weights.pt")
    assert read(tmp_path / "weights.pt").family == "DiT"


@pytest.mark.parametrize(
    ("model", "num_classes", "input_size", "in_channels"),
    [("DiT-XL/2", 1000, 32, 4), ("DiT-S/8", 10, 64, 4), ("DiT-B/4", 1, 8, 16)],
)
def test_description_is_read_off_the_shapes(model, num_classes, input_size, in_channels):
    weights = weights_like(model, num_classes=num_classes, input_size=input_size, in_channels=in_channels)
    expected = {"model": model, "num_classes": num_classes, "latent": LatentShape(in_channels, input_size)}
    assert describe(weights, Path("weights.pt")) == expected
    check(weights, Path("weights.pt"), **expected)
