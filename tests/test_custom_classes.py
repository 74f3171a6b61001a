"""From a training checkpoint of 17 classes and the folder it was trained on to a report with their names, and what is refused."""

import argparse
import html
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DIGITS, PLAIN, run_command
from PIL import Image
from safetensors.torch import load_file

import sample_ddp
from fiducial.classes import ClassNames
from fiducial.models import DiT_models
from scripts.stand_ins import pictures

TABLE = "y_embedder.embedding_table.weight"
NAMES = sorted(
    [
        "American Staffordshire terrier",
        "Zebra",
        "axolotl",
        "a<b> & c",
        "mouse, grey",
        "öl",
        "7",
        *(f"kind {i}" for i in range(10)),
    ]
)


def grow_tree(folder: Path) -> Path:
    """A training folder as ImageFolder reads it: two pictures of odd sizes a class."""
    for number, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for index, pixels in enumerate(pictures(2, number, 80)):
            Image.fromarray(pixels[: 70 + index]).save(folder / name / f"{index}.png")
    return folder


def of_17_classes(noise: float) -> torch.nn.Module:
    """The digits' network with seven more classes, and some noise upon its weights."""
    network, state = DiT_models["DiT-XS/2"](input_size=8, num_classes=17), load_file(DIGITS / "dit.safetensors")
    digits, null = state[TABLE].split([10, 1])
    state[TABLE] = torch.cat([digits, digits[:7], null])
    network.load_state_dict(state)
    for parameter in network.parameters():
        parameter.data += noise * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return network.eval()


def write_checkpoint(path: Path, **extra: object) -> Path:
    """What DiT's train.py saves."""
    model, ema = of_17_classes(1e-3), of_17_classes(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    args = argparse.Namespace(data_path="/data/train", model="DiT-XS/2", image_size=64, num_classes=17, global_seed=0)
    content = {"model": model.state_dict(), "ema": ema.state_dict(), "opt": optimiser.state_dict(), "args": args}
    torch.save(content | extra, path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the tree, the checkpoint, a reference of the tree, and a finished run with its report."""
    place = tmp_path_factory.mktemp("17")
    tree = grow_tree(place / "train")
    write_checkpoint(place / "0050000.pt")
    made = run_command("-m", "evaluation", "ref", tree, "--image-size", "64", "--extractor", "digits", "--out", place / "ref.npz")
    assert made.returncode == 0, made.stderr
    assert "34 images, cropped to 64 x 64" in made.stdout
    labels = "American Staffordshire terrier,mouse\\, grey,0-16"
    done = run_command("sample_ddp.py", *command(place, labels=labels, ref=place / "ref.npz"), ranks=2, timeout=300)
    assert done.returncode == 0, done.stderr
    return place


def command(place: Path, **changes: object) -> list[str]:
    settings = {
        "ckpt": place / "0050000.pt",
        "vae": DIGITS / "vae",
        "class_names": place / "train",
        "num_sampling_steps": 2,
        "num_fid_samples": 38,
        "per_proc_batch_size": 10,
        "sample_dir": place,
        "run_name": "run",
    } | changes
    return [*PLAIN, *(str(text) for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", value))]


def test_the_names_stand_in_manifest_result_and_report(place):
    first, second = NAMES.index("American Staffordshire terrier"), NAMES.index("mouse, grey")
    with np.load(place / "run.npz", allow_pickle=False) as arrays:
        assert arrays["arr_1"].tolist() == [first, second, *range(17)] * 2
    manifest = json.loads((place / "run" / "manifest.json").read_text())
    sha256 = ClassNames(tuple(NAMES), "").sha256
    source = f"--class-names {place / 'train'}"
    assert manifest["class_names"] == {"sha256": sha256, "count": 17, "source": source, "names": NAMES}
    assert manifest["identity"]["labels"] == f"{first},{second},0-16"
    assert manifest["identity"]["num_classes"] == 17
    assert manifest["paths"]["weights"] == "ema"
    result = json.loads((place / "run.json").read_text())
    assert result["class_names"] == {"names": NAMES, "sha256": sha256}
    assert result["metrics"]["fid-digits"]["reference_n"] == 34
    page = (place / "run.html").read_text()
    for name in NAMES:
        assert f"<li><bdi>{html.escape(name)}</bdi></li>" in page
    assert f"<th><bdi>{html.escape(NAMES[0])}</bdi> <small>class 0</small></th>" in page
    assert page.count("data:image/png;base64,") == 20  # samples beside real images
    assert run_command("-m", "sampling", "status", place / "run").returncode == 0


def refused(monkeypatch, capsys, *arguments: str) -> str:
    """The sentence with which the command is refused, before anything is drawn."""
    monkeypatch.setattr(
        "fiducial.sampling.source.latent_diffusion.LatentDiffusion.blocks", lambda *_: pytest.fail("drawing began")
    )
    monkeypatch.setattr("sys.argv", ["sample_ddp.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        sample_ddp.main()
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_another_class_count_is_refused_with_the_remedy(place, monkeypatch, capsys):
    for given in ({"num_classes": 18}, {"num_classes": 1000}):
        said = f"expected num_classes {given['num_classes']}; found num_classes 17; give --num-classes 17"
        assert said in refused(monkeypatch, capsys, *command(place, **given))


def test_a_folder_added_since_the_training_is_refused(place, tmp_path, monkeypatch, capsys):
    tree = shutil.copytree(place / "train", tmp_path / "train")
    (tree / "aardvark").mkdir()
    said = refused(monkeypatch, capsys, *command(place, class_names=tree))
    assert f"--class-names {tree}: names 18 classes, but --num-classes is 17" in said
    # Where the checkpoint knows its classes, the first that is shifted is named.
    known = write_checkpoint(tmp_path / "known.pt", class_to_idx={name: index for index, name in enumerate(NAMES)})
    first = NAMES.index("axolotl")
    said = refused(monkeypatch, capsys, *command(place, ckpt=known, class_names=tree))
    assert f"its 18 classes are not the 17 of class_to_idx in {known}" in said
    assert f"index {NAMES.index('a<b> & c') + 1} is {NAMES[first]!r} there and 'aardvark' here" in said


def test_a_run_begun_with_other_names_is_refused(place, tmp_path, monkeypatch, capsys):
    before = (place / "run" / "manifest.json").read_bytes()
    tree = shutil.copytree(place / "train", tmp_path / "train")
    (tree / "Zebra").rename(tree / "Zonkey")
    labels = json.loads(before)["identity"]["labels"]
    said = refused(monkeypatch, capsys, *command(place, class_names=tree, labels=labels))
    assert f"{place / 'run'} belongs to a different configuration: class_names" in said
    assert f"index {NAMES.index('Zebra')} is 'Zebra' there and 'Zonkey' here" in said
    assert (place / "run" / "manifest.json").read_bytes() == before


def test_the_same_labels_by_number_are_the_same_run(place, monkeypatch, capsys):
    monkeypatch.setattr(
        "fiducial.sampling.source.latent_diffusion.LatentDiffusion.blocks", lambda *_: pytest.fail("drawing began")
    )
    before = json.loads((place / "run" / "manifest.json").read_text())
    arguments = command(place, labels=before["identity"]["labels"])
    where = arguments.index("--class-names")
    del arguments[where : where + 2]  # and without a mapping, the one that is recorded stays
    monkeypatch.setattr("sys.argv", ["sample_ddp.py", *arguments])
    sample_ddp.main()
    after = json.loads((place / "run" / "manifest.json").read_text())
    assert "38 of 38 images are there" in capsys.readouterr().out
    assert (after["fingerprint"], after["class_names"]) == (before["fingerprint"], before["class_names"])


def test_a_run_of_before_names_were_recorded_takes_them(place, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fiducial.sampling.source.latent_diffusion.LatentDiffusion.blocks", lambda *_: pytest.fail("drawing began")
    )
    shutil.copytree(place / "run", tmp_path / "run")
    shutil.copy(place / "run.npz", tmp_path)
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    recorded = manifest.pop("class_names")
    path.write_text(json.dumps(manifest))
    assert run_command("-m", "sampling", "verify", tmp_path / "run").returncode == 0
    arguments = command(place, labels=manifest["identity"]["labels"], sample_dir=tmp_path)
    monkeypatch.setattr("sys.argv", ["sample_ddp.py", *arguments])
    sample_ddp.main()
    assert json.loads(path.read_text())["class_names"] == recorded


def test_names_need_no_option_where_the_checkpoint_has_them(place, tmp_path, monkeypatch, capsys):
    shutil.copy(place / "0050000.pt", tmp_path / "m.pt")
    (tmp_path / "m.pt.classes.json").write_text(json.dumps(NAMES))
    arguments = command(tmp_path, ckpt=tmp_path / "m.pt", labels="axolotl,zebra", num_fid_samples=2)
    where = arguments.index("--class-names")
    del arguments[where : where + 2]
    assert "'zebra' is neither" in (said := refused(monkeypatch, capsys, *arguments))
    assert said.endswith("m.pt.classes.json; the closest: 'Zebra'\n")
