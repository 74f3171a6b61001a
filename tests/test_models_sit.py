"""SiT: velocity on a straight path, against an integration written out here, and where the velocity is known."""

import argparse
import json
import math
import os
import signal
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import DIGITS, PLAIN, contents, draw_files, options, randomised
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from test_models_main import command
from test_reliability import Launched

import fiducial
import sample_ddp
from fiducial import UserError
from fiducial.diffusion.prediction import from_velocity
from fiducial.diffusion.samplers import SAMPLERS
from fiducial.models import DiT_models, probe
from fiducial.models.checkpoints import checkpoint
from fiducial.models.networks.table import NETWORKS, kin
from fiducial.sampling.forecast import forecast
from fiducial.sampling.noise import standard_normal

CPU = torch.device("cpu")
EULER = SAMPLERS["euler"]
MEAN, DEVIATION = 0.7, 0.4  # of Gaussian data
SIT = {"model": "SiT-XS/8", "sampler": "euler", "num_sampling_steps": 7}
SPREAD = 0.3
TRAINED = argparse.Namespace(model="SiT-XS/8", path_type="Linear", prediction="velocity", loss_weight=None, num_classes=10)


def saved(folder, learn_sigma=True, **beside):
    """Weights of a SiT for the digits' latents: bare, or as its training script leaves them."""
    network = randomised(DiT_models["DiT-XS/8"](input_size=8, num_classes=10, learn_sigma=learn_sigma), std=0.1)
    state = network.state_dict()
    torch.save({"model": state, "ema": state, "opt": {}, **beside} if beside else state, folder / "sit.pt")
    return folder / "sit.pt"


def draw_here(*arguments):
    return draw_files(sample_ddp.parse([str(argument) for argument in arguments])[0], fiducial.init("cpu"))


def slope(t):
    """How the distance to the mean grows along the flow of Gaussian data, d log(x - mean) / dt."""
    return (t - (1 - t) * DEVIATION**2) / ((1 - t) ** 2 * DEVIATION**2 + t**2)


def gaussian(x, t):
    """The velocity towards noise where the data are Gaussian."""
    return slope(t) * (x - (1 - t) * MEAN) - MEAN


def integrated(text, velocity=gaussian):
    """(where 0 ends, where a unit of noise ends beyond it), by the row of the table."""
    x = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    zero, one = EULER.draw(from_velocity(velocity), x, EULER.grid(text, CPU), iter(())).flatten().tolist()
    return zero, one - zero


@pytest.mark.parametrize("count", [2, 10, 250])
def test_euler_on_a_gaussian_is_the_exact_recursion(count):
    """Around the mean, N - 1 steps of equal width."""
    times = np.linspace(1, 0, count)
    factor = math.prod(1 + (there - here) * slope(here) for here, there in pairwise(times))
    constant, from_noise = integrated(str(count))
    assert from_noise == pytest.approx(factor, rel=1e-12, abs=1e-14)
    assert constant == pytest.approx(MEAN, rel=1e-12)


def test_euler_approaches_the_gaussian_in_the_first_order():
    errors = [integrated(str(count + 1))[1] / DEVIATION - 1 for count in (250, 500, 1000)]
    assert abs(errors[-1]) < 0.003
    assert np.divide(errors[1:], errors[:-1]) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "wrong",
    [lambda x, t: gaussian(x, 1 - t), lambda x, t: -gaussian(x, t), lambda x, t: gaussian(x, t) + MEAN],
    ids=["the clock runs the other way", "towards the image", "no mean"],
)
def test_another_velocity_is_noticed(wrong):
    constant, from_noise = integrated("1001", wrong)
    assert abs(from_noise / DEVIATION - 1) + abs(constant / MEAN - 1) > 0.1


def test_its_grid_has_both_ends_and_takes_one_step_less():
    grid = EULER.grid("250", CPU)
    assert (len(grid), grid.points[0].t, grid.points[-1].t) == (249, 1.0, 0.0)
    assert np.allclose([point.t for point in grid.points], 1 - np.linspace(0, 1, 250), rtol=0, atol=1e-15)
    for text, said in (("1", "takes at least 2"), ("ddim50", "takes a count")):
        with pytest.raises(ValueError, match=said):
            EULER.steps(text)


@torch.no_grad()
@pytest.mark.parametrize("learn_sigma", [True, False])
def test_an_image_is_that_of_an_integration_in_float64(learn_sigma, tmp_path):
    """On SiT's own clock, 0 noise and 1 the image, with torch's DiT in double precision; 3 of 4 channels guided."""
    choices = {"global_seed": 7, "cfg_scale": 2.5, "cfg_channels": 3, "labels": "3,8", "num_fid_samples": 6}
    path = saved(tmp_path, learn_sigma)
    draw_here(*options(path, tmp_path, **SIT | choices))
    index, count = 5, 7
    network = DiT_models["DiT-XS/8"](input_size=8, num_classes=10, learn_sigma=learn_sigma)
    network.load_state_dict(torch.load(path))
    network.double().eval()
    network.t_embedder.forward = lambda t: network.t_embedder.mlp(embedded(t))
    x = torch.from_numpy(standard_normal(7, index, 0, (1, 4, 8, 8))).double()
    for here, there in pairwise(np.linspace(0, 1, count)):
        strong, weak = (network(x, torch.tensor([here]), torch.tensor([label]))[:, :4] for label in (8, 10))
        velocity = torch.cat([weak[:, :3] + 2.5 * (strong - weak)[:, :3], strong[:, 3:]], dim=1)
        x = x + (there - here) * velocity
    decoded = AutoencoderKL.from_pretrained(DIGITS / "vae").double().decode(x / 0.18215).sample
    expected = (127.5 * decoded + 128).clamp(0, 255).byte()[0].permute(1, 2, 0).numpy().astype(int)
    with np.load(tmp_path / "run.npz") as arrays:
        drawn = arrays["arr_0"][index].astype(int)
    assert expected.std() > 1
    assert np.abs(drawn - expected).max() <= 1
    assert (drawn != expected).mean() < 0.01


def embedded(t):
    """The sinusoids of an unscaled time, in float64."""
    angles = t[:, None].double() * torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float64) / 128)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def test_a_file_that_says_so_is_drawn_as_a_sit_and_another_only_by_name(tmp_path):
    small = {"sampler": "euler", "num_fid_samples": 4}
    told = options(saved(tmp_path, args=TRAINED), tmp_path, **small)
    at = told.index("--model")
    draw_here(*told[:at], *told[at + 2 :], "--model", "SiT-XS/8", "--run-name", "told")
    bare = options(saved(tmp_path), tmp_path, **small)
    by_name = "; if it is a SiT, give --model SiT-XS/8 or a REPA, give --model REPA-XS/8"
    unnamed = ["--ckpt", tmp_path / "sit.pt", "--vae", DIGITS / "vae", "--sample-dir", tmp_path, "--sampler"]
    with pytest.raises(UserError, match=rf"--sampler euler: does not solve what DiT-XS/8 was .*, heun{by_name}$"):
        draw_here(*unnamed, "euler")
    with pytest.raises(UserError, match=r"--sampler euler: does not solve what DiT-XS/8 was trained on; choose from .*, heun$"):
        draw_here(*bare)  # which says that it is a DiT
    saved(tmp_path, learn_sigma=False)
    with pytest.raises(UserError, match=rf"learn_sigma False.*, which the samplers take from a DiT{by_name}$"):
        draw_here(*unnamed, "ddim")
    saved(tmp_path)
    draw_here(*bare, "--model", "SiT-XS/8", "--run-name", "bare")
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("told", "bare")]
    assert [manifest["identity"]["model"] for manifest in manifests] == ["SiT-XS/8"] * 2
    assert (tmp_path / "told.npz").read_bytes() == (tmp_path / "bare.npz").read_bytes()


def without_preset(folder, **beside):
    """Arguments of a run of what `saved` leaves, in which neither model nor sampler is named."""
    sizes = ("--num-fid-samples", 4, "--num-sampling-steps", 3, "--cfg-channels", 4, "--no-probe", *PLAIN)
    return "--ckpt", saved(folder, **beside), "--vae", DIGITS / "vae", *sizes, "--sample-dir", folder


@pytest.mark.parametrize(("family", "sampler"), [(spec.name, spec.sampler) for spec in kin(None)])
def test_without_a_sampler_that_of_the_network_is_taken_and_recorded(family, sampler, tmp_path):
    """The name of the folder, which has the fingerprint, is that of a run whose sampler was typed."""
    of_repa = argparse.Namespace(path_type="linear", prediction="v", num_classes=10)
    trained = {"SiT": TRAINED, "REPA": of_repa}.get(family, argparse.Namespace(num_classes=10))
    given = without_preset(tmp_path, args=trained)
    manifests = []
    for more in (("--model", f"{family}-XS/8", "--sampler", sampler), ("--model", f"{family}-XS/8"), ()):
        npz = draw_here(*given, *more)
        manifests.append(json.loads((npz.with_suffix("") / "manifest.json").read_text()))
    assert len(list(tmp_path.glob("*.npz"))) == 1
    assert {one[part]["sampler"] for one in manifests for part in ("identity", "options")} == {sampler}
    named = family if family in ("DiT", "SiT") else "SiT"  # whose sampler it is too
    assert f"{sampler} for a {named}" in " ".join(sample_ddp.build_parser().format_help().split())


def test_a_dry_run_says_the_sampler_of_a_sit_and_steps_are_checked_by_it(tmp_path, capsys):
    given = without_preset(tmp_path, args=TRAINED)
    forecast(sample_ddp.parse([str(one) for one in given])[0], fiducial.init("cpu"), False, 0)
    assert "sampler   euler, 3 steps: 2 evaluations of the network for a block" in capsys.readouterr().out
    with pytest.raises(UserError, match="--num-sampling-steps ddim50: --sampler euler takes a count such as 20"):
        draw_here(*given, "--num-sampling-steps", "ddim50")
    assert not list(tmp_path.glob("*.npz"))


def trained(**other):
    """Arguments of its training, some of them others."""
    return argparse.Namespace(**vars(TRAINED) | other)


@pytest.mark.parametrize(
    ("said", "path", "prediction", "grid"),
    [
        ({"path_type": "GVP"}, "gvp", None, "places"),
        ({"path_type": "VP"}, "vp", None, "places"),
        ({"path_type": "GVP", "prediction": "score"}, "gvp", "score", "places,start=0.999"),
        ({"prediction": "noise"}, None, "noise", "places,start=0.999"),
    ],
)
def test_path_and_prediction_of_its_training_are_drawn_with_and_recorded(said, path, prediction, grid, tmp_path):
    """As where they are typed for weights that do not say them; and otherwise than without."""
    told = {name: value for name, value in (("path", path), ("prediction", prediction)) if value}
    typed = [text for name, value in told.items() for text in (f"--{name}", value)]
    where = {name: tmp_path / name for name in ("told", "typed", "usual")}
    for folder in where.values():
        folder.mkdir()
    common = ("--model", "SiT-XS/8", "--grid", grid)
    npz = draw_here(*without_preset(where["told"], args=trained(**said)), "--grid", grid)
    other = draw_here(*without_preset(where["typed"]), *common, *typed)
    identity = json.loads((npz.with_suffix("") / "manifest.json").read_text())["identity"]
    assert {name: identity.get(name) for name in ("path", "prediction")} == {"path": path, "prediction": prediction}
    assert npz.read_bytes() == other.read_bytes()
    usual = draw_here(*without_preset(where["usual"], args=TRAINED), *("--grid", "places,start=0.999"))
    assert npz.read_bytes() != usual.read_bytes()


@pytest.mark.parametrize(
    ("beside", "more", "said"),
    [
        ({"args": TRAINED}, {"model": "DiT-XS/8"}, "of SiT's kind, which predicts velocity and not noise as a DiT"),
        ({"args": trained(path_type="Cosine")}, SIT, "is a SiT with path_type Cosine, which no"),
        ({"args": trained(prediction="x0")}, SIT, "is a SiT with prediction x0"),
        (
            {"args": trained(path_type="GVP")},
            SIT | {"path": "linear"},
            "--path linear: .* says of its training gvp; leave --path",
        ),
        ({"args": TRAINED}, SIT | {"prediction": "x0"}, "--prediction x0: .* says of its training velocity; leave --prediction"),
        ({"args": trained(prediction="score")}, SIT, "begins at pure noise, of which a score tells no image"),
        ({"args": argparse.Namespace(path_type="linear", prediction="v")}, SIT, "of REPA's kind"),
        ({}, SIT | {"sampler": "ddpm"}, "--sampler ddpm: does not solve what SiT-XS/8 was trained on; choose from euler"),
        ({}, SIT | {"sampler": "heun"}, "--sampler heun: does not solve"),
        ({}, SIT | {"model": "SiT-XS/3"}, "--model SiT-XS/3: no such model; choose from DiT-XL/2"),
    ],
)
def test_what_does_not_go_together_is_refused(beside, more, said, tmp_path):
    with pytest.raises(UserError, match=said):
        draw_here(*options(saved(tmp_path, **beside), tmp_path / "samples", **more))
    assert not (tmp_path / "samples").exists()


@pytest.mark.long  # as test_any_ranks.py does for every network
def test_killed_and_resumed_on_other_ranks_it_ends_in_the_same_bytes(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    path, many = saved(tmp_path), SIT | {"num_fid_samples": 90, "num_sampling_steps": 20}
    draw_here(*options(path, tmp_path / "one", **many), "--exact")
    run = Launched(tmp_path / "two", arguments := [*options(path, tmp_path / "two", **many), "--exact"])
    os.kill(run.reach(20).workers()[1], signal.SIGKILL)
    run.ended()
    draw_here(*arguments)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def centred_gaussian(x, t):
    """The velocity towards noise where pixels are independent, of mean 0 and standard deviation SPREAD."""
    return x * (t - (1 - t) * SPREAD**2) / (t**2 + ((1 - t) * SPREAD) ** 2)


class Stub:
    """A network of latents that are an image and some spread, or that alone, by the clock and prediction of a family."""

    in_channels = 4

    def __init__(self, family, image):
        self._family, self._image = family, image

    def __call__(self, x, t, _):
        if self._family == "JiT":
            return self._image.expand_as(x)
        if self._family == "DiT":
            alpha = math.prod(1 - beta for beta in np.linspace(1e-4, 0.02, 1000)[: int(t.item()) + 1]) ** 0.5
            return (x - alpha * self._image) / math.sqrt(1 - alpha**2)
        t = t.item() if self._family == "REPA" else 1 - t.item()
        velocity = centred_gaussian(x - (1 - t) * self._image, t) - self._image
        return velocity if self._family == "REPA" else -velocity


@pytest.mark.parametrize("family", [spec.name for spec in kin(None)])
@pytest.mark.parametrize("size", [0.0, 0.5, 1.0, 1.5])
def test_a_family_is_known_by_its_answers(family, size):
    image = size * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    stub = Stub(family, image)
    answers = {name: probe.respond(stub, 10, 8, CPU, False, spec) for name, spec in NETWORKS.items() if spec.is_alike}
    assert probe.wrong(answers[family]) is None or (family, size) == ("DiT", 1.5)
    if family == "SiT":
        assert answers["SiT"].correlation == pytest.approx(1 / math.sqrt(1 + size**2), abs=0.06)
        assert size < 0.4 or probe.wrong(answers["DiT"])
        assert "correlation_at_1000" in answers["SiT"].recorded()
    else:
        assert probe.wrong(answers["SiT"])


def test_a_velocity_on_a_clock_that_runs_the_other_way_is_told():
    """REPA's: at both ends it answers as a SiT does, and better, because at its image's end nothing is taken away."""
    image = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    found = probe.respond(Stub("REPA", 0.3 * image), 10, 8, CPU, False, NETWORKS["SiT"])
    assert found.correlation > 0.99
    assert "clock runs the other way than a SiT's, as SiT's and REPA's do of each other" in probe.wrong(found)
    assert probe.wrong(probe.respond(Stub("REPA", 0.3 * image), 10, 8, CPU, False, NETWORKS["REPA"])) is None
    asked = probe.respond(Stub("SiT", 0.3 * image), 10, 8, CPU, False, NETWORKS["REPA"])
    assert "clock runs the other way than a REPA's" in probe.wrong(asked)


def test_a_family_whose_answer_to_pure_noise_says_nothing_is_not_judged_as_velocity(monkeypatch):
    """The image that a network makes of pure noise is of any size, and like no noise."""
    spec = replace(NETWORKS["SiT"], name="other", predicts="score")
    monkeypatch.setitem(probe.NETWORKS, "other", spec)
    image = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    stub = Stub("JiT", image)
    found = probe.respond(stub, 10, 8, CPU, False, spec)
    assert abs(found.correlation) < 0.5
    assert probe.wrong(found) is None
    assert probe.looks_like(NETWORKS["DiT"], lambda asked: replace(found, family=asked.name)) is None
    assert "NaN" in probe.wrong(replace(found, size=math.nan))
    assert found.recorded() == {}


def probed(path):
    _, out = command("inspect", path, "--probe", "--json")
    return json.loads(out)


def test_inspect_says_as_which_family_a_bare_file_answers(tmp_path):
    """The digits' DiT, and a network that returns its own negated input where SiT's clock says noise."""
    found = probed(DIGITS / "dit.safetensors")
    assert found["family"] == "DiT, as it predicts noise"
    network = randomised(DiT_models["DiT-XS/2"](input_size=8, num_classes=10), std=0.0)
    negates(network)
    save_file(network.state_dict(), tmp_path / "sit.safetensors")
    found = probed(tmp_path / "sit.safetensors")
    assert (found["family"], found["model"], found["refused"]) == ("SiT, as it predicts velocity", "SiT-XS/2", None)
    assert found["command"].endswith("--model SiT-XS/2")
    assert found["correlation_at_1000"] > 0.9
    network = checkpoint.read(tmp_path / "sit.safetensors").load("SiT-XS/2", 10, CPU)
    said = probe.respond(network, 10, 8, CPU, False)
    with pytest.raises(UserError, match=r"does not predict noise .* it answers as a SiT does, which --model SiT-\.\.\. is for"):
        probe.require(said, tmp_path, NETWORKS["DiT"], lambda spec: probe.respond(network, 10, 8, CPU, False, spec))


def negates(network):
    """Makes a network one that returns its negated input, but for what a normalisation over 160 numbers leaves."""
    patch = network.patch_size**2 * network.in_channels
    network.pos_embed.data.zero_()
    embed = network.x_embedder.proj.weight.data
    last = network.final_layer.linear.weight.data  # rows: pixel by pixel, channels together
    scale = 20.0
    for channel in range(4):
        for row in range(2):
            for column in range(2):
                at = (channel * 2 + row) * 2 + column
                embed[at, channel, row, column] = 1.0
                embed[at + patch, channel, row, column] = -1.0
                last[(row * 2 + column) * network.out_channels + channel, at] = -0.5 / math.sqrt(5)
                last[(row * 2 + column) * network.out_channels + channel, at + patch] = 0.5 / math.sqrt(5)
    network.x_embedder.proj.weight.data = embed * scale
