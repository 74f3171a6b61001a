"""What a person says takes the meaning from some of what a preset or a file says, which gives way and is no error."""

import pytest

from fiducial import UserError
from fiducial.sampling.options.parser import parse

UNGUIDED = {"cfg_scale": 1.0, "guidance_interval": (0.0, 1.0), "guidance_ends": "closed", "guidance_ckpt": None}


@pytest.mark.parametrize("preset", ["repa-xl-2-256", "jit-b-16-256", "imf-b-2-256", "ddt-xl-2-256", "rae-xl-256"])
@pytest.mark.parametrize("said", [("--cfg-scale", "1.0"), ("--labels", "null")], ids=["scale", "null"])
def test_a_preset_is_drawn_without_its_guidance(preset, said):
    config, _ = parse(["--preset", preset, *said])
    assert {name: getattr(config, name) for name in UNGUIDED} == UNGUIDED


def test_a_preset_is_drawn_by_another_sampler():
    config, _ = parse(["--preset", "repa-xl-2-256", "--sampler", "euler"])
    assert (config.sampler, dict(config.own), config.cfg_scale) == ("euler", {}, 1.8)
    assert config.grid == "places,tail=0.04"
    config, _ = parse(["--preset", "sit-xl-2-256-ode", "--sampler", "euler-maruyama", "--diffusion-form", "linear"])
    assert dict(config.own) == {"diffusion_form": "linear"}


@pytest.mark.parametrize("said", [("--cfg-scale", "1.0"), ("--labels", "null")], ids=["scale", "null"])
def test_so_does_a_file(said, tmp_path):
    (tmp_path / "run.yaml").write_text("preset: repa-xl-2-256\ncfg-scale: 2\nguidance-interval: 0.1,0.5\nguidance-ends: open")
    config, _ = parse(["--config", str(tmp_path / "run.yaml"), *said])
    assert {name: getattr(config, name) for name in UNGUIDED} == UNGUIDED


def test_what_was_said_itself_is_an_error_as_before():
    with pytest.raises(UserError, match=r"--guidance-interval 0\.0,0\.5: --cfg-scale 1\.0 has nothing to guide"):
        parse(["--preset", "repa-xl-2-256", "--cfg-scale", "1.0", "--guidance-interval", "0,0.5"])
    with pytest.raises(UserError, match="--diffusion-form linear: only --sampler"):
        parse(["--preset", "repa-xl-2-256", "--sampler", "euler", "--diffusion-form", "linear"])
