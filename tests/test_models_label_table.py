"""The null label is a row of its own: what a file says of its classes is compared, and without such a row nothing is guided."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_files, options, randomised
from safetensors.torch import save_file
from test_models_main import command, inspected, refusal

import sample_ddp
from fiducial import UserError, init
from fiducial.diffusion.guidance import Guidance, guided
from fiducial.models import DiT_models
from fiducial.models.checkpoints.checkpoint import read
from fiducial.models.checkpoints.label_table import classes_of, contradictions, has_null_label
from fiducial.models.checkpoints.shapes import check_shape
from fiducial.models.latent import LatentShape
from fiducial.models.networks.dit import DiT
from fiducial.models.networks.table import asked, spec_of
from fiducial.sampling.source import from_checkpoint

TABLE = "y_embedder.embedding_table.weight"


def saved(folder, rows, said=None):
    """A checkpoint with so many rows, whose arguments say `said` classes."""
    state = randomised(DiT_models["DiT-XS/8"](input_size=8, num_classes=rows, has_null=False)).state_dict()
    arguments = {} if said is None else {"args": argparse.Namespace(num_classes=said)}
    torch.save({"ema": state, **arguments}, folder / "a.pt")
    return folder / "a.pt"


# rows, what the file says, --num-classes, unguided -> has a null label, or the refusal
TABLES = [
    (17, 16, 16, False, True),
    (17, 16, 16, True, True),
    (17, None, 16, False, True),
    (17, 17, 17, True, False),
    (17, None, 17, True, False),
    (1, 1, 1, True, False),
    (1, None, 1, True, False),
    (2, 1, 1, False, True),
    (17, 17, 16, False, "without a null label, as its label table of 17 rows for 17 classes says"),
    (17, 17, 16, True, "give --num-classes 17 --cfg-scale 1.0"),
    (17, 17, 17, False, "it can neither be guided nor drawn without a class; give --num-classes 17 --cfg-scale 1.0"),
    (1, None, 1, False, "as its label table of one row says"),
    (17, None, 17, False, "give --num-classes 16, unless its 17 rows are 17 classes"),
    (17, 16, 17, True, "expected num_classes 17; found num_classes 16; give --num-classes 16"),
    (17, 17, 15, True, "found num_classes 16"),
]


@pytest.mark.parametrize(("rows", "said", "num_classes", "unguided", "expected"), TABLES)
def test_the_null_label_is_what_file_and_options_agree_on(tmp_path, rows, said, num_classes, unguided, expected):
    found = read(path := saved(tmp_path, rows, said))

    def held():
        has_null = has_null_label(found, path, num_classes, unguided)
        check_shape(found.state, path, {"num_classes": num_classes}, has_null)
        return has_null

    if isinstance(expected, bool):
        assert held() == expected
        assert read(path).load("DiT-XS/8", num_classes, torch.device("cpu")).null_label == (num_classes if expected else None)
    else:
        with pytest.raises(UserError) as caught:
            held()
        assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "said", "classes"), [(17, 17, (17, False)), (17, 16, (16, True)), (17, None, (16, True)), (1, None, (1, False))]
)
def test_classes_of_a_file(tmp_path, rows, said, classes):
    assert classes_of(read(saved(tmp_path, rows, said))) == classes


def test_a_network_without_a_null_label_has_a_row_a_class():
    network = DiT(input_size=2, hidden_size=8, depth=1, num_heads=1, num_classes=3, has_null=False)
    assert network.y_embedder.embedding_table.weight.shape == (3, 8)
    x, y = torch.randn(2, 4, 2, 2), torch.tensor([0, 2])
    with torch.no_grad():
        ask = asked(network, spec_of("DiT-S/8"))
        assert torch.equal(guided(ask, None, y, Guidance(1.0, 4))(x, 0.005), network(x, torch.full((2,), 5.0), y))


@pytest.mark.parametrize(("rows", "said"), [(1, 1), (1, None), (11, 11)])
def test_what_inspect_says_of_such_a_file_is_drawn(tmp_path, rows, said):
    path = saved(tmp_path, rows, said)
    found = inspected(path)
    assert found["num_classes"] == rows
    assert found["null_label"] == "none, so it is drawn without guidance"
    assert found["command"].endswith("--cfg-scale 1.0")
    arguments = options(path, tmp_path, num_classes=rows, cfg_scale=1.0, num_fid_samples=2, num_sampling_steps=2)
    config, _ = sample_ddp.parse([*arguments, "--no-probe"])
    with init("cpu") as group:
        assert draw_files(config, group).is_file()


def test_labels_null_needs_the_null_label(tmp_path):
    path = saved(tmp_path, 11, 11)
    config, _ = sample_ddp.parse([*options(path, tmp_path, num_classes=11), "--labels", "null"])
    with pytest.raises(UserError, match="nor drawn without a class"):
        from_checkpoint.check_given(config, init("cpu"))


def test_all_rows_for_classes_is_said_where_the_file_does_not_tell(tmp_path, capsys):
    path = saved(tmp_path, 11)
    arguments = options(path, tmp_path, num_classes=11, cfg_scale=1.0, num_fid_samples=2, num_sampling_steps=2)
    config, _ = sample_ddp.parse([*arguments, "--no-probe"])
    with init("cpu") as group:
        draw_files(config, group)
    assert "all rows of the label table are classes then" in capsys.readouterr().err


def test_converting_without_a_null_label(tmp_path, capsys):
    path = saved(tmp_path, 1, 1)
    assert command("convert", path, tmp_path / "out.safetensors", "--to", "safetensors")[0] == 0
    assert "has no null label" in refusal(capsys, "convert", path, tmp_path / "out", "--to", "diffusers")
    assert not Path(tmp_path / "out").exists()


LARGER = {"model": "DiT-XS/8", "num_classes": 10, "latent": LatentShape(4, 8)}
REMEDIES = {
    "image size": ({"input_size": 16}, "; give --image-size 128"),
    "model": ({"patch": 4}, "; give --model DiT-XS/4"),
    "channels": ({"in_channels": 16}, "; give the --vae that it was trained with, of 16 channels"),
    "several": ({"input_size": 16, "num_classes": 3}, "; give --image-size 128 --num-classes 3"),
}


@pytest.mark.parametrize(("change", "remedy"), REMEDIES.values(), ids=REMEDIES)
def test_a_mismatch_names_the_options_that_mend_it(change, remedy):
    patch, shape = change.get("patch", 8), {"input_size": 8, "num_classes": 10, "in_channels": 4} | change
    shape.pop("patch", None)
    state = DiT_models[f"DiT-XS/{patch}"](**shape).state_dict()
    with pytest.raises(UserError) as caught:
        check_shape(state, Path("a.pt"), LARGER, factor=8)
    assert str(caught.value).endswith(remedy)


def names(number):
    return {f"c{index:02}": index for index in range(number)}


# what a file of 17 rows has beside its weights -> its classes, whether it has a null label, and what is told
SAID = {
    "never dropped": ({"args": {"class_dropout_prob": 0.0}}, (17, False), None),
    "never dropped, in text": ({"args": {"model": {"class_dropout_prob": "0"}}}, (17, False), None),
    "config": ({"config": {"num_classes": 17}}, (17, False), None),
    "nested": ({"args": {"model": {"num_classes": 17}}}, (17, False), None),
    "at the top": ({"num_classes": 17}, (17, False), None),
    "cfg": ({"cfg": {"model": {"num_classes": 17}}}, (17, False), None),
    "opt": ({"opt": argparse.Namespace(num_classes=17)}, (17, False), None),
    "an optimizer": ({"opt": {"state": {0: {"num_classes": 17}}, "param_groups": [{}]}}, (16, True), None),
    "model_args": ({"model_args": {"num_classes": 17}}, (17, False), None),
    "n_classes": ({"args": {"n_classes": 17}}, (17, False), None),
    "nb_classes": ({"args": {"nb_classes": 17}}, (17, False), None),
    "class_num": ({"args": {"class_num": 17}}, (17, False), None),
    "with a point": ({"args": {"num_classes": 17.0}}, (17, False), None),
    "numpy's": ({"args": {"num_classes": np.int64(17)}}, (17, False), None),
    "with a point, in text": ({"args": {"num_classes": "17.0"}}, (17, False), None),
    "no whole number": ({"args": {"num_classes": 17.5}}, (16, True), None),
    "neither number nor text": ({"num_classes": float("nan"), "args": {"n_classes": True}}, (16, True), None),
    "text": ({"args": argparse.Namespace(num_classes="17")}, (17, False), None),
    "named": ({"class_to_idx": names(17)}, (17, False), None),
    "named in nested arguments": ({"args": {"data": {"class_to_idx": names(17)}}}, (17, False), None),
    "named, with a null label": ({"class_to_idx": names(16)}, (16, True), None),
    "another network's first": ({"args": {"num_classes": 1000, "model": {"num_classes": 17}}}, (17, False), None),
    "dropped": ({"args": {"class_dropout_prob": 0.1}}, (16, True), None),
    "neither": ({"args": {"num_classes": 1000}}, (16, True), "num_classes 1000, but the label table has 17 rows"),
    "a null label never trained": (
        {"args": {"class_dropout_prob": 0, "num_classes": 16}},
        (16, True),
        "class_dropout_prob 0, but the label table has 17 rows for 16 classes, so that its null label was never trained",
    ),
    "another model": ({"args": {"model": "DiT-XL/2"}}, (16, True), "model DiT-XL/2, but the weights are of DiT-XS/8"),
    "another size": ({"args": {"image_size": 256}}, (16, True), "image_size 256, but the weights are of 64"),
    "true": ({"args": {"model": "DiT-XS/8", "image_size": 64, "num_classes": 16}}, (16, True), None),
    "latent size": ({"config": {"model": {"image_size": 8}}}, (16, True), None),
}


@pytest.mark.parametrize(("content", "classes", "told"), SAID.values(), ids=SAID)
def test_what_a_file_says_of_its_training_is_held_against_its_rows(tmp_path, content, classes, told):
    torch.save(torch.load(path := saved(tmp_path, 17)) | content, path)
    found = read(path)
    assert classes_of(found) == classes
    assert contradictions(found, path, 64) == ([told] if told else [])


def test_safetensors_say_it_in_their_metadata(tmp_path):
    save_file(torch.load(saved(tmp_path, 17))["ema"], path := tmp_path / "a.safetensors", {"num_classes": "17"})
    assert classes_of(read(path)) == (17, False)


def test_a_command_of_inspect_goes_with_the_names_in_the_file(tmp_path):
    torch.save(torch.load(path := saved(tmp_path, 17)) | {"class_to_idx": names(17)}, path)
    found = inspected(path)
    assert (found["num_classes"], found["command"].split()[-2:]) == (17, ["--cfg-scale", "1.0"])
    arguments = options(path, tmp_path, num_classes=17, cfg_scale=1.0, num_fid_samples=2, num_sampling_steps=2)
    config, _ = sample_ddp.parse([*arguments, "--no-probe"])
    from_checkpoint.check_given(config, init("cpu"))


def test_a_run_tells_of_what_the_file_says_and_is_not_so(tmp_path, capsys):
    torch.save(torch.load(path := saved(tmp_path, 17)) | {"args": {"num_classes": 1000}}, path)
    config, _ = sample_ddp.parse([*options(path, tmp_path, num_classes=16), "--no-probe"])
    from_checkpoint.tell_of_weights(config, read(path), has_null=True)
    assert "says of its training: num_classes 1000, but the label table has 17 rows" in capsys.readouterr().err
