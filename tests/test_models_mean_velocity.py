"""MeanFlow and iMF drawn by jumps, against their second writings."""

from itertools import pairwise

import numpy as np
import pytest
import second_writings as second
import torch
from conftest import DIGITS
from diffusers import AutoencoderKL
from test_models_families import in_files
from test_models_families_drawn import HEADS, LABEL, SEED, arguments, draw, network

from fiducial.sampling.noise import standard_normal

OMEGA, LOW, HIGH = 7.5, 0.25, 0.75
MEANS = {  # the mean velocity towards noise from r to t
    "MeanFlow": lambda state, x, t, r: second.of_sit(state, x, t, LABEL, HEADS, gap=t - r),
    "iMF": lambda state, x, t, r: second.of_imf(in_files(state), x, t - r, OMEGA, LOW, HIGH, LABEL, HEADS),
}
GIVEN = {
    "MeanFlow": ("--cfg-scale", 1.0),
    "iMF": ("--cfg-scale", OMEGA, "--guidance-interval", f"{LOW},{HIGH}"),
}


@torch.no_grad()
@pytest.mark.parametrize("family", MEANS)
@pytest.mark.parametrize("jumps", [1, 2])
def test_an_image_is_that_of_jumps_of_the_second_writing(family, jumps, tmp_path):
    state = network(family).state_dict()
    given = arguments(family, tmp_path, state, "--sampler", "jump", *GIVEN[family])
    given[given.index("--num-sampling-steps") + 1] = str(jumps)
    with np.load(draw(given)) as arrays:
        drawn = arrays["arr_0"][1].astype(int)
    x = torch.from_numpy(standard_normal(SEED, 1, 0, (1, 4, 8, 8)))[0].double()
    for t, r in pairwise(np.linspace(1, 0, jumps + 1)):
        x = x - (t - r) * MEANS[family](state, x, t, r)
    decoded = AutoencoderKL.from_pretrained(DIGITS / "vae").double().decode(x[None] / 0.18215).sample[0]
    expected = (127.5 * decoded + 128).clamp(0, 255).byte().permute(1, 2, 0).numpy().astype(int)
    assert expected.std() > 1
    assert np.abs(drawn - expected).max() <= 1
    assert (drawn != expected).mean() < 0.01
