"""The embedded digits are what the README says: real scans, a classifier that reads them, a model that obeys its labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DIGITS, PLAIN, run_command

import fiducial
from fiducial import UserError
from fiducial.evaluation.data.opening import open_images
from fiducial.evaluation.data.references import open_reference
from fiducial.evaluation.features.digits import DigitsNet
from fiducial.evaluation.features.load import load_extractor
from fiducial.evaluation.making import make_reference
from fiducial.evaluation.settings import Settings
from fiducial.models.checkpoints import checkpoint
from fiducial.models.checkpoints.shapes import check
from fiducial.models.decoders.autoencoder import LATENT_SCALE, Autoencoder
from fiducial.models.decoders.rounding import to_uint8
from fiducial.models.latent import LatentShape
from scripts import train_demo

PRESETS = ("digits", "digits-flow")


@pytest.fixture(scope="module")
def scans():
    """Images (1797, 3, 64, 64) uint8, labels, and which are held out."""
    return train_demo.load_scans()


def read(images: np.ndarray) -> np.ndarray:
    """What the classifier reads in (N, 64, 64, 3) uint8."""
    extractor = load_extractor("digits", None, fiducial.init("cpu"))
    features, _ = extractor.apply(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    return extractor.logits(features).argmax(1).numpy()


def draw(preset: str, folder: Path, count: int, *options: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a preset, on two processes; a thousand as a user gets them, few as soon as can be."""
    arguments = ["--preset", preset, "--num-fid-samples", str(count), "--sample-dir", str(folder), *options]
    arguments += PLAIN if count < 1000 else []
    done = run_command("sample_ddp.py", *arguments, ranks=2, timeout=900)
    assert done.returncode == 0, done.stderr
    with np.load(next(folder.glob("*.npz"))) as arrays:
        return arrays["arr_0"], arrays["arr_1"]


def test_the_assets_take_at_most_20_mb_and_the_sit_12_more():
    flow = (DIGITS / "sit.safetensors").stat().st_size
    assert flow < 12e6
    assert sum(path.stat().st_size for path in DIGITS.rglob("*") if path.is_file()) - flow < 20e6


def test_the_classifier_reads_scans_it_never_saw(scans):
    images, labels, held_out = scans
    right = read(images[held_out].permute(0, 2, 3, 1).numpy()) == labels[held_out].numpy()
    assert right.mean() >= 0.97
    assert 170 < held_out.sum() < 185
    torch.manual_seed(0)
    untrained = DigitsNet()
    guesses = untrained.fc2(untrained(images[held_out].float())).argmax(1)
    assert (guesses == labels[held_out]).float().mean() < 0.5  # it had to learn that


def test_the_reference_is_that_of_the_scans_it_was_trained_on(scans, tmp_path, alone):
    images, _, held_out = scans
    np.savez(tmp_path / "scans.npz", arr_0=images[~held_out].permute(0, 2, 3, 1).numpy())
    extractor = load_extractor("digits", None, alone)
    made = make_reference(open_images(tmp_path / "scans.npz"), extractor, alone, Settings(), keep=len(images))
    kept = open_reference(DIGITS / "reference.npz")
    np.testing.assert_allclose(made.mu, kept.mu, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(made.sigma, kept.sigma, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(made.features, kept.features, rtol=1e-4, atol=1e-4)
    assert kept.provenance == replace(made.provenance, source="digits-train.npz")


def test_latents_of_scans_have_unit_variance_and_decode_to_the_scans(scans):
    images, _, held_out = scans
    vae = Autoencoder(DIGITS / "vae").load(torch.device("cpu"))
    pixels = images[held_out].float() / 127.5 - 1
    with torch.inference_mode():
        latents = LATENT_SCALE * vae.vae.encode(pixels).latent_dist.mean
        decoded = to_uint8(vae(latents))
    assert latents.mean((0, 2, 3)).abs().max() < 0.1
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.1
    error = decoded.permute(0, 3, 1, 2).float() - images[held_out]
    assert error.square().mean().sqrt() < 5


@pytest.mark.parametrize("family", ["DiT", "SiT"])
def test_the_checkpoint_has_ten_classes_and_a_null_label(family):
    path = DIGITS / f"{family.lower()}.safetensors"
    found = checkpoint.read(path)
    weights, kind = found.state, found.kind
    check(weights, path, f"{family}-XS/2", num_classes=10, latent=LatentShape(4, 8))
    assert (kind, found.family) == ("plain", family)
    with pytest.raises(UserError, match="found num_classes 10"):
        check(weights, path, f"{family}-XS/2", num_classes=1000, latent=LatentShape(4, 8))


def test_both_transformers_are_trained_on_the_same_latents(scans, tmp_path, monkeypatch):
    """And what comes out of a training is of the form of what is shipped."""
    few, seen, encode = [part[:30] for part in scans], [], train_demo.encode
    monkeypatch.setattr(train_demo, "encode", lambda *given: seen.append(encode(*given)) or seen[-1])
    (tmp_path / "vae").symlink_to(DIGITS / "vae")
    for train in (train_demo.train_dit, train_demo.train_sit):
        train(*few, tmp_path, steps=2, copies=2)
    dit, sit = seen
    known = int((~few[2]).sum())
    assert dit.mean.shape == dit.std.shape == (2 * known, 4, 8, 8)
    assert known < 30
    for name in ("mean", "std", "answers"):
        assert torch.equal(getattr(dit, name), getattr(sit, name))
    assert not torch.equal(dit.mean[:known], dit.mean[known:])  # jittered
    for name in ("dit.safetensors", "sit.safetensors"):
        made, shipped = (checkpoint.read(folder / name) for folder in (tmp_path, DIGITS))
        assert {key: value.shape for key, value in made.state.items()} == {
            key: value.shape for key, value in shipped.state.items()
        }
        assert (made.family, made.said) == (shipped.family, shipped.said)
        beside = f"{name}.classes.json"
        assert (tmp_path / beside).read_bytes() == (DIGITS / beside).read_bytes()


def test_the_rate_rises_stays_and_falls_to_nothing():
    flat = [train_demo.share_of_rate(step, 4000, 0.75) for step in (0, 99, 199, 2999, 3500, 4000)]
    assert flat == pytest.approx([0.005, 0.5, 1, 1, 0.5, 0], abs=1e-12)
    cosine = [train_demo.share_of_rate(step, 4000, 0.0) for step in (1000, 2000, 3000)]
    assert cosine == pytest.approx([(1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.long)])
def test_the_asked_digit_is_drawn(preset, count, tmp_path):
    images, labels = draw(preset, tmp_path, count, "--labels", "balanced")
    assert (read(images) == labels).mean() >= 0.95
    assert (np.bincount(labels) == count // 10).all()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("count", [pytest.param(count, marks=pytest.mark.long) for count in (100, 1000)])
def test_without_labels_all_digits_appear(preset, count, tmp_path):
    images, labels = draw(preset, tmp_path, count, "--labels", "null")
    assert (labels == 10).all()
    shares = np.bincount(read(images), minlength=10) / count
    assert shares.min() > (0.02 if count == 1000 else 0)
    assert shares.max() < 0.25
