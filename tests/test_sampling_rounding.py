"""`--rounding`: what each rule makes of the same pixels, what a run records of it, and floats that no file holds."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import options

import fiducial
import sample_ddp
from fiducial import UserError
from fiducial.evaluation import Evaluator
from fiducial.models.decoders.rounding import ROUNDING, to_pixels
from fiducial.sampling.identity import fingerprint
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.options.parser import parse
from fiducial.sampling.run import session
from fiducial.sampling.run.image_files import ImageFiles

ONLINE = ["--ref", "digits", "--evaluate-online"]


def ramp() -> np.ndarray:
    """Values in [-1, 1] and a little beyond, among them those that lie half between two levels, (1, 3, 1, n) float32."""
    ties = (2 * np.arange(256) + 1) / 255 - 1
    values = np.concatenate([np.linspace(-1.1, 1.1, 5001), ties, [0.0]]).astype(np.float32)
    return np.broadcast_to(values, (1, 3, 1, len(values)))


def by_hand(rule: str, x: np.ndarray) -> np.ndarray:
    """Another writing of the rules, from y in [0, 1]."""
    y = np.clip((x.astype(np.float64) + 1) / 2, 0, 1).transpose(0, 2, 3, 1)
    return {
        "half-up": np.floor(255 * y + 0.5),
        "truncate": np.floor(255 * y),
        "half-even": np.round(255 * y),
        "none": 255 * y,
    }[rule]


@pytest.mark.parametrize("rule", ROUNDING)
def test_each_rule_is_its_own(rule):
    """All but at the edges between levels, where float32 decides; and no rule passes for another."""
    x = ramp()
    found = to_pixels(torch.from_numpy(x.copy()), ROUNDING[rule])
    assert found.dtype == (torch.float32 if rule == "none" else torch.uint8)
    y = by_hand("none", x)
    clear = np.abs(2 * y - np.round(2 * y)) > 1e-3
    assert clear.mean() > 0.8
    assert np.abs(found.numpy() - by_hand(rule, x))[clear].max() < 1e-4
    if rule != "half-even":
        assert np.abs(found.numpy() - by_hand("truncate" if rule == "half-up" else "half-up", x))[clear].max() > 0.4


def test_a_tie_goes_to_the_even_level():
    """As numpy rounds the same float32 product, which is how the published code has it; half up does not."""
    x = ramp()
    levels = (np.float32(255) * ((x + np.float32(1)) / np.float32(2))).clip(0, 255)
    ties = (levels == np.floor(levels) + 0.5).transpose(0, 2, 3, 1)
    found = to_pixels(torch.from_numpy(x.copy()), "half-even").numpy()
    assert np.array_equal(found, np.rint(levels).transpose(0, 2, 3, 1))
    assert ties.sum() > 100
    assert (found[ties] % 2 == 0).all()
    assert (to_pixels(torch.from_numpy(x.copy()), "dit").numpy()[ties] % 2 == 1).any()


@pytest.mark.parametrize(
    ("given", "kept"), [("half-up", "dit"), ("dit", "dit"), ("truncate", "repa"), ("half-even", "half-even")]
)
def test_a_run_records_today_s_rules_by_the_names_that_they_had(given, kept):
    config, _ = parse(["--preset", "digits", "--rounding", given])
    default, _ = parse(["--preset", "digits"])
    assert config.identity()["rounding"] == kept
    assert (fingerprint(config.identity()) == fingerprint(default.identity())) == (kept == "dit")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--rounding", "up"], "--rounding up: no such rule; choose from half-up, truncate, half-even, none"),
        (["--rounding", "none"], "--rounding none: files of images hold no floats; add --evaluate-online"),
    ],
)
def test_what_cannot_be_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        parse(["--preset", "digits", *given])


def test_a_sink_of_files_refuses_floats(tiny_checkpoint, tmp_path):
    """Whoever calls it from Python, too."""
    config, _ = parse(options(tiny_checkpoint, tmp_path))
    config = SamplingConfig(**{**vars(config), "rounding": "none"})
    with fiducial.init("cpu") as group, pytest.raises(UserError, match="--rounding none: files of images hold no floats"):
        session.draw(config, group, ImageFiles())
    assert not list(tmp_path.iterdir())


def test_floats_are_evaluated_and_labelled(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    """All but as the same images rounded, and not quite; a second call draws nothing."""
    found = {}
    for rule in ("half-even", "none", "none"):
        monkeypatch.setattr(
            sys, "argv", ["sample_ddp.py", *options(tiny_checkpoint, tmp_path / rule), "--rounding", rule, *ONLINE]
        )
        sample_ddp.main()
        found[rule] = json.loads((tmp_path / rule / "run-online.json").read_text())
    assert "22 of 22 images are there" in capsys.readouterr().out
    rounded, floats = found["half-even"], found["none"]
    assert floats["run"]["identity"]["rounding"] == "none"
    assert (floats["samples"]["rounding"], "rounding" in rounded["samples"]) == ("none", False)
    assert all("not rounded to the 256 levels" in metric["deviations"][0] for metric in floats["metrics"].values())
    assert not any("not rounded" in text for metric in rounded["metrics"].values() for text in metric["deviations"])
    assert any("evaluated as floats" in text for text in floats["warnings"])
    one, other = (result["metrics"]["fid-digits"]["value"] for result in (rounded, floats))
    assert one != other
    assert other == pytest.approx(one, rel=0.02)
    assert floats["samples"]["pixels_sha256"] != rounded["samples"]["pixels_sha256"]


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def test_whole_levels_as_floats_are_those_levels():
    rounded, floats = Evaluator("digits"), Evaluator("digits", rounded=False)
    pixels = images(4)
    rounded.update(pixels)
    floats.update(pixels.astype(np.float32))
    other = floats.fresh().update(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
    for one in (floats, other):
        assert torch.equal(one.state_dict()["features"], rounded.state_dict()["features"])
        assert torch.equal(one.state_dict()["thumbnails"], rounded.state_dict()["thumbnails"])
    with pytest.raises(ValueError, match="of floats, and this is digits"):
        rounded.merge(floats)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (images(2), "of floats; got uint8"),
        (torch.zeros(2, 3, 64), "of floats; got torch.float32"),
        (images(2).astype(np.float32) - 1, "levels expected from 0 to 255; got -1 to 254"),
        (np.full((2, 64, 64, 3), np.nan, np.float32), "levels expected from 0 to 255; got nan"),
    ],
)
def test_what_are_no_levels_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Evaluator("digits", rounded=False).update(given)
