"""Guidance away from an inner head of the same network: images by an integration of RAEv2's second writing, and refusals."""

import json
from itertools import pairwise

import numpy as np
import pytest
import second_writings as second
import torch
from conftest import DIGITS, PLAIN, draw_files
from families import lively, write
from test_models_families import raev2_files
from test_models_single_file import vit_decoded, vit_weights

import fiducial
import sample_ddp
from fiducial import UserError
from fiducial.diffusion import guidance
from fiducial.models.checkpoints.checkpoint import read
from fiducial.models.networks import raev2
from fiducial.models.networks.table import spec_of
from fiducial.sampling.noise import standard_normal
from fiducial.sampling.source.from_checkpoint import check_options

MODEL, CHANNELS, SIDE, STEPS, SEED, LABEL, SCALE, LOW = "RAEv2-XS/1", 4, 4, 4, 7, 3, 1.78, 0.8
IMAGENET = (torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))


def network(classes=10, **options):
    build = spec_of(MODEL).build[MODEL]
    return lively(build(input_size=SIDE, in_channels=CHANNELS, num_classes=classes, **options), std=0.05)


def arguments(folder, state, *more):
    torch.save(dict(vit_weights(CHANNELS, SIDE)), folder / "decoder.pt")
    given = ("--ckpt", write({"ema": raev2_files(state)}, folder), "--vae", folder / "decoder.pt", "--latent-stats", "scale=1")
    sizes = ("--num-fid-samples", 2, "--per-proc-batch-size", 2, "--num-sampling-steps", STEPS, "--image-size", 2 * SIDE)
    how = ("--cfg-channels", CHANNELS, "--global-seed", SEED, "--labels", LABEL, "--grid", "steps,shift=8", "--rounding")
    guided = ("--cfg-scale", SCALE, "--guidance-by", "inner-head", "--guidance-interval", f"{LOW},1")
    where = ("--sample-dir", folder, "--run-name", "run", "--no-probe", "--num-classes", 10, *PLAIN)
    return [*map(str, (*given, *sizes, *how, "truncate", *guided, *where, *more))]


def draw(given):
    with np.load(draw_files(sample_ddp.parse(given)[0], fiducial.init("cpu"))) as arrays:
        return arrays["arr_0"].astype(int)


TIMES = [8 * t / (1 + 7 * t) for t in np.linspace(1, 0, STEPS + 1)]


@pytest.fixture(scope="module")
def expected():
    """The second image: full + 0.78 (full - inner) where t >= LOW, in one Euler step after another down to 0."""
    files = raev2_files(network().state_dict())
    x = torch.from_numpy(standard_normal(SEED, 1, 0, (1, CHANNELS, SIDE, SIDE)))[0].double()
    with torch.no_grad():
        for here, there in pairwise(TIMES):
            full, inner = second.of_raev2(files, x, here, LABEL, (5, 4), 5, 2).chunk(2)
            image = inner + SCALE * (full - inner) if here >= LOW else full
            x = x + (there - here) * (x - image) / max(here, 0.05)
        normed = (vit_decoded(vit_weights(CHANNELS, SIDE), x.float()[None])[0] + 1) / 2
    y = (normed - IMAGENET[0]) / IMAGENET[1]  # as the decoder puts it out: from 0 to 1
    return (255 * y.clamp(0, 1)).byte().permute(1, 2, 0).numpy().astype(int)


def share_off(drawn, expected):
    return (np.abs(drawn - expected) > 1).mean()


def test_an_image_is_that_of_the_second_writing_in_one_evaluation_a_step(expected, tmp_path, monkeypatch):
    calls, forward = [], raev2.RAEv2.forward

    def counted(self, x, t, y, with_inner=False):
        calls.append((len(x), t.flatten()[0].item(), with_inner))
        return forward(self, x, t, y, with_inner)

    monkeypatch.setattr(raev2.RAEv2, "forward", counted)
    drawn = draw(arguments(tmp_path, network().state_dict()))
    assert expected.std() > 1
    assert share_off(drawn[1], expected) == 0
    assert [(count, with_inner) for count, _, with_inner in calls] == [(2, t >= LOW) for t in TIMES[:-1]]
    assert [t for _, t, _ in calls] == pytest.approx(TIMES[:-1])
    assert {t >= LOW for t in TIMES[:-1]} == {True, False}
    identity = json.loads((tmp_path / "run" / "manifest.json").read_text())["identity"]
    assert (identity["guidance_by"], identity["vae_output"], identity["least_time"]) == ("inner-head", "unit", 0.05)


WRONG = {
    "an inner head after another block": (raev2, "SIZES", raev2.SIZES | {"XS": (*raev2.SIZES["XS"][:-1], 3)}),
    "no interval": (guidance.Guidance, "scale_at", lambda self, _: self.scale),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_variant_draws_another_image(wrong, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(*WRONG[wrong])
    assert share_off(draw(arguments(tmp_path, network().state_dict()))[1], expected) > 0.1


def test_no_null_label_is_needed(tmp_path):
    state = network(has_null=False).state_dict()
    assert draw(arguments(tmp_path, state)).std() > 1
    with pytest.raises(UserError, match="10 rows are 10 classes"):
        draw(arguments(tmp_path, state, "--guidance-by", "null-label"))


def test_a_file_without_an_inner_head_is_drawn_but_not_guided_by_it(tmp_path):
    state = network(inner=None).state_dict()
    with pytest.raises(UserError, match=r"--guidance-by inner-head: .*\.pt was trained without an inner head; leave it out"):
        draw(arguments(tmp_path, state))
    assert read(tmp_path / "checkpoint.pt").family == "RAEv2"
    assert draw(arguments(tmp_path, state, "--guidance-by", "null-label")).std() > 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--model", "RAE-XL/1"), "--guidance-by inner-head: RAE-XL/1 has no inner head, as a RAEv2 has; leave it out"),
        (("--model", MODEL, "--cfg-scale", "1"), "--guidance-by inner-head: --cfg-scale 1.0 has nothing to guide"),
        (("--model", MODEL, "--guidance-ckpt", "x.pt"), "--guidance-by inner-head: --guidance-ckpt x.pt is another network"),
    ],
    ids=["no head", "no guidance", "another network"],
)
def test_what_has_no_inner_head_to_be_guided_by_is_refused_before_any_file_is_read(more, said):
    with pytest.raises(UserError, match=said):
        check_options(sample_ddp.parse(["--ckpt", "none.pt", "--cfg-scale", "1.78", "--guidance-by", "inner-head", *more])[0])


def test_another_output_of_a_decoder_is_asked_for_and_of_vits_alone(expected, tmp_path):
    state = network().state_dict()
    drawn = draw(arguments(tmp_path, state, "--vae-output", "imagenet"))
    assert share_off(drawn[1], expected) > 0.1
    assert "vae_output" not in json.loads((tmp_path / "run" / "manifest.json").read_text())["identity"]
    with pytest.raises(UserError, match=r"--vae-output unit: only a ViT decoder has it, not --vae .*leave it out"):
        draw(arguments(tmp_path, state, "--vae", str(DIGITS / "vae"), "--image-size", "32", "--vae-output", "unit"))
