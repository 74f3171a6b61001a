"""Generators in examples/: EDM2's sampler where the answer is known, IMM's steps, and runs with networks pickled as they are."""

import math
import sys

import numpy as np
import pytest
import torch
from conftest import DIGITS, contents, run_command
from pickled_networks import write_code, write_network

import sample_ddp
from examples import edm2, imm, trusted
from fiducial.diffusion.grids import Places
from fiducial.diffusion.prediction import from_x0
from fiducial.diffusion.samplers import SAMPLERS
from fiducial.models.decoders.table import decoder_of
from fiducial.sampling import plan
from fiducial.sampling.noise import standard_normal

COUNT, SIZE, SPREAD = 22, 16, 0.25


@pytest.fixture(scope="module")
def makers(tmp_path_factory):
    """A folder with the makers' code and networks, and the hashes of these."""
    folder = tmp_path_factory.mktemp("makers")
    code = write_code(folder / "code")
    hashes = {
        "edm2": write_network(folder / "edm2.pkl", code, "edm2"),
        "other": write_network(folder / "other.pkl", code, "edm2", label_dim=0, shift=0.1),
        "latents": write_network(folder / "latents.pkl", code, "edm2", img_channels=4, img_resolution=8),
        "imm": write_network(folder / "imm.pkl", code, "imm"),
    }
    return folder, hashes


def given(makers, name, **more):
    folder, hashes = makers
    options = {"net": folder / f"{name}.pkl", "sha256": hashes[name], "code": folder / "code"} | more
    return ",".join(f"{key}={value}" for key, value in options.items())


def command(folder, kind, options, *more, size=SIZE):
    run = ["--image-size", size, "--num-classes", 10, "--num-fid-samples", COUNT, "--per-proc-batch-size", 4, "--device", "cpu"]
    where = ["--sample-dir", folder, "--run-name", "run", "--exact", "--generator-options", options]
    return ["sample_ddp.py", "--generator", f"examples.{kind}:draw", *run, *where, *more]


def draw(monkeypatch, *arguments):
    """In this process."""
    monkeypatch.setattr(sys, "argv", [str(text) for text in arguments])
    sample_ddp.main()


def starts(shape):
    return np.stack([standard_normal(0, index, 0, shape) for index in range(COUNT)]).astype(np.float64)


def level(values):
    """127.5 x + 128, before it is truncated."""
    return np.clip(127.5 * values + 128, 0, 255).transpose(0, 2, 3, 1)


def exact_edm2(shape, mean):
    """Where the probability flow leads from sigma 80: all of a Gaussian's samples keep their distance in its own deviations."""
    return mean + SPREAD / math.hypot(SPREAD, 80) * (80 * starts(shape) - mean)


def test_edm2_images_are_those_of_the_known_answer_on_one_rank_and_two(makers, tmp_path, monkeypatch):
    guided = {"gnet": makers[0] / "other.pkl", "gnet_sha256": makers[1]["other"], "guidance": 1.5}
    options = given(makers, "edm2", **guided)
    draw(monkeypatch, *command(tmp_path / "one", "edm2", options))
    done = run_command(*command(tmp_path / "two", "edm2", options), ranks=2)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    with np.load(tmp_path / "one" / "run.npz") as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert (labels == plan.labels("random", 10, 0, 0, COUNT)).all()
    mean = (labels / 5 - 0.9)[:, None, None, None]
    guided_mean = 0.1 + 1.5 * (mean - 0.1)  # both have one deviation, so that guidance moves the mean alone
    assert np.abs(images + 0.5 - level(exact_edm2((3, SIZE, SIZE), guided_mean))).max() < 4  # of 32 steps
    assert np.abs(images + 0.5 - level(exact_edm2((3, SIZE, SIZE), mean))).max() > 12


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.long)])
def test_imm_images_are_those_of_the_known_answer_on_one_rank_and_two(ranks, makers, tmp_path, monkeypatch):
    options = given(makers, "imm", cfg=1.25, steps=2)
    draw(monkeypatch, *command(tmp_path / "one", "imm", options))
    if ranks > 1:
        done = run_command(*command(tmp_path / "two", "imm", options), ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert contents(tmp_path / "one") == contents(tmp_path / "two")
    with np.load(tmp_path / "one" / "run.npz") as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    mean = 1.25 * (labels / 5 - 0.9)[:, None, None, None]
    at_start = math.hypot(0.006 * SPREAD, 0.994 * 0.5)
    exact = mean + SPREAD / at_start * (0.5 * starts((3, SIZE, SIZE)) - 0.006 * mean)
    assert np.abs(images + 0.5 - level(exact)).max() < 0.51


def by_edm(denoise, noise, steps):
    """EDM's algorithm 1 without stochasticity, in its own terms (arXiv 2206.00364)."""
    ramp = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), steps) ** 7
    x = noise * ramp[0]
    for step, (here, there) in enumerate(zip(ramp, [*ramp[1:], 0.0], strict=True)):
        slope = (x - denoise(x, here)) / here
        ahead = x + (there - here) * slope
        if there:
            ahead = x + (there - here) * (slope + (ahead - denoise(ahead, there)) / there) / 2
        x = ahead if step < steps else x
    return x


class Gaussian:
    """A denoiser that counts."""

    asked = 0

    def __call__(self, x, sigma):
        self.asked += 1
        return (SPREAD**2 * x + sigma**2 * 0.3) / (SPREAD**2 + sigma**2)


def flow(steps, noise, levels=None, solver="flow-heun"):
    """As `edm2.sample`, with something spoiled."""
    places = Places(tuple(map(edm2.place, levels or edm2.sigmas(steps))), edm2.place)
    return SAMPLERS[solver].draw(from_x0(Gaussian()), edm2.SIGMA_MAX * noise, places, iter(()))


def test_edm2s_sampler_is_edms_and_ends_where_the_flow_does():
    noise, counted = torch.randn(5, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), Gaussian()
    found = edm2.sample(counted, noise, 32)
    exact = 0.3 + SPREAD / math.hypot(SPREAD, 80) * (80 * noise - 0.3)
    assert counted.asked == 63
    assert torch.allclose(found, by_edm(Gaussian(), noise, 32), rtol=0, atol=1e-10)
    off = (found - exact).abs().max()
    assert off < 0.02
    assert 3 < off / (edm2.sample(counted, noise, 64) - exact).abs().max() < 5  # of second order
    evenly = [80 - step * (80 - 0.002) / 31 for step in range(32)] + [0.0]
    assert min((one - exact).abs().max() for one in (flow(32, noise, evenly), flow(32, noise, solver="euler"))) > 0.05
    assert not torch.allclose(flow(31, noise), found, rtol=0, atol=1e-6)


def test_networks_of_latents_are_decoded_with_their_statistics_on_pixels_from_0_to_1(makers, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(makers[0] / "code"))
    draw(monkeypatch, *command(tmp_path, "edm2", given(makers, "latents", vae=DIGITS / "vae"), size=64))
    with np.load(tmp_path / "run.npz") as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    latents = exact_edm2((4, 8, 8), (labels / 5 - 0.9)[:, None, None, None])
    mean, std = (np.array(values)[None, :, None, None] for values in (edm2.RAW_MEAN, edm2.RAW_STD))
    row = decoder_of(str(DIGITS / "vae"))
    decoder = row.open(DIGITS / "vae").load(torch.device("cpu"))
    own = decoder.vae.decode(torch.from_numpy(latents / 0.5 * std + mean).float()).sample.detach().numpy()
    right, wrong = (np.floor(255 * np.clip(one, 0, 1)).transpose(0, 2, 3, 1) for one in (own, (own + 1) / 2))
    assert ((own > 0) & (own < 1)).mean() > 0.02
    assert np.abs(images - right).mean() < 0.5
    assert np.abs(images - wrong).mean() > 10
    assert trusted.codec(str(DIGITS / "vae"), imm.MEAN, imm.STD, 0.5, torch.device("cpu")).affine.shift.flatten()[0] == 0.86488


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"sha256": "0" * 64}, "is a pickle, and reading it runs the code in it"),
        ({"guidance": 1.4}, "guidance= and gnet= go together"),
        ({"net": "nowhere.pkl"}, "nowhere.pkl"),
        ({"sha256": ""}, "give the SHA-256 that they tell (the file's is "),
    ],
)
def test_files_that_nobody_vouches_for_are_not_read(more, said, makers, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pickle.load", lambda _: pytest.fail("it was read"))
    trusted.network.cache_clear()
    with pytest.raises(SystemExit) as end:
        draw(monkeypatch, *command(tmp_path, "edm2", given(makers, "edm2", **more)))
    error = capsys.readouterr().err
    assert end.value.code in (1, 2)
    assert said in error
    assert "Traceback" not in error


def test_the_file_and_its_hash_have_to_be_named(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        draw(monkeypatch, *command(tmp_path, "imm", "steps=1"))
    assert "missing a required argument: 'net'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
