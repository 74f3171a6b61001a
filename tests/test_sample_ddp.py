"""Mistakes on the command line: one sentence, a non-zero exit code, nothing written, and that before anything expensive."""

import argparse
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import DIGITS, randomised, run_command
from PIL import Image
from safetensors.torch import load_file, save_file

import sample_ddp
from fiducial.models import DiT_models


class Code:
    """What a malicious checkpoint would run."""

    def __reduce__(self):
        return (Path("/tmp/fiducial-was-here").touch, ())


def with_header(header: dict, whole: bytes) -> bytes:
    """A safetensors file with another header than its own."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + int.from_bytes(whole[:8], "little") :]


@pytest.fixture(scope="module")
def bad(tiny_checkpoint, tmp_path_factory) -> dict[str, str]:
    """Damaged and unsuitable files by name."""
    folder = tmp_path_factory.mktemp("bad")
    state = load_file(tiny_checkpoint)
    whole = tiny_checkpoint.read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.pt").touch()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    first = next(iter(header))
    lies = {
        "length": (2**60).to_bytes(8, "little") + whole[8:],
        "offsets": with_header(header | {first: header[first] | {"data_offsets": [0, 10**15]}}, whole),
        "shape": with_header(header | {first: header[first] | {"shape": [10**9, 10**9]}}, whole),
        "type": with_header(header | {first: header[first] | {"dtype": "PICKLE"}}, whole),
        "nothing": with_header({}, whole),
    }
    for name, content in lies.items():
        (folder / f"lie-{name}.safetensors").write_bytes(content)
    save_file({key: value for key, value in state.items() if "fc1" not in key}, folder / "missing.safetensors")
    save_file(state | {"surplus": torch.zeros(1)}, folder / "surplus.safetensors")
    save_file({"weight": torch.zeros(2)}, folder / "other.safetensors")
    torch.save({"ema": state, "args": Code()}, folder / "code.pt")
    torch.save(state, folder / "whole.pt")
    (folder / "cut.pt").write_bytes((folder / "whole.pt").read_bytes()[:9999])
    torch.save({"opt": {}, "args": argparse.Namespace(), "steps": 5}, folder / "no-weights.pt")
    torch.save(randomised(DiT_models["DiT-XS/8"](input_size=8, num_classes=17)).state_dict(), folder / "17.pt")
    (folder / "vae-without-weights").mkdir()
    shutil.copy(DIGITS / "vae" / "config.json", folder / "vae-without-weights")
    shutil.copytree(DIGITS / "vae", folder / "cut-vae")
    weights = folder / "cut-vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    shutil.copytree(DIGITS / "vae", folder / "other-vae")
    (folder / "other-vae" / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    for name, field in (("text-vae", {"latent_channels": "4"}), ("groups-vae", {"norm_num_groups": 7})):
        shutil.copytree(DIGITS / "vae", folder / name)
        config = json.loads((DIGITS / "vae" / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps(config | field))
    torch.save({key: value.to_sparse() for key, value in state.items()}, folder / "sparse.pt")
    (folder / "a-file").write_text("not a folder")
    (folder / "empty-folder").mkdir()
    (folder / "mixed-folder").mkdir()
    for width in (64, 65):
        Image.new("RGB", (width, 64)).save(folder / "mixed-folder" / f"{width}.png")
    (folder / "ref.npz").write_bytes(b"PK not really")
    for name in ("pictures", "foreign"):
        (folder / name).mkdir()
    (folder / "foreign" / "run").mkdir()
    (folder / "foreign" / "run" / "000000.png").touch()
    (folder / "pictures" / "run").mkdir()
    (folder / "pictures" / "run" / "manifest.json").write_text('{"format": "something else"}')
    return {path.name: str(path) for path in folder.iterdir()}


# What is given after `--preset digits --num-fid-samples 4`, and what the sentence must say.
MISTAKES = [
    (["--no-such-option"], "--no-such-option"),
    *((["--" + name, "x" * 300], "File name too long") for name in ("ckpt", "vae", "sample-dir", "class-names", "ref")),
    (["--num-fid-samples", "0"], "--num-fid-samples 0: must be at least 1"),
    (["--num-fid-samples", "many"], "--num-fid-samples: 'many' is not a whole number"),
    (["--per-proc-batch-size", "-3"], "--per-proc-batch-size -3"),
    (["--cfg-scale", "0.5"], "--cfg-scale 0.5"),
    (["--cfg-scale", "nan"], "--cfg-scale nan"),
    (["--cfg-scale", "2", "--labels", "null"], "--labels null is unconditional"),
    (["--precision", "int8"], "--precision"),
    (["--precision", "tf32"], "--precision tf32 (--tf32): needs a GPU"),
    (["--tf32", "--precision", "bf16"], "--tf32 and --precision: give only one"),
    (["--exact", "--precision", "bf16"], "--precision bf16: not with --exact"),
    (["--exact", "--tf32"], "--tf32: not with --exact"),
    (["--exact", "--compile"], "--compile: not with --exact"),
    (["--offload", "vae"], "--offload: needs a GPU"),
    (["--cuda-tuning"], "--cuda-tuning: needs a GPU"),
    (["--offload", "both", "--cuda-tuning"], "--offload both: not with --cuda-tuning"),
    (["--guidance-interval", "0.2,0.7", "--cfg-scale", "1"], "--guidance-interval 0.2,0.7: --cfg-scale 1.0 has nothing"),
    (["--cfg-scale", "1,5"], "--cfg-scale: '1,5' is not a number"),
    (["--per-proc-batch-size", "all"], "'all' is not a whole number"),
    (["--guidance-interval", "0.7"], "--guidance-interval: '0.7' is not two numbers LO,HI such as 0,0.7"),
    (["--guidance-interval", "0.7,0.2"], "--guidance-interval 0.7,0.2: must be"),
    (["--guidance-interval", "0,700"], "--guidance-interval 0.0,700.0: must be"),
    (["--sampler", "unipc", "--num-sampling-steps", "ddim50"], "--num-sampling-steps ddim50: --sampler unipc takes a count"),
    (["--sampler", "heun", "--num-sampling-steps", "1"], "--num-sampling-steps 1: --sampler heun takes at least 2"),
    (["--sampler", "unipc", "--num-sampling-steps", "1000"], "--sampler unipc takes at most 999"),
    (["--sampler", "heun", "--eta", "0.5"], "only --sampler ddim"),
    (["--per-proc-batch-size", "0"], "--per-proc-batch-size 0: must be at least 1"),
    (["--cfg-channels", "5"], "has 4 latent channels"),
    (["--eta", "0.5"], "only --sampler ddim"),
    (["--eta", "2", "--sampler", "ddim"], "--eta 2.0"),
    (["--sampler", "euler"], "--sampler"),
    (["--num-sampling-steps", "1001"], "1001 steps do not fit"),
    (["--num-sampling-steps", "ddim7.5"], "--num-sampling-steps"),
    (["--num-sampling-steps", "ddim333"], "no constant stride"),
    (["--labels", "7,10"], "'10' is not within the classes 0 to 9"),
    (["--labels", "cat"], "'cat' is neither random, balanced, null, a number such as 7 or 3-5, nor one of the 10 names of"),
    (["--labels", "7,,3"], "'' is neither random"),
    (["--labels", "3,12-"], "'3,12-' is neither random"),
    (["--class-names", "absent"], "--class-names absent: there is no such file or folder"),
    (["--class-names", "{empty-folder}"], "has no subfolders"),
    (["--class-names", "{a-file}"], "its 1 classes are not the 10 of"),
    (["--global-seed", "-1"], "--global-seed -1"),
    (["--image-size", "60"], "must be a multiple of 8"),
    (["--image-size", "128"], "expected input_size 16; found input_size 8"),
    (["--num-classes", "1000"], "expected num_classes 1000; found num_classes 10; give --num-classes 10"),
    (["--model", "DiT-S/2"], "expected model DiT-S/2; found model DiT-XS/2"),
    (["--model", "DiT-M/2"], "--model DiT-M/2"),
    (["--device", "cuda"], "--device cpu"),
    (["--run-name", "../elsewhere"], "--run-name"),
    (["--num-fid-samples", "99999999999999"], "at most 100,000,000"),
    (["--per-proc-batch-size", "99999999999999"], "at most 65,536"),
    (["--ref", ""], "--ref : no such file"),
    (["--run-name", "run.npz"], "no file's ending"),
    (["--run-name", "x" * 250], "up to 200"),
    (["--sample-dir", "{a-file}/samples"], "cannot create"),
    (["--sample-dir", "{foreign}", "--run-name", "run"], "holds images but no manifest.json"),
    (["--sample-dir", "{pictures}", "--run-name", "run"], "is not a whole manifest"),
    (["--ckpt", "absent.pt"], "absent.pt: no such checkpoint file"),
    (["--ckpt", "{cut.safetensors}"], "not a whole safetensors file"),
    (["--ckpt", "{empty.pt}"], "empty.pt"),
    (["--ckpt", "{lie-length.safetensors}"], "not a whole safetensors file"),
    (["--ckpt", "{lie-offsets.safetensors}"], "not a whole safetensors file"),
    (["--ckpt", "{lie-shape.safetensors}"], "not a whole safetensors file"),
    (["--ckpt", "{lie-type.safetensors}"], "not a whole safetensors file"),
    (["--ckpt", "{lie-nothing.safetensors}"], "not a whole safetensors file"),
    (["--hang-timeout", "-1"], "--hang-timeout -1.0: must be"),
    (["--hang-timeout", "nan"], "--hang-timeout nan: must be"),
    (["--ckpt", "{cut.pt}"], "cut.pt"),
    (["--ckpt", "{code.pt}"], "was not unpickled"),
    (["--ckpt", "{no-weights.pt}"], "holds no state dict"),
    (["--ckpt", "{missing.safetensors}", "--model", "DiT-XS/8"], "lacks 12 of the keys"),
    (["--ckpt", "{surplus.safetensors}", "--model", "DiT-XS/8"], "'surplus'"),
    (["--ckpt", "{other.safetensors}"], "is not a DiT checkpoint"),
    (["--ckpt", "{17.pt}", "--model", "DiT-XS/8"], "expected num_classes 10; found num_classes 17"),
    (["--vae", "{a-file}"], "--vae"),
    (["--vae", "{empty-folder}"], "it has no config.json"),
    (["--vae", "{vae-without-weights}"], "it has no diffusion_pytorch_model.safetensors"),
    (["--vae", "{cut-vae}"], "not a whole safetensors file"),
    (["--vae", "{other-vae}"], "describes a VQModel"),
    (["--vae", "{text-vae}"], "is not the configuration of an autoencoder"),
    (["--vae", "{groups-vae}"], "must be divisible by num_groups"),
    (["--ckpt", "{sparse.pt}", "--model", "DiT-XS/8"], "dense floating point"),
    (["--vae", "ema"], "stabilityai/sd-vae-ft-ema is neither in the local hub cache"),
    (["--inception-weights", "w.pth"], "only used with --ref"),
    (["--weights", "inception=w.pth"], "--weights: only used with --ref"),
    (["--ref", "digits", "--num-fid-samples", "1"], "needs at least 2"),
    (["--ref", "absent.npz"], "--ref absent.npz: no such file"),
    (["--ref", "{ref.npz}"], "ref.npz"),
    (["--ref", "{empty-folder}"], "holds no images"),
    (["--ref", "{mixed-folder}"], "mixed-folder --image-size 64 --out REF.npz makes one of this size"),
    (["--ref", "{mixed-folder}", "--evaluate-online"], "65.png is 65 x 64, but '64.png' is 64 x 64"),
    (["--ref", "digits", "--image-size", "32", "--model", "DiT-XS/2"], "takes 64 x 64 only"),
    (["--ref", "adm-imagenet-256"], "is of 256 pixels, and the samples are of 64; choose from adm-imagenet-64"),
    (["--ref", "adm-lsun-cat-256", "--image-size", "40"], "are of 40; make one with python -m evaluation ref"),
    (["--ref", "adm-imagenet-65"], "nor one of adm-imagenet-64, adm-imagenet-128"),
    (["--ckpt", "owner/name"], "--ckpt owner/name (no such path here): owner/name is neither in the local hub cache"),
]


TOLD_BEFORE = [
    (["--preset", "digits", "--ckpt", "absent.pt"], "absent.pt: no such checkpoint file or folder"),
    (["--model", "DiT-B/4"], "--ckpt is missing"),
]


@pytest.mark.parametrize(("given", "said"), TOLD_BEFORE, ids=["absent", "none"])
def test_a_missing_checkpoint_is_told_before_anything_is_downloaded(given, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("downloading began"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("downloading began"))
    arguments = ["--ref", "adm-imagenet-256", "--image-size", "256", "--vae", "owner/name"]
    monkeypatch.setattr("sys.argv", ["sample_ddp.py", *given, *arguments, "--cache-dir", str(tmp_path)])
    with pytest.raises(SystemExit):
        sample_ddp.main()
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("given", "said"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_a_mistake_gets_one_sentence_and_writes_nothing(given, said, bad, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        "fiducial.sampling.source.latent_diffusion.LatentDiffusion.blocks", lambda *_: pytest.fail("drawing began")
    )
    before = snapshot(bad)
    given = [
        next((text.replace(f"{{{name}}}", path) for name, path in bad.items() if f"{{{name}}}" in text), text) for text in given
    ]
    monkeypatch.setattr("sys.argv", ["sample_ddp.py", "--preset", "digits", "--num-fid-samples", "4", *given])
    with pytest.raises(SystemExit) as ended:
        sample_ddp.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert said in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    assert snapshot(bad) == before
    assert not Path("/tmp/fiducial-was-here").exists()


def test_a_reference_of_another_size_is_refused_before_drawing(monkeypatch, capsys):
    monkeypatch.setattr("fiducial.sampling.run.session.draw", lambda *_: pytest.fail("drawing began"))
    found = SimpleNamespace(
        extractor=SimpleNamespace(image_size=None, name="inception"),
        reference=SimpleNamespace(path=Path("r.npz"), image_size=(32, 32), images=None),
    )
    monkeypatch.setattr("fiducial.evaluation.evaluate.Evaluation.prepare", lambda *_: found)
    monkeypatch.setattr("sys.argv", ["sample_ddp.py", "--preset", "digits", "--ref", "r.npz"])
    with pytest.raises(SystemExit):
        sample_ddp.main()
    assert "--image-size: images of 64 x 64, but the reference r.npz is of 32 x 32" in capsys.readouterr().err


def snapshot(bad: dict[str, str]) -> list[Path]:
    return sorted(Path(next(iter(bad.values()))).parent.rglob("*"))


@pytest.mark.parametrize("rank", ["0", "x"])
def test_half_a_launchers_environment_is_named(rank, tmp_path):
    arguments = ["--preset", "digits", "--num-fid-samples", "4", "--sample-dir", tmp_path]
    done = run_command("sample_ddp.py", *arguments, timeout=60, RANK=rank)
    assert done.returncode == 2
    assert done.stderr.startswith("error: RANK is set")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("given", [("--model", "DiT-B/4"), ("--image-size", "128"), ("--num-classes", "17")])
def test_a_checkpoint_is_asked_for_where_none_is_published(given, tmp_path):
    done = run_command("sample_ddp.py", "--vae", DIGITS / "vae", "--sample-dir", tmp_path, *given, timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(r"error: --ckpt is missing: .* not for DiT-.* or --preset digits for the embedded model\n", done.stderr)


MISTAKES_OF_ALL = [(["--cfg-scale", "0.1"], "--cfg-scale 0.1"), (["--num-classes", "7"], "expected num_classes 7")]


@pytest.mark.parametrize(("given", "said"), MISTAKES_OF_ALL, ids=["an option", "a file"])
def test_several_ranks_say_it_once_before_the_launcher(given, said, tmp_path):
    done = run_command("sample_ddp.py", "--preset", "digits", "--sample-dir", tmp_path, *given, ranks=3, timeout=40)
    assert done.returncode != 0
    ours, _, launchers = done.stderr.partition("Traceback")
    assert ours.count("error:") == 1
    assert said in launchers.partition("Root Cause")[2]
    assert 'sample_ddp.py", line' not in done.stderr
    assert not list(tmp_path.iterdir())
