"""Runs of the families' networks: images by an integration of their second writings, refusals, and answers to noise."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import second_writings as second
import torch
from conftest import DIGITS, PLAIN, draw_files
from diffusers import AutoencoderKL
from families import lively, write
from test_models_families import in_files, raev2_files

import fiducial
import sample_ddp
from fiducial import UserError
from fiducial.diffusion.prediction import PREDICTIONS
from fiducial.models import probe
from fiducial.models.checkpoints import checkpoint
from fiducial.models.latent import LatentShape
from fiducial.models.networks.table import MEAN_VELOCITY, NETWORKS, kin, spec_of
from fiducial.sampling.noise import standard_normal
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.source import weak
from fiducial.sampling.source.from_checkpoint import check_options, tell_of_guidance

CPU = torch.device("cpu")
STEPS, SEED, LABEL, NULL, SCALE = 4, 7, 3, 10, 2.5
BLOCKS, HEADS = 6, 5  # of the smallest size
MODELS = {
    "REPA": "REPA-XS/4",
    "LightningDiT": "LightningDiT-XS/2",
    "JiT": "JiT-XS/8",
    "DDT": "DDT-XS/2",
    "RAE": "RAE-XS/1",
    "RAEv2": "RAEv2-XS/1",
    "MeanFlow": "MeanFlow-XS/4",
    "iMF": "iMF-XS/2",
}
# The velocity towards noise by the second writing, at a time that is 1 at noise.
VELOCITIES = {
    "REPA": lambda s, x, t, y: second.of_sit(s, x, t, y, HEADS),
    "LightningDiT": lambda s, x, t, y: -second.of_lightningdit(s, x, 1 - t, y, HEADS, False),
    "JiT": lambda s, x, t, y: (x - second.of_jit(s, x, 1 - t, y, HEADS, 2)) / t,
    "DDT": lambda s, x, t, y: -second.of_ddt(s, x, 1 - t, y, HEADS, 4, 2),
    "RAE": lambda s, x, t, y: second.of_rae(s, x, t, y, (HEADS, 4), 5),
    "RAEv2": lambda s, x, t, y: (x - second.of_raev2(raev2_files(s), x, t, y, (HEADS, 4), 5)) / max(t, 0.05),
    "MeanFlow": lambda s, x, t, y: second.of_sit(s, x, t, y, HEADS, gap=0.0),
}
DRAWN = [family for family in VELOCITIES if NETWORKS[family].predicts in PREDICTIONS]


def shape(family):
    """Channels, and the side of latents."""
    return (3, 16) if family == "JiT" else (4, 8)


def network(family):
    channels, side = shape(family)
    return lively(spec_of(MODELS[family]).build[MODELS[family]](input_size=side, in_channels=channels, num_classes=10), std=0.05)


def arguments(family, folder, state, *more):
    """Of a run of weights that are alone in a file."""
    channels, side = shape(family)
    codec = ("--vae", "pixels") if channels == 3 else ("--vae", DIGITS / "vae")
    size = side if channels == 3 else 64
    sizes = ("--num-fid-samples", 2, "--per-proc-batch-size", 2, "--num-sampling-steps", STEPS, "--image-size", size)
    given = ("--ckpt", write(state, folder), *codec, *sizes, "--cfg-channels", channels, "--global-seed", SEED, "--labels", LABEL)
    model = ("--model", MODELS[family]) if NETWORKS[family].is_alike else ()
    where = ("--sample-dir", folder, "--run-name", "run", "--no-probe", *PLAIN)
    return [*map(str, (*given, *model, "--sampler", "euler", *where, *more))]


def draw(given):
    return draw_files(sample_ddp.parse(given)[0], fiducial.init("cpu"))


@torch.no_grad()
@pytest.mark.parametrize("family", DRAWN)
def test_an_image_is_that_of_an_integration_of_the_second_writing(family, tmp_path):
    is_guided = NETWORKS[family].guidance == "outside"
    state = network(family).state_dict()
    npz = draw(arguments(family, tmp_path, state, "--cfg-scale", SCALE if is_guided else 1.0))
    channels, side = shape(family)
    x = torch.from_numpy(standard_normal(SEED, 1, 0, (1, channels, side, side)))[0].double()
    for here, there in pairwise(np.linspace(1, 0, STEPS)):
        strong = VELOCITIES[family](state, x, here, LABEL)
        weak = VELOCITIES[family](state, x, here, NULL) if is_guided else strong
        x = x + (there - here) * (weak + SCALE * (strong - weak))
    if channels == 4:
        x = AutoencoderKL.from_pretrained(DIGITS / "vae").double().decode(x[None] / 0.18215).sample[0]
    expected = (127.5 * x + 128).clamp(0, 255).byte().permute(1, 2, 0).numpy().astype(int)
    with np.load(npz) as arrays:
        drawn = arrays["arr_0"][1].astype(int)
    assert expected.std() > 1
    assert np.abs(drawn - expected).max() <= 1
    assert (drawn != expected).mean() < 0.01
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["identity"]["model"] == MODELS[family]


@pytest.mark.parametrize(
    ("family", "given", "said"),
    [
        ("REPA", 3, "warning: --cfg-channels 3: REPA's published numbers guide all 4; give --cfg-channels 4 for them"),
        ("LightningDiT", 4, "warning: --cfg-channels 4: LightningDiT's published numbers guide the first 3 of 4; give"),
        ("REPA", 4, ""),
        ("LightningDiT", 3, ""),
    ],
)
def test_other_channels_than_the_published_are_said(family, given, said, capsys):
    config = sample_ddp.parse(["--model", MODELS[family], "--cfg-channels", str(given)])[0]
    tell_of_guidance(config, LatentShape(4, 8))
    error = capsys.readouterr().err
    assert said in error
    assert bool(said) is bool(error)


def test_which_average_was_drawn_is_recorded(tmp_path):
    state = {f"net.{key}": value for key, value in network("JiT").state_dict().items()}
    other = {key: value + 0.01 for key, value in state.items()}
    content = {"model": state, "model_ema1": state, "model_ema2": other}
    identities = []
    for key in ("model_ema1", "model_ema2"):
        (tmp_path / key).mkdir()
        draw(arguments("JiT", tmp_path / key, content, *(() if key == "model_ema1" else ("--weights-key", key))))
        identities.append(json.loads((tmp_path / key / "run" / "manifest.json").read_text())["identity"])
    assert [one["weights_key"] for one in identities] == ["model_ema1", "model_ema2"]
    path = tmp_path / "model_ema2" / "checkpoint.pt"
    taken = {key: checkpoint.read(path, key).is_first for key in (None, "model_ema1", "model_ema2")}
    assert taken == {None: True, "model_ema1": True, "model_ema2": False}


def test_a_second_network_is_of_the_family_that_its_file_says(tmp_path):
    path = write({"ema": network("DDT").state_dict()}, tmp_path)
    config = SamplingConfig(model=MODELS["REPA"], guidance_ckpt=path, cfg_scale=2.0)
    assert weak.model_of(config) == MODELS["DDT"]
    with pytest.raises(UserError, match="as a SiT; leave --guidance-model out, or give a DDT's"):
        weak.model_of(replace(config, guidance_model="SiT-XS/2"))


def test_a_network_that_is_told_its_guidance_guides_no_channels_here(tmp_path):
    state, found = in_files(network("iMF").state_dict()), []
    for channels in (1, 4, 400):
        (tmp_path / str(channels)).mkdir()
        draw(arguments("iMF", tmp_path / str(channels), state, "--cfg-scale", 2, "--cfg-channels", channels, "--sampler", "jump"))
        found.append(json.loads((tmp_path / str(channels) / "run" / "manifest.json").read_text())["fingerprint"])
    assert len(set(found)) == 1


def test_a_network_that_was_trained_to_be_guided_is_not_guided_again(tmp_path):
    with pytest.raises(UserError, match=r"--cfg-scale 1\.5: MeanFlow-XS/4 was trained .* give --cfg-scale 1"):
        draw(arguments("MeanFlow", tmp_path, network("MeanFlow").state_dict(), "--cfg-scale", 1.5))
    assert not list(tmp_path.glob("*.npz"))


@pytest.mark.parametrize(
    "more", [("--guidance-ends", "open"), ("--cfg-schedule", "linear"), ("--guidance-ckpt", "other.pt")], ids=" ".join
)
def test_a_network_that_is_told_its_guidance_takes_no_other(more):
    config, _ = sample_ddp.parse(["--model", MODELS["iMF"], "--ckpt", "x.pt", "--cfg-scale", "8", *more])
    with pytest.raises(UserError, match=f"{' '.join(more)}: iMF-XS/2 is told scale and interval, and guides itself by them"):
        check_options(config)


def test_a_ddt_is_drawn_at_the_size_that_is_asked_for(tmp_path):
    """Its weights do not tell theirs; others' do."""
    state = network("DDT").state_dict()
    given = arguments("DDT", tmp_path, state)
    given[given.index("--image-size") + 1] = "32"
    with np.load(draw(given)) as arrays:
        assert arrays["arr_0"].shape == (2, 32, 32, 3)
    (tmp_path / "other").mkdir()
    given = arguments("RAE", tmp_path / "other", network("RAE").state_dict())
    given[given.index("--image-size") + 1] = "32"
    with pytest.raises(UserError, match=r"--image-size 32: .* is of 64, with 8 latent pixels"):
        draw(given)


class Answers:
    """A network of a family that knows its data: Gaussian latents of this mean and deviation, by the family's own clock."""

    in_channels = 4

    def __init__(self, spec, mean, spread=0.3, wrong=None):
        self.spec, self.mean, self.spread, self.wrong = spec, mean, spread, wrong

    def __call__(self, x, t, *_):
        noise, image = self.spec.clock(1.0), self.spec.clock(0.0)
        t = (t.item() - image) / (noise - image)
        t = 1 - t if self.wrong == "clock" else t
        centred = x - (1 - t) * self.mean
        of_image = (1 - t) * self.spread**2 / ((1 - t) ** 2 * self.spread**2 + t**2)  # E[x0 | x] = mean + this * centred
        of_noise = t / ((1 - t) ** 2 * self.spread**2 + t**2)
        x0, noise_in = self.mean + of_image * centred, of_noise * centred
        if self.wrong == "prediction":
            return noise_in
        if self.spec.predicts == "x0":
            return x0
        velocity = noise_in - x0
        return velocity if noise > image else -velocity


FLOWS = [spec for spec in NETWORKS.values() if spec.path == "linear"]
MEAN = 0.5 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def asked(spec, network):
    return probe.respond(network, 10, 8, CPU, False, spec)


@pytest.mark.parametrize("spec", FLOWS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("size", [0.0, 0.6, 1.5])
def test_each_family_answers_noise_as_it_should(spec, size):
    found = asked(spec, Answers(spec, 2 * size * MEAN))
    assert probe.wrong(found) is None
    root = 1 / math.sqrt(1 + (2 * size * MEAN).square().mean())
    assert found.correlation == pytest.approx(0 if spec.predicts == "x0" else root, abs=0.08)
    told = probe.in_words(found.recorded())
    assert told.startswith(f"the network predicts {'the image' if spec.predicts == 'x0' else 'velocity'}: correlation ")


@pytest.mark.parametrize("spec", FLOWS, ids=lambda spec: spec.name)
def test_a_clock_that_runs_the_other_way_is_told(spec):
    assert probe.wrong(asked(spec, Answers(spec, 0.3 * MEAN, wrong="clock")))


@pytest.mark.parametrize("spec", [spec for spec in FLOWS if spec.clock(1.0) == 0.0], ids=lambda spec: spec.name)
def test_a_network_that_predicts_noise_is_told(spec):
    """On a clock that is 1 at noise a prediction of noise answers there as a velocity does."""
    assert probe.wrong(asked(spec, Answers(spec, 0.3 * MEAN, wrong="prediction")))


def test_an_image_is_judged_by_what_it_has_of_the_noise():
    spec = NETWORKS["JiT"]
    found = asked(spec, Answers(spec, MEAN))
    assert set(found.recorded()) == {"image_correlation_at_1000", "image_size_at_1000", "image_correlation_at_500"}
    assert "times its size, less than 1 expected of the mean" in probe.wrong(asked(spec, Answers(spec, 100 * MEAN)))
    assert probe.doubt_of(found.recorded()) is None


def test_noise_is_as_loud_as_a_network_was_trained_with():
    """JiT at 512 pixels."""
    seen = []

    class Ear:
        in_channels = 3

        def __call__(self, x, *_):
            seen.append(x.std().item())
            return torch.zeros_like(x)

    probe.respond(Ear(), 10, 512, CPU, False, NETWORKS["JiT"])
    assert seen[0] == pytest.approx(2.0, abs=0.01)


def test_only_families_whose_weights_look_the_same_are_guessed():
    assert [spec.name for spec in kin(None)] == ["DiT", "SiT", "REPA"]
    assert kin(NETWORKS["JiT"]) == []
    assert probe.looks_like(NETWORKS["JiT"], lambda _: None) is None
    assert {spec.predicts for spec in NETWORKS.values()} == set(probe.JUDGES)
    assert NETWORKS["iMF"].predicts == MEAN_VELOCITY
