"""FID in a training loop, and TensorBoard: values at their steps, a model that is left as it was, the same on several ranks."""

import json
import random

import numpy as np
import pytest
import torch
from conftest import ROOT, run_command
from test_models_families_drawn import LABEL, MODELS, SEED, STEPS, arguments, draw, network

from fiducial import UserError, tensorboard
from fiducial.evaluation import Evaluator
from fiducial.evaluation import __main__ as cli
from fiducial.sampling.noise import standard_normal
from fiducial.studies.callback import FidCallback
from fiducial.studies.network_sampler import NetworkSampler
from scripts.stand_ins import pictures

COUNT = 70  # more than the digits' features have dimensions, so that there is an interval


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.drop = torch.nn.Parameter(torch.tensor(0.3)), torch.nn.Dropout()


def sample(model: Model, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(n, 3, 64, 64) in [-1, 1], with random numbers of torch's own too."""
    assert not model.training
    assert not torch.is_grad_enabled()
    shades = labels[:, None, None, None] / 10 - 0.5
    return (model.scale * (noise + 0.1 * torch.randn_like(noise)) + shades).expand(-1, 3, -1, -1)


def callback(group, log=(), **changes) -> FidCallback:
    given = {"count": COUNT, "every": 10, "num_classes": 10, "batch_size": 16, "value_range": (-1, 1), "log": log, "group": group}
    return FidCallback(sample, (1, 64, 64), "digits", **given | changes)


def test_values_are_those_of_the_model_at_its_steps(alone):
    told, model = [], Model()
    fid = callback(alone, lambda values, step: told.append((step, values)))
    for step in range(1, 31):
        fid(step, model)
        if step == 20:
            with torch.no_grad():
                model.scale += 0.3
    (first, one), (second, same), (third, changed) = told
    assert (first, second, third) == (10, 20, 30)
    assert set(one) == {"fid_70-digits", "fid_70-digits/low", "fid_70-digits/high"}
    assert one["fid_70-digits/low"] < one["fid_70-digits"] < one["fid_70-digits/high"]
    assert same == one  # of the same noise and labels
    assert abs(changed["fid_70-digits"] / one["fid_70-digits"] - 1) > 0.01


def test_the_values_are_an_evaluation_of_the_same_images(alone):
    drawn = []

    def kept(*given):
        drawn.append(sample(*given).clip(-1, 1))
        return drawn[-1]

    fid = FidCallback(kept, (1, 64, 64), "digits", count=COUNT, num_classes=10, batch_size=16, value_range=(-1, 1), group=alone)
    value = fid(1, Model())["fid_70-digits"]
    levels = torch.cat(drawn)[:COUNT].add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    evaluator = Evaluator("digits", alone, metrics="fid")
    evaluator.update(levels.numpy())
    assert value == pytest.approx(evaluator.compute()["fid"].value, rel=1e-3)


def test_the_training_goes_on_as_if_nothing_had_been(alone):
    model = Model().train()
    model.drop.eval()
    model.scale.grad = torch.tensor(2.0)
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    expected = [float(torch.rand(())), float(np.random.rand()), random.random()]
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    callback(alone).evaluate(1, model)
    assert [float(torch.rand(())), float(np.random.rand()), random.random()] == expected
    assert (model.training, model.drop.training, float(model.scale.grad)) == (True, False, 2.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": 1}, "FidCallback(count=1): must be a whole number of at least 2"),
        ({"labels": "7,11"}, "FidCallback(labels='7,11'): "),
        ({"log": 3}, "FidCallback(log=3): must be a function"),
    ],
)
def test_what_cannot_be_is_refused_at_once(changes, said, alone):
    with pytest.raises(UserError) as told:
        callback(alone, **changes)
    assert str(told.value).startswith(said)


def test_a_network_in_memory_is_drawn_as_its_file_is(tmp_path):
    """By a sampler that draws no noise on its way, of the same noise and labels."""
    model = network("JiT")
    npz = draw(arguments("JiT", tmp_path, model.state_dict(), "--cfg-scale", 2.0))
    with np.load(npz if npz.suffix == ".npz" else npz.with_name(f"{npz.name}.npz")) as arrays:
        expected = arrays["arr_0"].astype(int)
    noise = torch.from_numpy(np.stack([standard_normal(SEED, index, 0, (3, 16, 16)) for index in range(2)]))
    sampler = NetworkSampler(MODELS["JiT"], None, STEPS, "euler", cfg_scale=2.0, image_size=16, num_classes=10, cfg_channels=3)
    found = sampler(model.eval(), noise, torch.full((2,), int(LABEL))).permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(found - expected).max() <= 1
    assert np.ptp(found) > 20


ON_RANKS = """
import json, sys
sys.path[:0] = [sys.argv[2]]
import fiducial
from test_callback import Model, callback
values = callback(fiducial.init("cpu")).evaluate(1, Model())
if values:
    open(sys.argv[1], "w").write(json.dumps(values))
"""


@pytest.mark.long
def test_two_ranks_give_what_one_gives(alone, tmp_path):
    (tmp_path / "loop.py").write_text(ON_RANKS)
    done = run_command(tmp_path / "loop.py", tmp_path / "r.json", ROOT / "tests", ranks=2, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "r.json").read_text()) == pytest.approx(callback(alone).evaluate(1, Model()))


@pytest.mark.long
def test_the_examples_train_and_log(tmp_path):
    sizes = ("--steps", "4", "--every", "2", "--count", "80")
    done = run_command("examples/training_loop.py", *sizes, "--tensorboard", tmp_path / "events")
    assert done.returncode == 0, done.stderr
    assert [line.split(",")[0].split()[:2] for line in done.stdout.splitlines()] == [
        ["2", "fid_80-digits"],
        ["4", "fid_80-digits"],
    ]
    values, images = events(tmp_path / "events")
    assert {step for step, _ in values["fid_80-digits/low"]} == {2, 4}
    assert images == ["samples"]
    (tmp_path / "wandb.py").write_text(WANDB)
    done = run_command("examples/wandb_callback.py", *sizes, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["2 fid_80-digits", "4 fid_80-digits", "ended"]


WANDB = """
class init:
    def __init__(self, project, config): pass
    def __enter__(self): return self
    def __exit__(self, *_): print("ended")
    def log(self, values, step): print(step, next(iter(values)))
"""


def events(folder) -> tuple[dict[str, list[tuple[int, float]]], list[str]]:
    """Scalars by their tags, as steps and values, and the tags of images."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    tags = found.Tags()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in tags["scalars"]}, tags["images"]


def test_a_result_goes_to_tensorboard_with_its_intervals(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=pictures(COUNT, 1, 64))
    given = ("calc", tmp_path / "a.npz", "--ref", "digits", "--device", "cpu", "--json", tmp_path / "r.json")
    args = cli.build_parser().parse_args([*map(str, given), "--tensorboard", str(tmp_path / "events"), "--step", "400"])
    args.carry_out(args)
    numbers = json.loads((tmp_path / "r.json").read_text())["metrics"]
    values, images = events(tmp_path / "events")
    for key, one in numbers.items():
        for tag, value in ((key, one["value"]), (f"{key}/low", one["low"]), (f"{key}/high", one["high"])):
            assert (tag in values) == (value is not None)
            if value is not None:
                assert values[tag] == [(400, pytest.approx(value, rel=1e-6))]
    assert images == ["samples"]


def test_without_the_package_it_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="needs the package tensorboard; pip install tensorboard brings it"):
        tensorboard.require(tmp_path / "events")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("0400000.pt", 400_000),
        ("ema-step=4000.safetensors", 4000),
        ("ckpt_12.pt", 12),
        ("DiT-XL-2-256x256.pt", None),
        (None, None),
    ],
)
def test_a_checkpoints_name_has_its_step(name, step):
    assert tensorboard.step_in(name) == step
