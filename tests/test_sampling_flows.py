"""Runs of a flow: what its options come to, what stands in the identity, and that an image depends on its index only."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import DIGITS, digits_source, draw_files, options, randomised
from safetensors.torch import save_file

import fiducial
import sample_ddp
from fiducial import UserError
from fiducial.diffusion.guidance import Guidance
from fiducial.diffusion.samplers import SAMPLERS
from fiducial.models import DiT_models
from fiducial.models.networks.table import NETWORKS
from fiducial.sampling.noise import standard_normal
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.source.checking import FirstImages
from fiducial.sampling.source.flow import Flow
from fiducial.sampling.source.from_checkpoint import check_options
from fiducial.sampling.source.numerics import REFERENCE

CPU = torch.device("cpu")
USUAL = SamplingConfig(
    model="SiT-XS/8",
    image_size=64,
    num_classes=10,
    cfg_scale=2.0,
    cfg_channels=4,
    sampler="euler",
    num_sampling_steps="6",
    per_proc_batch_size=4,
    labels="3,8",
    global_seed=7,
)
FLOWS = [name for name, row in SAMPLERS.items() if row.spacing and not row.takes]


@pytest.fixture(scope="module")
def network():
    return randomised(DiT_models["DiT-XS/8"](input_size=8, num_classes=10, learn_sigma=False), std=0.1)


def source_of(config, network):
    source = digits_source(config, CPU, REFERENCE)
    source.networks.network = network
    return source


def drawn(config, network, piece=range(4)):
    return source_of(config, network).latents(piece, lambda: None)


@pytest.mark.parametrize("name", FLOWS)
def test_an_image_depends_on_its_index_but_where_a_block_shares_its_steps(name, network):
    config = replace(USUAL, sampler=name)
    whole, alone = drawn(config, network), drawn(config, network, range(2, 4))
    is_alike = torch.allclose(whole[2:], alone, rtol=0, atol=1e-5)
    assert is_alike or SAMPLERS[name].is_joint
    assert torch.equal(whole, drawn(config, network))
    assert whole.dtype == torch.float32


def native(network, x, t, labels):
    """The velocity of a SiT, guided, on its own clock."""
    y = torch.tensor(labels)
    strong, weak = (network(x.float(), torch.full((len(x),), t), one) for one in (y, torch.full_like(y, 10)))
    return (weak + 2.0 * (strong - weak)).to(x.dtype)


def first_noise(step, dtype=torch.float32):
    return torch.from_numpy(np.stack([standard_normal(7, index, step, (4, 8, 8)) for index in range(4)])).to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("state", ["float32", "float64"])
def test_repas_sde_is_a_run_of_its_options(state, network):
    """By hand, from the noise of index and step; the state is what rounds."""
    config = replace(USUAL, sampler="euler-maruyama", own={"diffusion_form": "linear"}, state=state)
    x = first_noise(0, torch.float64)
    labels, times = [3, 8, 3, 8], np.append(np.linspace(1, 0.04, 6), 0)
    for step, (t, then) in enumerate(pairwise(times), start=1):
        v = -native(network, x, float(1 - t), labels)
        score = -((1 - t) * v + x) / t
        x = x + (then - t) * (v - t * score)
        if then:
            x = x + np.sqrt(2 * t * (t - then)) * first_noise(step, torch.float64)
    found = drawn(config, network)
    assert torch.allclose(found.double(), x, rtol=0, atol=1e-4 * x.abs().max().item())
    spoiled = drawn(replace(config, own={"diffusion_form": "constant"}), network)
    assert not torch.allclose(spoiled.double(), x, rtol=0, atol=1e-2)


def test_a_state_in_float64_asks_the_network_in_float32(network):
    seen = set()
    hook = network.register_forward_pre_hook(lambda _, given: seen.add(given[0].dtype))
    one, other = (drawn(replace(USUAL, state=state), network) for state in ("float32", "float64"))
    hook.remove()
    assert seen == {torch.float32}
    assert not torch.equal(one, other)
    assert torch.allclose(one, other, atol=1e-4 * one.abs().max().item())


IDENTITIES = [
    ({}, {}),
    ({"grid": "places"}, {}),
    ({"path": "linear", "prediction": "velocity", "noise_scale": 1.0, "least_time": 0.0}, {}),
    ({"guidance_ends": "open"}, {"guidance_ends": "open"}),
    ({"cfg_schedule": "linear"}, {"cfg_schedule": "linear"}),
    ({"cfg_schedule": "power-cosine", "cfg_power": 2.0}, {"cfg_schedule": "power-cosine", "cfg_power": 2.0}),
    ({"state": "float64"}, {"state": "float64"}),
    ({"path": "gvp"}, {"path": "gvp"}),
    ({"noise_scale": 2.0}, {"noise_scale": 2.0}),
    ({"grid": "steps"}, {"places": "6 steps from 1 to 0, the last of 0.166667; sha256 "}),
    ({"grid": "places,start=1.0"}, {}),
    ({"sampler": "flow-heun"}, {"places": "6 steps from 1 to 0, the last of 0.166667; sha256 "}),
    ({"sampler": "flow-heun", "grid": "places,tail=0.04"}, {"places": "6 steps from 1 to 0, the last of 0.04; sha256 "}),
    ({"prediction": "x0", "least_time": 0.05}, {"prediction": "x0", "least_time": 0.05}),
]


@pytest.mark.parametrize(("changes", "added"), IDENTITIES)
def test_an_identity_tells_what_is_not_as_it_always_was(changes, added):
    config, before = replace(USUAL, **changes), USUAL.identity()
    check_options(config)
    found = config.identity() | Flow.of(config).recorded(config)
    own = set(SAMPLERS[config.sampler].options)
    news = {name: value for name, value in found.items() if name not in before and name not in own}
    assert news.keys() == added.keys()
    assert all(str(news[name]).startswith(str(value)) for name, value in added.items())


def test_two_spellings_of_a_grid_are_one_run():
    spelt = [replace(USUAL, grid=text) for text in ("places,shift=1/0.5", "places,shift=2", "places, end=0, shift=sqrt(4)")]
    assert len({json.dumps(Flow.of(config).recorded(config)) for config in spelt}) == 1


REFUSED = [
    ({"sampler": "ddpm", "grid": "steps"}, "--grid steps: --sampler ddpm has no such choice; euler, flow-heun"),
    ({"sampler": "heun", "model": "DiT-XS/8", "state": "float64"}, "--state float64: --sampler heun has no such choice"),
    ({"grid": "steps;tail=0.04"}, "--grid steps;tail=0.04: begins with places"),
    ({"grid": "places,end=0.1,tail=0.04"}, "not both"),
    (
        {"sampler": "flow-heun", "grid": "places", "num_sampling_steps": "1"},
        "--num-sampling-steps 1: --grid places takes at least 2",
    ),
    ({"prediction": "noise"}, "--grid places: begins at pure noise, of which a noise tells no image; .* start=0.999"),
    ({"path": "vp", "sampler": "dopri5"}, "--grid places: ends at the image itself.*give --grid places,end=0.001"),
    ({"sampler": "dopri5", "prediction": "x0"}, "ends at the image itself"),
    ({"sampler": "euler-maruyama", "own": {"last_step": "none"}}, "--grid places,tail=0.04: has a tail"),
    (
        {"sampler": "euler-maruyama", "own": {"diffusion_form": "sbdm"}},
        "sbdm is infinite; give --grid places,start=0.999,tail=0.04",
    ),
    ({"sampler": "euler-maruyama", "own": {"diffusion_form": "x"}}, "--diffusion-form x: must be one of sigma, constant"),
    ({"own": {"last_step": "tweedie"}}, "--last-step tweedie: only --sampler euler-maruyama or sde-heun has it, not euler"),
    ({"sampler": "dopri5", "own": {"rtol": 0.0}}, "--rtol 0.0: must be between 1e-12 and 1"),
    (
        {"sampler": "jump"},
        "--sampler jump: takes a network that predicts average velocity, not SiT-XS/8, which predicts velocity",
    ),
    ({"sampler": "heun"}, "--sampler heun: does not solve what SiT-XS/8 was trained on; choose from euler, flow-heun"),
    ({"model": "DiT-XS/8"}, "--sampler euler: does not solve what DiT-XS/8 was trained on; choose from ddpm"),
    ({"model": "DiT-XS/8", "sampler": "ddpm", "path": "gvp"}, "--path gvp: --sampler ddpm has no such choice"),
    ({"model": "DiT-XS/8", "path": "gvp"}, "--path gvp: DiT-XS/8 was trained on DDPM's chain"),
    ({"least_time": 0.05}, "--least-time 0.05: only for a network that predicts the image"),
    ({"least_time": 1.0, "prediction": "x0"}, "--least-time 1.0: must be at least 0 and less than 1"),
    ({"noise_scale": 0.0}, "--noise-scale 0.0: must be more than 0"),
    ({"cfg_power": 2.0}, "--cfg-power 2.0: only --cfg-schedule power-cosine has one, not constant"),
    ({"cfg_schedule": "power-cosine", "cfg_power": 0.0}, "--cfg-power 0.0: must be more than 0"),
    ({"cfg_scale": 1.0, "cfg_schedule": "linear"}, "--cfg-schedule linear: --cfg-scale 1.0 has nothing to guide"),
    ({"cfg_scale": 1.0, "guidance_ends": "open"}, "--guidance-ends open: --cfg-scale 1.0 has nothing to guide"),
    ({"cfg_scale": 1.0, "guidance_ckpt": DIGITS / "dit.safetensors"}, "--guidance-ckpt .*: --cfg-scale 1.0 has nothing to guide"),
    ({"guidance_model": "SiT-S/2"}, "--guidance-model SiT-S/2: only used with --guidance-ckpt, which is missing"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_does_not_go_together_is_refused_in_a_sentence(changes, said):
    with pytest.raises(UserError, match=said):
        check_options(replace(USUAL, **changes))


def test_options_come_from_the_command_line():
    given = (
        "--sampler euler-maruyama --last-step tweedie --diffusion-form linear --grid places,tail=0.02,shift=1/0.3 --state float64"
    )
    given += (
        " --guidance-ends open-low --cfg-schedule power-cosine --cfg-power 3 --path gvp --prediction velocity --noise-scale 2"
    )
    config, _ = sample_ddp.parse(["--model", "SiT-XL/2", "--ckpt", "x.pt", *given.split()])
    own = {"diffusion_form": "linear", "diffusion_norm": 1.0, "last_step": "tweedie"}
    assert (config.sampler_options(), config.grid, config.state) == (own, "places,tail=0.02,shift=1/0.3", "float64")
    source = source_of(replace(config, model="SiT-XS/8", image_size=64, num_classes=10), None)
    assert source.guidance == Guidance(1.5, 3, 0.0, 1.0, True, False, "power-cosine", 3.0)
    assert source._grid.levels[0] == 1.0
    assert source._grid.points[-2].t == pytest.approx(0.02 / 0.3 / (1 + (1 / 0.3 - 1) * 0.02))
    assert source._grid.points[0].sigma == 2.0


def test_a_row_that_says_so_is_drawn_from_louder_noise_and_with_a_least_time(monkeypatch):
    row = replace(NETWORKS["SiT"], predicts="x0", noise_scale=lambda size: size / 32, least_time=0.05)
    monkeypatch.setitem(NETWORKS, "SiT", row)
    config = replace(USUAL, sampler="flow-heun", num_sampling_steps="30")
    assert Flow.of(config).recorded(config).keys() == {"noise_scale", "least_time", "places"}
    seen = []

    def image(x, t, *_):
        seen.append((x.std().item(), t[0].item()))
        return 0 * x

    image.null_label = 10
    out = drawn(config, image)
    assert seen[0] == (pytest.approx(2.0, rel=0.1), 0.0)
    x = 2.0 * first_noise(0)
    for step, (t, then) in enumerate(pairwise(np.linspace(1, 0, 31)), start=1):
        first = x / max(t, 0.05)
        ahead = x + (then - t) * first
        x = x + (then - t) * (first + ahead / max(then, 0.05)) / 2 if step < 30 else ahead
    assert torch.allclose(out, x, atol=1e-4)


@pytest.mark.parametrize("name", FLOWS)
def test_numerics_can_be_verified_with_every_solver(name, network):
    """Each gives inputs at five times or more, which answer the same when asked again."""
    source = source_of(replace(USUAL, sampler=name, guidance_interval=(0.2, 0.7)), network)
    first, seen = FirstImages(source, 4, network, None), []
    with torch.inference_mode():
        first.few_steps(lambda *one: seen.append(one))
        assert len(seen) >= 6
        assert all(torch.equal(first.evaluate(x, t), out) for x, t, out in seen)


def weak_of(folder, model="DiT-XS/8", seed=5):
    network = randomised(DiT_models[model](input_size=8, num_classes=10, learn_sigma=False), seed, std=0.1)
    save_file(network.state_dict(), folder / "weak.safetensors")
    return network


@torch.no_grad()
def test_autoguidance_leads_away_from_another_network_for_the_same_labels(network, tmp_path):
    weak, source = weak_of(tmp_path), source_of(replace(USUAL, guidance_ckpt=tmp_path / "weak.safetensors"), network)
    source.networks.config = source.config = replace(source.config, guidance_model="SiT-XS/8")
    source.networks.weak = source.networks._load_weak(REFERENCE)
    calls = []
    for one, name in ((network, "strong"), (source.networks.weak, "weak")):
        one.register_forward_pre_hook(lambda _, given, name=name: calls.append((name, given[2].tolist())))
    x, labels = first_noise(0), torch.tensor([3, 8, 3, 8])
    for t, then in pairwise(np.linspace(0, 1, 6)):
        strong, away = (one(x, torch.full((4,), float(t)), labels) for one in (network, weak))
        x = x + (then - t) * (away + 2.0 * (strong - away))
    calls.clear()
    found = source.latents(range(4), lambda: None)
    assert torch.allclose(found, x, rtol=0, atol=1e-4)
    assert calls == [(name, labels.tolist()) for _ in range(5) for name in ("strong", "weak")]


def test_a_run_by_autoguidance_records_the_second_network_and_grows(network, tmp_path):
    save_file(network.state_dict(), tmp_path / "sit.safetensors")
    weak_of(tmp_path)
    more = ["--guidance-ckpt", str(tmp_path / "weak.safetensors"), "--exact", "--guidance-interval", "0,0.7"]
    sit = {"model": "SiT-XS/8", "sampler": "flow-heun", "cfg_scale": 1.42}

    def draw(*arguments):
        return draw_files(sample_ddp.parse([str(one) for one in arguments])[0], fiducial.init("cpu"))

    whole = draw(*options(tmp_path / "sit.safetensors", tmp_path / "a", **sit, num_fid_samples=6), *more)
    manifest = json.loads((whole.with_suffix("") / "manifest.json").read_text())
    assert manifest["identity"]["guidance_model"] == "SiT-XS/8"
    assert len(manifest["identity"]["guidance_checkpoint_sha256"]) == 64
    assert manifest["options"]["guidance_ckpt"].endswith("weak.safetensors")
    steps = int(manifest["options"]["num_sampling_steps"])
    assert np.allclose(manifest["grid"], np.linspace(1, 0, steps + 1), rtol=0, atol=1e-15)
    for count in (4, 6):
        grown = draw(*options(tmp_path / "sit.safetensors", tmp_path / "b", **sit, num_fid_samples=count), *more)
    assert grown.read_bytes() == whole.read_bytes()
    weak_of(tmp_path, seed=6)
    with pytest.raises(UserError, match="guidance_checkpoint_sha256"):
        draw(*options(tmp_path / "sit.safetensors", tmp_path / "b", **sit, num_fid_samples=8), *more)
    weak_of(tmp_path, "DiT-XS/4")
    with pytest.raises(UserError, match=r"--guidance-ckpt: .*expected model SiT-XS/8; found model SiT-XS/4"):
        draw(*options(tmp_path / "sit.safetensors", tmp_path / "c", **sit), *more, "--guidance-model", "SiT-XS/8")
    with pytest.raises(UserError, match="a DiT predicts noise on the path ddpm, and SiT-XS/8 velocity on linear"):
        draw(*options(tmp_path / "sit.safetensors", tmp_path / "c", **sit), *more, "--guidance-model", "DiT-XS/4")
