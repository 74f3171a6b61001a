"""What is brought from the network before a run, by the commands that bring it; a server of this machine stands in for all."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from conftest import DIGITS, draw_files, run_command

import fiducial
import sample_ddp
from fiducial import UserError
from fiducial.evaluation.data.published import PUBLISHED
from fiducial.models.checkpoints import catalogue, hub
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.options.presets import PRESETS
from fiducial.sampling.source.from_checkpoint import with_sampler

CHECKPOINT = "/DiT/models/DiT-XL-2-256x256.pt"
REFERENCE = "/diffusion/jul-2021/ref_batches/imagenet/256/VIRTUAL_imagenet256_labeled.npz"
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"


def test_what_the_catalogue_names_is_known_elsewhere():
    for name, published in catalogue.CATALOGUE.items():
        preset = SamplingConfig(**PRESETS[name])
        assert (preset.model, preset.image_size, preset.num_classes) == (published.model, published.image_size, 1000)
        assert PUBLISHED[published.reference].image_size == published.image_size
        assert catalogue.choose(preset.model, preset.image_size, preset.num_classes) is published
        assert preset == with_sampler(SamplingConfig(image_size=published.image_size))  # the published settings are the defaults


def in_hub_cache(folder: Path, repository: str, **files: Path) -> Path:
    """Puts a repository where the hub's client looks for it; returns the snapshot's folder."""
    kept = folder / f"models--{repository.replace('/', '--')}"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0123abcd")
    snapshot = kept / "snapshots" / "0123abcd"
    for name, source in files.items():
        path = snapshot / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, path)
    return snapshot


def zipped(content: bytes) -> bytes:
    """A zip archive, as files of torch's and numpy's are."""
    with zipfile.ZipFile(archive := io.BytesIO(), "w") as file:
        file.writestr("a", content)
    return archive.getvalue()


WEIGHTS, STATISTICS = zipped(b"weights" * 1000), zipped(b"statistics" * 1000)


@pytest.fixture
def cache(tmp_path) -> Path:
    """A cache folder that has the VAE already: the hub is not what is tested here."""
    snapshot = in_hub_cache(tmp_path / "cache" / "hub", "stabilityai/sd-vae-ft-ema")
    shutil.copytree(DIGITS / "vae", snapshot)
    return tmp_path / "cache"


def test_fetch_brings_all_and_says_what_then_runs(mirror, cache):
    mirror.content = {CHECKPOINT: WEIGHTS, REFERENCE: STATISTICS}
    mirror.moods = ["cut", "well"]
    (cache / "checkpoints").mkdir()
    (cache / "checkpoints" / INCEPTION).write_bytes(b"brought by hand")
    fetch = "-m", "models", "fetch", "dit-xl-2-256", "--cache-dir", cache
    done = run_command(*fetch, FIDUCIAL_MIRROR=mirror.url)
    assert done.returncode == 0, done.stderr
    assert (cache / "checkpoints" / "DiT-XL-2-256x256.pt").read_bytes() == WEIGHTS
    assert (cache / "references" / "adm-imagenet-256.npz").read_bytes() == STATISTICS
    assert [path for path, _ in mirror.seen] == [CHECKPOINT, CHECKPOINT, REFERENCE]
    assert mirror.ranges() == [None, f"bytes={len(WEIGHTS) // 2}-", None]
    for name in ("checkpoint", "VAE ema", "Inception", "adm-imagenet-256"):
        assert f"{name}: {cache}" in done.stdout
    command = done.stdout.splitlines()[-1]
    assert command.endswith(f"sample_ddp.py --preset dit-xl-2-256 --ref adm-imagenet-256 --cache-dir {cache}")
    again = run_command(*fetch, FIDUCIAL_MIRROR="http://127.0.0.1:9")
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, command), again.stderr


def test_fetch_tries_the_rest_and_says_what_failed(mirror, cache):
    mirror.content = {REFERENCE: STATISTICS}
    done = run_command("-m", "models", "fetch", "dit-xl-2-256", "--vae", "mse", "--cache-dir", cache, FIDUCIAL_MIRROR=mirror.url)
    assert done.returncode == 2
    assert (cache / "references" / "adm-imagenet-256.npz").read_bytes() == STATISTICS
    said = [line for line in done.stderr.splitlines() if "%|" not in line]
    assert f"put it at {cache}/checkpoints/DiT-XL-2-256x256.pt" in said[0]
    assert f"copy {cache}/hub/models--stabilityai--sd-vae-ft-mse" in said[1]
    assert f"put it at {cache}/checkpoints/{INCEPTION}" in said[2]
    assert said[-1].startswith("error: not fetched: checkpoint, VAE mse")
    assert "Traceback" not in done.stderr
    assert "sample_ddp.py" not in done.stdout


@pytest.mark.parametrize("body", [WEIGHTS, pytest.param(None, marks=pytest.mark.long)], ids=["another file", "404"])
def test_two_ranks_without_a_checkpoint_fetch_it_once(body, mirror, cache, tmp_path):
    if body:
        mirror.content[CHECKPOINT] = body
    given = "--preset", "dit-xl-2-256", "--vae", DIGITS / "vae", "--sample-dir", tmp_path / "samples", "--cache-dir", cache
    done = run_command("sample_ddp.py", *given, ranks=2, FIDUCIAL_MIRROR=mirror.url)
    assert done.returncode != 0
    ours = done.stderr.partition("Traceback")[0]
    path = cache / "checkpoints" / "DiT-XL-2-256x256.pt"
    assert ours.count("error:") == 1, done.stderr
    assert (f"{path} is not whole in torch's zip format" if body else f"put it at {path}") in ours
    assert path.exists() == bool(body)
    assert [path for path, _ in mirror.seen] == [CHECKPOINT]
    assert not (tmp_path / "samples").exists()


def test_a_run_without_a_checkpoint_is_that_of_the_published_file(mirror, tiny_checkpoint, tmp_path, monkeypatch):
    """A small network stands in for DiT-XL/2. The same images come of the file given by --ckpt, in the same run."""
    tiny = catalogue.Published("https://weights.invalid/tiny.safetensors", "DiT-XS/8", 64, 10, "none")
    monkeypatch.setattr(catalogue, "CATALOGUE", {"tiny": tiny})
    monkeypatch.setenv("FIDUCIAL_MIRROR", mirror.url)
    mirror.content["/tiny.safetensors"] = tiny_checkpoint.read_bytes()
    small = ["--model", "DiT-XS/8", "--image-size", "64", "--num-classes", "10", "--vae", str(DIGITS / "vae")]
    small += [
        "--num-fid-samples",
        "3",
        "--num-sampling-steps",
        "2",
        "--exact",
        "--no-probe",
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    fetched = tmp_path / "cache" / "checkpoints" / "tiny.safetensors"
    for given in ([], ["--ckpt", str(fetched)]):
        config, _ = sample_ddp.parse([*small, "--sample-dir", str(tmp_path / "samples"), *given])
        draw_files(config, fiducial.init("cpu"))
        assert fetched.read_bytes() == tiny_checkpoint.read_bytes()
    assert len(mirror.seen) == 1
    (folder,) = (path for path in (tmp_path / "samples").iterdir() if path.is_dir())
    assert folder.name.startswith("DiT-XS-8-tiny-size-64")
    assert len(json.loads((folder / "manifest.json").read_text())["sessions"]) == 2


def test_hub_ids_are_told_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    given = {"model": "DiT-XL/2", "image_size": 256, "num_classes": 1000, "cache_dir": tmp_path / "cache"}
    for path in ("runs/last.pt", "runs/last.safetensors", "/runs/last", "last", "../last", "a/b/c"):
        assert catalogue.find(Path(path), **given) == Path(path)
    with pytest.raises(
        UserError, match=r"--ckpt facebook/DiT \(no such path here\): .* or copy .*/cache/hub/models--facebook--DiT from there"
    ):
        catalogue.find(Path("facebook/DiT"), **given)
    in_hub_cache(tmp_path / "cache" / "hub", "facebook/DiT").mkdir(parents=True)
    with pytest.raises(UserError, match=r"which is what is here of facebook/DiT, has no config\.json with all of its"):
        catalogue.find(Path("facebook/DiT"), **given)
    snapshot = tmp_path / "cache" / "hub" / "models--facebook--DiT" / "snapshots" / "0123abcd"
    shutil.copytree(DIGITS / "vae", snapshot / "transformer")
    (snapshot / "transformer" / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(UserError, match="which is what is here of facebook/DiT"):
        catalogue.find(Path("facebook/DiT"), **given)
    (tmp_path / "config.json").rename(snapshot / "transformer" / "config.json")
    assert catalogue.find(Path("facebook/DiT"), **given) == snapshot
    assert SamplingConfig(snapshot, model="DiT-XL/2", image_size=256).named_run("0" * 64).startswith("DiT-XL-2-DiT-size-256")
    (tmp_path / "facebook" / "DiT").mkdir(parents=True)
    assert catalogue.find(Path("facebook/DiT"), **given) == Path("facebook/DiT")  # what is there wins


def test_the_hub_is_asked_for_a_diffusers_model_only(tmp_path, monkeypatch):
    """What would come of a pipeline's repository: the transformer, and nothing of its VAE or in other forms."""
    from huggingface_hub.utils import filter_repo_objects

    names = [
        *("model_index.json", "README.md", "config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        *("transformer/config.json", "transformer/diffusion_pytorch_model.safetensors.index.json"),
        *(
            "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
            "transformer/diffusion_pytorch_model.fp16.safetensors",
        ),
        *("vae/config.json", "vae/diffusion_pytorch_model.safetensors", "transformer/diffusion_pytorch_model.bin"),
    ]
    came = []

    def snapshot_download(repository, allow_patterns, cache_dir):
        came.extend(filter_repo_objects(names, allow_patterns=allow_patterns))
        assert (repository, cache_dir) == ("facebook/DiT", tmp_path / "hub")
        return DIGITS / "vae"

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    catalogue.find(Path("facebook/DiT"), "DiT-XL/2", 256, 1000, tmp_path)
    assert came == [names[2], names[3], *names[5:8]]


def test_an_older_repository_has_its_weights_in_another_form(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(_, allow_patterns, **__):
        asked.append(allow_patterns)
        if any(pattern.endswith(".bin") for pattern in allow_patterns):
            (tmp_path / "transformer").mkdir()
            for name in ("config.json", "diffusion_pytorch_model.bin"):
                (tmp_path / "transformer" / name).touch()
        return tmp_path

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert catalogue.find(Path("facebook/DiT"), "DiT-XL/2", 256, 1000) == tmp_path
    assert len(asked) == 2
    shutil.rmtree(tmp_path / "transformer")
    with pytest.raises(UserError, match="give the same command where there is internet"):
        hub.snapshot("owner/vae", "--vae owner/vae")


def test_the_cache_is_no_part_of_a_run(tmp_path, cache):
    """With another cache it is the same run, and what was fetched there is used: the digits' own VAE stands in for `ema`."""
    given = "--preset", "digits", "--vae", "ema", "--num-fid-samples", "4", "--num-sampling-steps", "2", "--exact"
    given = "sample_ddp.py", *given, "--sample-dir", tmp_path / "samples"
    for where in (cache, tmp_path / "elsewhere"):
        done = run_command(*given, "--cache-dir", where)
        assert done.returncode == 0, done.stderr
        shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
        shutil.copytree(cache, tmp_path / "elsewhere", symlinks=True)
    assert "4 of 4 images are there" in done.stdout
    (manifest,) = (tmp_path / "samples").glob("*/manifest.json")
    assert "cache_dir" not in json.loads(manifest.read_text())["identity"]


def test_the_hubs_own_variables_are_honoured():
    code = "from models.checkpoints import hub; print(hub.cache_folder(None))"
    assert run_command("-c", code, HF_HOME="/somewhere").stdout.strip() == "/somewhere/hub"
    assert hub.cache_folder(Path("/here")) == Path("/here/hub")
