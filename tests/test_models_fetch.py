"""What is brought from the network before a run, by the commands that bring it; a server of this machine stands in for all."""

import io
import json
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import DIGITS, ROOT, draw_files, run_command

import fiducial
import sample_ddp
from fiducial import UserError
from fiducial.evaluation.data.published import PUBLISHED
from fiducial.models.checkpoints import catalogue, hub
from fiducial.models.checkpoints.places import HubFile, Page, Place, Url
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.options.parser import parse
from fiducial.sampling.options.presets import PRESETS, ROWS
from fiducial.sampling.source.from_checkpoint import with_sampler
from fiducial.sampling.source.table import source_of

CHECKPOINT = "/DiT/models/DiT-XL-2-256x256.pt"
REFERENCE = "/diffusion/jul-2021/ref_batches/imagenet/256/VIRTUAL_imagenet256_labeled.npz"
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"


def config_of(preset: str, **changes: object) -> SamplingConfig:
    """As the command line gives it."""
    given = [text for name, value in changes.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return parse(["--preset", preset, *given])[0]


def test_what_the_catalogue_names_is_known_elsewhere():
    assert catalogue.CATALOGUE.keys() == ROWS.keys()
    for name, published in catalogue.CATALOGUE.items():
        row, preset = ROWS[name], config_of(name)
        assert published.shape == (preset.model, preset.image_size, 1000)
        assert published.reference == row.reference
        assert PUBLISHED[row.reference].image_size == published.image_size if row.reference in PUBLISHED else " " in row.reference
        assert preset.vae == row.options.get("vae", f"published:{getattr(published.vae, 'name', '')}")
        found = catalogue.place_of(preset.ckpt) or catalogue.choose(*published.shape).checkpoint
        assert found == published.checkpoint
    for size in (256, 512):  # the published settings are the defaults
        assert SamplingConfig(**PRESETS[f"dit-xl-2-{size}"]) == with_sampler(SamplingConfig(image_size=size))


@pytest.mark.parametrize("preset", ROWS)
def test_a_dry_run_says_where_each_file_is(preset, tmp_path, capsys):
    """On an empty cache it ends in an error; a file that is there is said to be."""
    config, places = config_of(preset, cache_dir=tmp_path), catalogue.CATALOGUE[preset].places()
    with pytest.raises(UserError, match=r"published, but not here, and a dry run downloads nothing; .* fetch PRESET"):
        source_of(config).require_here(config)
    lines = dict(line.removeprefix("file      ").split(": ", 1) for line in capsys.readouterr().out.splitlines())
    wanted = {f"--{name.replace('_', '-')}": (place.said, place.path(tmp_path)) for name, place in places.items()}
    if config.vae in ("ema", "mse"):
        repository = f"stabilityai/sd-vae-ft-{config.vae}"
        kept = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        wanted["--vae"] = (f"https://huggingface.co/{repository}", kept)
    assert lines == {option: f"not here; from {said}; to {path}" for option, (said, path) in wanted.items()}
    assert all(str(path).startswith(f"{tmp_path}/") and "https://" in said for said, path in wanted.values())
    there = in_cache(catalogue.CATALOGUE[preset].checkpoint, tmp_path)
    with suppress(UserError):
        source_of(config).require_here(config)
    assert f"--ckpt: is here, {there}\n" in capsys.readouterr().out
    assert isinstance(places["ckpt"], Page) or places["ckpt"].find("--ckpt", tmp_path) == there


def in_cache(place: Place, cache: Path) -> Path:
    """An empty file where the cache has the published one."""
    path = place.path(cache)
    if isinstance(place, HubFile):
        in_hub_cache(cache / "hub", place.repository)
        path = path / "snapshots" / "0123abcd" / place.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model", "REPA-XL/2"], "several weights of REPA-XL/2 at 256 are published; give --preset repa-xl-2-256 or repa-e-sd"),
        (["--model", "RAE-XL/1"], "--vae ema: the published weights of RAE-XL/1 go with --vae published:rae-decoder-dinov2-b"),
        (["--model", "JiT-B/16", "--vae", "pixels"], "fetch jit-b-16/checkpoint-last.pth by hand from https://www.dropbox.com/"),
        (
            ["--preset", "meanflow-xl-2-256"],
            "its makers have it is not known to us; https://github.com/Gsunshine/meanflow may say",
        ),
        (["--preset", "repa-xl-2-256"], "st=apcc645o&dl=0, or give it as --ckpt"),
        (
            ["--preset", "rae-xl-256"],
            "blob/main/decoders/dinov2/wReg_base/ViTXL_n08/model.pt where there is internet and give it",
        ),
        (["--ckpt", "published:sit-xl-2"], "published:sit-xl-2: no such published file; the closest is published:sit-xl-2-256"),
        (["--ckpt", "hf:model.pt"], "hf:model.pt: must be hf:OWNER/NAME/FILE"),
        (["--ckpt", "hf:owner/name/../model.pt"], "must be hf:OWNER/NAME/FILE"),
        (["--ckpt", "hf:owner/name/a/model.pt"], "--ckpt: a/model.pt of owner/name is neither in the local hub cache nor"),
    ],
)
def test_files_that_are_not_here_are_named_before_anything_is_loaded(given, said, tmp_path, monkeypatch, alone):
    monkeypatch.setenv("FIDUCIAL_OFFLINE", "1")
    in_hub_cache(tmp_path / "hub", "stabilityai/sd-vae-ft-ema")
    vae = [] if {"--vae", "--preset"} & set(given) or "RAE" in given[-1] else ["--vae", str(DIGITS / "vae")]
    vae = ["--vae", str(DIGITS / "vae")] if "repa-xl-2-256" in given else vae
    config = parse([*given, *vae, "--cache-dir", str(tmp_path)])[0]
    with pytest.raises(UserError) as error:
        source_of(config).fetch(config, alone)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_tables_of_the_page_are_those_of_the_catalogue():
    page = (ROOT / "docs" / "drawing.md").read_text()
    rows = []
    for name, published in catalogue.CATALOGUE.items():
        cells = {"vae": published.vae} | {option: f"`{place.name}`" for option, place in published.places().items()}
        wanted = (cells.get(option, "") for option in ("ckpt", "vae", "latent_stats", "guidance_ckpt"))
        rows.append(f"| `{name}` | {' | '.join(wanted)} |")
    places = [f"| `{name}` | {place.said} |" for name, place in catalogue.PLACES.items()]
    assert "\n".join(rows) in page
    assert "\n".join(places) in page


def test_a_model_alone_is_drawn_from_its_only_published_file(tmp_path):
    config = parse(["--model", "SiT-XL/2", "--cache-dir", str(tmp_path)])[0]
    there = in_cache(catalogue.PLACES["sit-xl-2-256"], tmp_path)
    assert there.name == "SiT-XL-2-256.pt"
    assert catalogue.find(config.ckpt, config.model, config.image_size, config.num_classes, tmp_path) == there
    for ckpt in (None, there, Path("published:sit-xl-2-256")):
        assert catalogue.unlike_published(ckpt, "SiT-XL/2", 256, 1000, tmp_path) is None
    said = catalogue.unlike_published(tmp_path / "own.pt", "REPA-XL/2", 256, 1000, tmp_path)
    assert "another than the published repa-last.pt or repa-e-sdvae-80-epochs, of which" in said
    assert parse(["--preset", "repa-xl-2-256", "--ckpt", "own.pt"])[0].ckpt == Path("own.pt")


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
    tiny = catalogue.Published(Url("tiny", "https://weights.invalid/tiny.safetensors?a=b/c"), "DiT-XS/8", 64, 10, "none")
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
