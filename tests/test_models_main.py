"""`python -m models`: what it says of a file comes true when the command it gives is run; conversions keep every bit."""

import argparse
import hashlib
import json
import shlex
import stat
from contextlib import redirect_stdout
from io import StringIO

import pytest
import torch
from conftest import DIGITS, randomised, run_command
from diffusers import DiTTransformer2DModel
from formats import CHECKPOINTS, WEIGHTS, training_checkpoint
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fiducial import user_errors
from fiducial.models import DiT_models, __main__
from fiducial.models.checkpoints import diffusers_form
from fiducial.models.checkpoints.checkpoint import CLASS_TO_IDX, read

POSITIONS = "pos_embed"


@pytest.fixture(scope="module")
def network():
    return randomised(DiT_models["DiT-XS/8"](input_size=8, num_classes=10))


@pytest.fixture(scope="module")
def state(network):
    return network.state_dict()


def command(*arguments):
    """Exit code, output."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.setattr("sys.argv", ["models", *map(str, arguments)])
        with user_errors():
            code = __main__.main()
    return code, out.getvalue()


def inspected(path):
    code, out = command("inspect", path, "--json")
    found = json.loads(out)
    assert code == (1 if found.get("refused") else 0)
    return found


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        command(*arguments)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


FORMS = {
    "official .pt": ("state dict", "the only ones"),
    "training checkpoint": ("training checkpoint", "ema"),
    "state_dict nested": ("training checkpoint", "state_dict"),
    "safetensors": ("safetensors", "the only ones"),
    "diffusers": ("diffusers folder", "the only ones"),
    "diffusers sharded": ("diffusers folder, 4 shards", "the only ones"),
    "DiTPipeline": ("diffusers folder", "the only ones"),
}


@pytest.mark.parametrize(("form", "said"), FORMS.items(), ids=FORMS)
def test_inspect_says_what_every_form_is(network, tmp_path, form, said):
    path = CHECKPOINTS[form](network, tmp_path)
    found = inspected(path)
    assert (found["form"], found["weights"].partition(",")[0]) == said
    facts = {"model": "DiT-XS/8", "num_classes": 10, "input_size": 8, "image_size": 64, "in_channels": 4, "learn_sigma": True}
    assert {name: found[name] for name in facts} == facts
    assert found["parameters"] == sum(value.numel() for value in network.state_dict().values())
    assert found["dtype"] == "float32"
    assert found["family"].startswith("DiT")
    vae = f" --vae {path / 'vae'}" if form == "DiTPipeline" else ""
    assert found["command"] == f"python sample_ddp.py --ckpt {path}{vae}"


def test_the_hash_of_a_file_is_its_own_and_of_shards_that_of_their_hashes(network, tmp_path):
    path = CHECKPOINTS["official .pt"](network, tmp_path)
    assert inspected(path)["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    folder = CHECKPOINTS["diffusers sharded"](network, tmp_path)
    shards = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.safetensors"))]
    assert inspected(folder)["sha256"] == hashlib.sha256("".join(shards).encode()).hexdigest()


def test_what_inspect_says_of_the_digits_comes_true(tmp_path):
    found = inspected(DIGITS / "dit.safetensors")
    quick = ["--num-fid-samples", "2", "--num-sampling-steps", "2", "--no-compile", "--cfg-channels", "4", "--labels", "7"]
    program, *words = shlex.split(found["command"])
    assert program == "python"
    done = run_command(*words, *quick, "--sample-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    (manifest,) = tmp_path.glob("*/manifest.json")
    identity = json.loads(manifest.read_text())["identity"]
    for name in ("model", "num_classes", "image_size"):
        assert identity[name] == found[name]
    assert identity["checkpoint_sha256"] == found["sha256"]
    assert identity["vae_sha256"] == inspected(DIGITS / "vae")["sha256"]
    assert "network" not in identity
    assert "latent_scale" not in identity


def test_inspect_in_words():
    code, out = command("inspect", DIGITS / "vae")
    lines = dict(line.split(":", 1) for line in out.splitlines())
    assert code == 0
    assert {name: value.strip() for name, value in lines.items() if name in ("family", "factor", "shift", "parameters")} == {
        "family": "AutoencoderKL",
        "factor": "8",
        "shift": "0.0",
        "parameters": "978,103",
    }
    assert lines["scale"].strip() == "0.18215"


def test_dtypes_and_steps_are_said(state, tmp_path):
    mixed = {key: value.bfloat16() if "mlp" in key else value for key, value in state.items()}
    arguments = argparse.Namespace(num_classes=10)
    torch.save(training_checkpoint(mixed, args=arguments, train_steps=400_000), tmp_path / "a.pt")
    found = inspected(tmp_path / "a.pt")
    assert found["dtype"] == "float32 (44), bfloat16 (28)"
    assert found["step"] == 400_000
    assert found["family"] == "DiT"


def sit(state, path_type="Linear"):
    return training_checkpoint(state, args=argparse.Namespace(path_type=path_type, prediction="velocity"), steps=7)


def test_inspect_gives_the_command_of_a_sit(state, tmp_path):
    torch.save(sit(state), tmp_path / "a.pt")
    found = inspected(tmp_path / "a.pt")
    assert (found["family"], found["model"], found["step"]) == ("SiT", "SiT-XS/8", 7)
    assert found["command"].endswith("--ckpt %s" % (tmp_path / "a.pt"))


def test_inspect_says_how_a_sit_was_trained_and_draws_it_so(state, tmp_path):
    args = argparse.Namespace(path_type="GVP", prediction="score")
    torch.save(training_checkpoint(state, args=args), tmp_path / "a.pt")
    found = inspected(tmp_path / "a.pt")
    assert (found["family"], found["trained"], found["refused"]) == ("SiT", "path gvp, prediction score", None)
    assert found["command"].endswith("--grid places,start=0.999")
    torch.save(sit(state), tmp_path / "a.pt")
    assert inspected(tmp_path / "a.pt")["trained"] is None


def without_variance(_state):
    return randomised(DiT_models["DiT-XS/8"](input_size=8, num_classes=10, learn_sigma=False)).state_dict()


def of_many_channels(_state):
    return randomised(DiT_models["DiT-XS/8"](input_size=8, num_classes=10, in_channels=16)).state_dict()


def circle():
    mapping = {}
    return mapping | {"a": mapping.setdefault("a", mapping)}


UNSAMPLED = {
    "SiT on another path": (
        lambda s: sit(s, "Cosine"),
        "is a SiT with path_type Cosine, which no sampler here takes",
        {"step": 7},
    ),
    "no variance": (without_variance, "was trained without a variance", {"learn_sigma": False}),
    "16 channels": (of_many_channels, "--vae ema: has 4 latent channels, but", {"in_channels": 16}),
    "a key is missing": (lambda s: {k: v for k, v in s.items() if k != "blocks.2.attn.proj.bias"}, "lacks 1", {}),
    "names in a circle": (lambda s: {"ema": s, "class_to_idx": circle()}, "class_to_idx in", {"num_classes": 10}),
    "names from 1 on": (lambda s: {"ema": s, "class_to_idx": {f"c{n}": n + 1 for n in range(10)}}, "index 0 is missing", {}),
    "9 names": (lambda s: {"ema": s, "class_to_idx": {f"c{n}": n for n in range(9)}}, "names 9 classes", {}),
    "5 blocks": (lambda s: {k: v for k, v in s.items() if "blocks.5" not in k}, "(160 wide, 5 deep)", {}),
}


@pytest.mark.parametrize(("content", "said", "facts"), UNSAMPLED.values(), ids=UNSAMPLED)
def test_inspect_says_why_nothing_samples_a_file(state, tmp_path, content, said, facts):
    torch.save(content(state), tmp_path / "a.pt")
    found = inspected(tmp_path / "a.pt")
    assert said in found["refused"]
    assert found["command"] is None
    assert {name: found[name] for name in facts} == facts


def same(found, wanted):
    """Equal names, dtypes and bits."""
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert diffusers_form.same_bits(found[key], value), key


def with_odd_numbers(state):
    """Not-a-number, infinity and a negative zero, which comparing numbers would not tell from others."""
    odd = {key: state[key].clone() for key in ("blocks.1.attn.qkv.weight", "y_embedder.embedding_table.weight")}
    for value in odd.values():
        value.view(-1)[:3] = torch.tensor([torch.nan, -torch.inf, -0.0])
    return state | odd


ENDINGS = {"official": "out.pt", "safetensors": "out.safetensors", "diffusers": "out"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "way", [("safetensors", "diffusers", "official"), ("diffusers", "safetensors"), ("official", "diffusers")]
)
def test_every_way_round_keeps_every_bit(state, tmp_path, dtype, way):
    wanted = {key: value.to(dtype) for key, value in with_odd_numbers(state).items()}
    torch.save(training_checkpoint(wanted), source := tmp_path / "0400000.pt")
    for number, form in enumerate(way):
        folder = tmp_path / str(number)
        folder.mkdir()
        code, out = command("convert", source, folder / ENDINGS[form], "--to", form)
        assert code == 0
        assert ("its ema" in out) == (number == 0)
        source = folder / ENDINGS[form]
        assert [path.name for path in folder.iterdir()] == [source.name]
    same(read(source).state, wanted)


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_diffusers_loads_the_folder(tmp_path, learn_sigma):
    network = randomised(DiT_models["DiT-XS/4"](input_size=8, num_classes=17, in_channels=3, learn_sigma=learn_sigma))
    torch.save(network.state_dict(), tmp_path / "a.pt")
    command("convert", tmp_path / "a.pt", tmp_path / "out", "--to", "diffusers")
    options = {"local_files_only": True, "output_loading_info": True}
    loaded, info = DiTTransformer2DModel.from_pretrained(tmp_path / "out", **options)
    assert not any(info.values())
    assert loaded.config.num_embeds_ada_norm == 17
    twin = DiT_models["DiT-XS/4"](input_size=8, num_classes=17, in_channels=3, learn_sigma=learn_sigma, network="diffusers")
    twin.load_state_dict(network.state_dict())
    x, t, y = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 990]), torch.tensor([0, 17])
    with torch.no_grad():
        expected = loaded.eval()(x, t, y).sample
        assert (twin(x, t, y) - expected).abs().max() < 1e-5 * expected.abs().max()
    # What diffusers would write of it is what stands there.
    loaded.save_pretrained(tmp_path / "again")
    ours, theirs = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "again"))
    assert {name: theirs[name] for name in ours} == ours
    same(load_file(tmp_path / "out" / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS))


@pytest.fixture
def trained_in_diffusers(tmp_path):
    """A network as diffusers makes and trains it: each of its parameters random, the embedders of each block too."""
    shape = {"num_layers": 6, "num_attention_heads": 5, "attention_head_dim": 32, "patch_size": 8, "sample_size": 8}
    theirs = randomised(DiTTransformer2DModel(**shape, in_channels=4, out_channels=8, num_embeds_ada_norm=10), std=0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    return theirs, tmp_path / "theirs"


def test_a_network_trained_in_diffusers_is_the_same_here(trained_in_diffusers):
    theirs, folder = trained_in_diffusers
    ours = read(folder).load("DiT-XS/8", 10, torch.device("cpu"), "diffusers")
    x, t, y = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 990]), torch.tensor([0, 10])
    with torch.no_grad():
        expected = theirs(x, t, y).sample
        assert (ours(x, t, y) - expected).abs().max() < 1e-5 * expected.abs().max()
        for part in (ours.blocks[3].t_embedder.mlp[0].bias, ours.blocks[3].y_embedder.embedding_table.weight):
            kept = part.clone()
            part += 0.1
            assert (ours(x, t, y) - expected).abs().max() > 1e-4 * expected.abs().max()
            part.copy_(kept)
        half = ours.to_half(torch.bfloat16)(x, t, y)
    assert (half - expected).abs().max() < 0.05 * expected.abs().max()
    assert ours.blocks[3].t_embedder.mlp[0].weight.dtype == torch.float32


def test_a_network_trained_in_diffusers_keeps_its_bits_and_its_arithmetic(trained_in_diffusers, tmp_path, capsys):
    _, folder = trained_in_diffusers
    found = inspected(folder)
    assert "--network diffusers" in found["command"]
    assert found["network"].startswith("diffusers")
    assert command("convert", folder, tmp_path / "again", "--to", "diffusers")[0] == 0
    same(load_file(tmp_path / "again" / WEIGHTS), load_file(folder / WEIGHTS))
    for form in ("official", "safetensors"):
        said = refusal(capsys, "convert", folder, tmp_path / ENDINGS[form], "--to", form)
        assert "for which only diffusers' form has a place" in said


@pytest.mark.parametrize("form", ENDINGS)
def test_tensors_that_share_memory_are_written_each_for_itself(state, tmp_path, form):
    """As parameters that a trainer has laid into one piece of memory."""
    pieces = torch.cat([value.flatten() for value in state.values()]).split([value.numel() for value in state.values()])
    views = {key: piece.view_as(value) for (key, value), piece in zip(state.items(), pieces, strict=True)}
    torch.save(views, source := tmp_path / "a.pt")
    command("convert", source, tmp_path / ENDINGS[form], "--to", form)
    same(read(tmp_path / ENDINGS[form]).state, state)
    written = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) - source.stat().st_size
    assert written < 2 * source.stat().st_size


def test_others_may_read_what_is_written(state, tmp_path):
    """As the umask says; safetensors would keep it to its owner."""
    save_file(state, tmp_path / "a.safetensors")
    (tmp_path / "plain").touch()
    for form, name in ENDINGS.items():
        command("convert", tmp_path / "a.safetensors", tmp_path / name, "--to", form)
    for path in (tmp_path / "out.pt", tmp_path / "out.safetensors", tmp_path / "out" / WEIGHTS):
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def shifted_positions(state):
    return state | {POSITIONS: state[POSITIONS] + 1e-3}


def positions_of_another_dtype(state):
    return {key: value.half() if key != POSITIONS else value for key, value in state.items()}


UNCONVERTIBLE = {
    "positions that were trained": (shifted_positions, "its pos_embed is not the sines and cosines"),
    "positions of another dtype": (positions_of_another_dtype, "in the dtype of its patch embedding"),
    "SiT": (sit, "predicts velocity"),
    "5 blocks": (lambda s: {k: v for k, v in s.items() if "blocks.5" not in k}, "is a DiT-(160 wide, 5 deep)/8"),
    "surplus": (lambda s: s | {"odd": torch.ones(1)}, "surplus 1"),
    "integers": (lambda s: {k: v.int() for k, v in s.items()}, "int32"),
}


@pytest.mark.parametrize("again", ["safetensors", "official", "diffusers"])
def test_what_classes_are_called_is_kept_where_there_is_a_place(state, tmp_path, again):
    mapping = {f"class {index}": index for index in range(10)}
    torch.save({"ema": state, CLASS_TO_IDX: mapping}, tmp_path / "a.pt")
    _, out = command("convert", tmp_path / "a.pt", tmp_path / "b.safetensors", "--to", "safetensors")
    assert json.loads(read(tmp_path / "b.safetensors").class_to_idx) == mapping
    assert "stays behind" not in out
    _, out = command("convert", tmp_path / "b.safetensors", tmp_path / ENDINGS[again], "--to", again)
    kept = read(tmp_path / ENDINGS[again]).class_to_idx
    assert (kept is not None and json.loads(kept) == mapping) == (again == "safetensors")
    assert ("stays behind" in out) == (kept is None)


def test_a_mapping_beside_the_source_is_beside_what_comes_of_it(state, tmp_path):
    save_file(state, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors.classes.json").write_text('["b", "c"]')
    command("convert", tmp_path / "a.safetensors", tmp_path / "out", "--to", "diffusers")
    assert (tmp_path / "out.classes.json").read_text() == '["b", "c"]'


def test_a_class_mapping_that_is_none_is_no_failure_of_the_disk(state, tmp_path, capsys):
    torch.save({"ema": state, CLASS_TO_IDX: torch.ones(2)}, tmp_path / "a.pt")
    said = refusal(capsys, "convert", tmp_path / "a.pt", tmp_path / "b.safetensors", "--to", "safetensors")
    assert "is no mapping of names to numbers" in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize(("content", "said"), UNCONVERTIBLE.values(), ids=UNCONVERTIBLE)
def test_what_cannot_be_converted_is_one_sentence_and_nothing_written(state, tmp_path, capsys, content, said):
    torch.save(content(state), tmp_path / "a.pt")
    assert said in refusal(capsys, "convert", tmp_path / "a.pt", tmp_path / "out", "--to", "diffusers")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_trained_positions_keep_in_the_other_forms(state, tmp_path):
    torch.save(shifted_positions(state), tmp_path / "a.pt")
    assert command("convert", tmp_path / "a.pt", tmp_path / "b.safetensors", "--to", "safetensors")[0] == 0
    same(load_file(tmp_path / "b.safetensors"), shifted_positions(state))


@pytest.mark.parametrize(
    ("out", "to", "said"),
    [
        ("there.pt", "official", "exists; remove it"),
        ("there", "diffusers", "exists; remove it"),
        ("out.safetensors", "official", "--to official writes a file whose name ends in .pt"),
        ("out.pt", "safetensors", "--to safetensors writes a file whose name ends in .safetensors"),
        ("nowhere/out.pt", "official", "there is no folder"),
        ("out.pt", "onnx", "invalid choice: 'onnx'"),
    ],
)
def test_where_nothing_can_be_written_is_one_sentence(state, tmp_path, capsys, out, to, said):
    save_file(state, tmp_path / "a.safetensors")
    (tmp_path / "there.pt").touch()
    (tmp_path / "there").mkdir()
    assert said in refusal(capsys, "convert", tmp_path / "a.safetensors", tmp_path / out, "--to", to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "there", "there.pt"]
    assert (tmp_path / "there.pt").read_bytes() == b""


@pytest.mark.parametrize("form", ENDINGS)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(state, tmp_path, capsys, monkeypatch, form):
    """Which the two writers say by errors of their own."""
    save_file(state, tmp_path / "a.safetensors")

    def full(*_, **__):
        raise RuntimeError("unexpected pos 64 vs 0") if form == "official" else SafetensorError("I/O error")

    monkeypatch.setattr("torch.save" if form == "official" else "safetensors.torch.save_file", full)
    assert "cannot be written (" in refusal(capsys, "convert", tmp_path / "a.safetensors", tmp_path / ENDINGS[form], "--to", form)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_inspecting_what_is_no_checkpoint_is_one_sentence(tmp_path, capsys, content):
    (tmp_path / "a.pt").write_bytes(content)
    assert str(tmp_path / "a.pt") in refusal(capsys, "inspect", tmp_path / "a.pt")
    assert "no such checkpoint file or folder" in refusal(capsys, "inspect", tmp_path / "b.pt")
