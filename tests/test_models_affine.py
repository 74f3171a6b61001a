"""Statistics of latents: every published form of file against its formula, what is no statistics, and whole runs by them."""

import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import DIGITS, contents, draw_files, options
from diffusers import AutoencoderKL
from safetensors.torch import save_file

import fiducial
from fiducial import UserError
from fiducial.models.decoders.affine import Affine, read
from fiducial.models.decoders.autoencoder import Autoencoder
from fiducial.models.decoders.pixels import Pixels
from fiducial.models.latent import LatentShape
from fiducial.sampling.options.parser import parse
from fiducial.sampling.source.node_files import statistics_of, told_by_checkpoint

C, SIZE = 4, 3
RANDOM = torch.Generator().manual_seed(0)
Z = torch.randn(2, C, SIZE, SIZE, generator=RANDOM)
MEAN, STD = torch.randn(C, generator=RANDOM), torch.rand(C, generator=RANDOM) + 0.5
EACH_MEAN, EACH_VAR = torch.randn(C, SIZE, SIZE, generator=RANDOM), torch.rand(C, SIZE, SIZE, generator=RANDOM)


def column(values):
    return values.view(1, C, 1, 1)


def as_text(values):
    return ":".join(map(str, values.tolist()))


def save(folder: Path, name: str, content: dict) -> str:
    path = folder / name
    if path.suffix == ".pt":
        torch.save(content, path)
    elif path.suffix == ".safetensors":
        save_file(content, path)
    elif path.suffix == ".npz":
        np.savez(path, **{key: value.numpy() for key, value in content.items()})
    else:
        path.write_text(json.dumps({key: value.tolist() for key, value in content.items()}))
    return str(path)


# What the families' own code makes of latents z before it decodes them, by the form of its file.
PUBLISHED = {
    "LightningDiT": (
        "latents_stats.pt",
        {"mean": column(MEAN), "std": column(STD)},
        0.7,
        lambda z: z * column(STD) / 0.7 + column(MEAN),
    ),
    "RAE": ("stat.pt", {"mean": EACH_MEAN, "var": EACH_VAR}, 1.0, lambda z: z * torch.sqrt(EACH_VAR + 1e-5) + EACH_MEAN),
    "REPA-E": (
        "x-latents-stats.pt",
        {"latents_scale": column(1 / STD), "latents_bias": column(MEAN)},
        1.0,
        lambda z: z / column(1 / STD) + column(MEAN),
    ),
    "diffusers": ("config.json", {"latents_mean": MEAN, "latents_std": STD}, 1.0, lambda z: z * column(STD) + column(MEAN)),
    "EDM2": ("edm2.npz", {"mean": MEAN, "std": STD}, 0.5, lambda z: z / 0.5 * column(STD) + column(MEAN)),
    "tensors": ("own.safetensors", {"scale": 1 / STD, "shift": MEAN}, 2.0, lambda z: z / 2 * column(STD) + column(MEAN)),
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_latents_are_as_the_family_has_them(family, tmp_path):
    name, content, multiplier, formula = PUBLISHED[family]
    found = read(save(tmp_path, name, content), multiplier).undo(Z)
    assert found.dtype == torch.float32
    assert (found - formula(Z)).abs().max() < 1e-5
    if multiplier != 1.0:
        assert (read(save(tmp_path, name, content)).undo(Z) - formula(Z)).abs().max() > 0.1


def test_a_variance_has_raes_epsilon(tmp_path):
    """Where a feature never varied, its value is the mean, and nothing is divided by zero."""
    content = {"mean": EACH_MEAN, "var": 0 * EACH_VAR}
    assert (read(save(tmp_path, "stat.pt", content)).undo(Z) - (Z * 1e-5**0.5 + EACH_MEAN)).abs().max() < 1e-6


def test_in_words_it_is_the_same(tmp_path):
    there = read(save(tmp_path, "config.json", {"mean": MEAN.double(), "std": STD.double()}), 0.5)
    words = read(f"mean={as_text(MEAN.double())},std={as_text(STD.double())}", 0.5)
    assert words.sha256 == there.sha256
    assert torch.equal(words.undo(Z), there.undo(Z))
    assert read("scale=0.18125").undo(torch.ones(1, 4, 2, 2)).flatten()[0] == pytest.approx(1 / 0.18125)
    others = {read(text).sha256 for text in ("scale=0.18125", "scale=0.18215", "scale=0.18125:0.18125", "scale=0.18125,shift=1")}
    assert len(others) == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nowhere.pt", "no such file"),
        ("mean=1:2,std=1:2:3", "of 2 and 3 channels"),
        ("mean=1:2", "they are mean, not mean and std"),
        ("mean=1,mean=2", "each once"),
        ("median=1,std=2", "'median=1'; names are mean and std"),
        ("mean=1:x,std=1", "could not convert string to float: 'x'"),
        ("mean=0,std=0", "divided by zero"),
        ("mean=0,std=-1", "std holds negative numbers"),
        ("mean=nan,std=1", "mean holds NaN or infinity"),
        ("scale=0", "divided by zero"),
    ],
)
def test_text_that_says_none_is_one_sentence(given, said):
    with pytest.raises(UserError, match=r"^--latent-stats ") as caught:
        read(given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


ODD = {
    "a list": ("x.pt", lambda path: torch.save([1, 2], path), "it is no mapping"),
    "other names": ("x.pt", lambda path: torch.save({"model": torch.ones(2)}, path), "they are none, not mean and std"),
    "text": ("x.pt", lambda path: torch.save({"mean": "a", "std": "b"}, path), "its mean is str, no numbers"),
    "twice": ("x.json", lambda path: path.write_text('{"mean": [1], "latents_mean": [1], "std": [1]}'), "mean under two names"),
    "ragged": ("x.json", lambda path: path.write_text('{"mean": [1, [2]], "std": [1]}'), "holds no statistics"),
    "two of them": (
        "x.pt",
        lambda path: torch.save({"mean": torch.zeros(2, 4, 1, 1), "std": torch.ones(4)}, path),
        "[2, 4, 1, 1]",
    ),
    "another ending": ("x.yaml", lambda path: path.write_text("mean: 1"), "its name ends in '.yaml'"),
    "cut": ("x.npz", lambda path: path.write_bytes(b"PK\x03\x04 no more"), "holds no statistics"),
    "empty": ("x.json", lambda path: path.write_text(""), "holds no statistics"),
    "no zip": ("x.pt", lambda path: path.write_bytes(b"nothing"), "is not whole in torch's zip format"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_file_that_holds_none_is_one_sentence(kind, tmp_path):
    name, write, said = ODD[kind]
    write(tmp_path / name)
    with pytest.raises(UserError) as caught:
        read(str(tmp_path / name))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


class Hostile:
    def __reduce__(self):
        return os.mkdir, (str(Hostile.mark),)


def test_no_code_of_a_file_runs(tmp_path):
    Hostile.mark = tmp_path / "ran"
    torch.save({"mean": Hostile(), "std": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"was not unpickled: it holds posix\.mkdir"):
        read(str(tmp_path / "x.pt"))
    assert not Hostile.mark.exists()
    pickle.loads(pickle.dumps(Hostile()))  # which does what it is made for elsewhere
    assert Hostile.mark.exists()


@pytest.mark.parametrize(("text", "fits"), [("scale=2", True), ("scale=1:2:3:4", True), ("scale=1:2:3", False)])
def test_statistics_of_other_latents_are_refused(text, fits):
    if fits:
        return read(text).check(LatentShape(4, 8), "--latent-stats x")
    with pytest.raises(UserError, match="--latent-stats x is of 3 x 1 x 1 latents, and these are of 4 x 8 x 8"):
        read(text).check(LatentShape(4, 8), "--latent-stats x")


@pytest.fixture
def vae(tmp_path) -> Path:
    """A small random autoencoder of 4 channels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoencoderKL(
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
            layers_per_block=1,
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
        )
    network.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def configure(folder: Path, **changes: object) -> Autoencoder:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return Autoencoder(folder)


@torch.no_grad()
def test_a_configuration_s_own_mean_and_deviation(vae):
    """As diffusers' pipelines of latents_mean and latents_std decode, whose scaling_factor divides as well."""
    codec = configure(vae, latents_mean=MEAN.tolist(), latents_std=STD.tolist(), scaling_factor=0.5)
    network = AutoencoderKL.from_pretrained(vae, local_files_only=True).eval()
    expected = network.decode(Z * column(STD) / 0.5 + column(MEAN)).sample
    assert (codec.load(torch.device("cpu"))(Z) - expected).abs().max() < 1e-5
    assert (network.decode(Z / 0.5).sample - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    "changes", [{"latents_mean": [0.0] * 4}, {"latents_std": [1.0] * 4}, {"latents_mean": [0.0] * 3, "latents_std": [1.0] * 4}]
)
def test_a_configuration_of_half_of_them_is_refused(vae, changes):
    with pytest.raises(UserError, match="latents_mean and latents_std are not 4 numbers each"):
        configure(vae, **changes)


def test_pixels_can_be_normalised_too():
    codec = Pixels()
    assert torch.equal(codec(Z[:, :3]), Z[:, :3])
    codec.affine = Affine(2.0, 1.0)
    assert torch.equal(codec(Z[:, :3]), Z[:, :3] / 2 + 1)


def test_a_checkpoint_s_own_statistics_are_handed_on_as_json():
    held = SimpleNamespace(statistics=SimpleNamespace(scale=column(1 / STD), bias=column(MEAN)))
    told = json.loads(json.dumps(told_by_checkpoint(held)))
    config, _ = parse(["--preset", "digits"])
    assert (statistics_of(config, told).undo(Z) - (Z * column(STD) + column(MEAN))).abs().max() < 1e-5
    assert told_by_checkpoint(SimpleNamespace()) is None
    assert statistics_of(config) is None


def drawn(checkpoint: Path, folder: Path, *given: str) -> tuple[dict[str, bytes], dict]:
    config, _ = parse([*options(checkpoint, folder, num_fid_samples=4), *given])
    draw_files(config, fiducial.init("cpu"))
    return contents(folder), json.loads((folder / "run" / "manifest.json").read_text())


def test_a_run_is_by_them_and_records_their_values(tiny_checkpoint, tmp_path):
    scale = json.loads((DIGITS / "vae" / "config.json").read_text())["scaling_factor"]
    usual, plain = drawn(tiny_checkpoint, tmp_path / "a")
    same, manifest = drawn(tiny_checkpoint, tmp_path / "b", "--latent-stats", f"scale={scale}")
    other, far = drawn(tiny_checkpoint, tmp_path / "c", "--latent-stats", f"scale={scale}", "--latent-multiplier", "3")
    assert usual["000000.png"] == same["000000.png"] != other["000000.png"]
    assert "latent_stats_sha256" not in plain["identity"]
    assert manifest["identity"]["latent_stats_sha256"] != far["identity"]["latent_stats_sha256"]
    assert manifest["options"]["latent_stats"] == f"scale={scale}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--latent-stats", "scale=1:2"], "--latent-stats scale=1:2 is of 2 x 1 x 1 latents"),
        (["--latent-stats", "x.pt"], "--latent-stats x.pt: no such file"),
        (["--latent-multiplier", "2"], "--latent-multiplier 2.0: only used with --latent-stats"),
        (["--latent-stats", "scale=1", "--latent-multiplier", "0"], "--latent-multiplier 0.0: must be a finite number but 0"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(given, said, tiny_checkpoint, tmp_path):
    with pytest.raises(UserError, match=said):
        drawn(tiny_checkpoint, tmp_path / "run", *given)
    assert not (tmp_path / "run").exists()
