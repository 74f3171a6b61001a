"""One promise of every sampler, network and codec: with `--exact`, a run of three ranks that lost one, and went on by two, ends
in the bytes of one rank's.
"""

import os
import signal

import numpy as np
import pytest
import torch
from conftest import DIGITS, PLAIN, contents, run_command
from families import lively, write
from test_models_single_file import ldm_weights, vit_weights
from test_reliability import Launched, draw_here

from fiducial.diffusion.samplers import SAMPLERS
from fiducial.models.decoders.table import DECODERS
from fiducial.models.networks.table import NETWORKS, spec_of

BLOCK = 2
FLOWING = ("--grid", "places,start=0.98,end=0.02")
STATISTICS = ("--latent-stats", "mean=0.1:0:0:0,std=1:2:1:1")
INNER = ("--guidance-by", "inner-head", "--guidance-interval", "0.1,1", "--rounding", "truncate")
CASES = {  # model, codec, sampler and its options
    "DiT": ("DiT-XS/4", "autoencoder", ("ddpm", "8")),
    "DiT ddim": ("DiT-XS/4", "autoencoder", ("ddim", "8", "--eta", "0.5")),
    "DiT dpm-solver++": ("DiT-XS/4", "autoencoder", ("dpm-solver++", "8")),
    "DiT unipc": ("DiT-XS/4", "autoencoder", ("unipc", "8")),
    "DiT heun": ("DiT-XS/4", "autoencoder", ("heun", "10")),
    "SiT": ("SiT-XS/4", "ldm", ("dopri5", "8", *STATISTICS)),
    "SiT sde-heun": ("SiT-XS/4", "autoencoder", ("sde-heun", "5")),
    "SiT GVP": ("SiT-XS/4", "autoencoder", ("flow-dpm-solver++", "8", "--path", "gvp", "--no-probe", *FLOWING)),
    "REPA": ("REPA-XS/4", "autoencoder", ("euler-maruyama", "8", "--diffusion-form", "linear", "--state", "float64")),
    "REPA heun": ("REPA-XS/4", "autoencoder", ("repa-heun", "5", "--guidance-interval", "0,0.7")),
    "LightningDiT": ("LightningDiT-XS/2", "ldm", ("euler", "8", "--grid", "places,shift=1/0.3", *STATISTICS)),
    "JiT": ("JiT-XS/8", "pixels", ("flow-heun", "5", "--rounding", "half-even")),
    "DDT": ("DDT-XS/2", "autoencoder", ("euler", "8", "--grid", "places,tail=0.04", "--guidance-ends", "open")),
    "RAE": ("RAE-XS/1", "vit", ("euler", "8", "--rounding", "truncate", *STATISTICS)),
    "RAEv2": ("RAEv2-XS/1", "vit", ("euler", "8", "--grid", "steps,shift=8", *INNER, *STATISTICS)),
    "MeanFlow": ("MeanFlow-XS/4", "autoencoder", ("jump", "2")),
    "iMF": ("iMF-XS/2", "autoencoder", ("jump", "1")),
}
FACTORS = {"autoencoder": 8, "ldm": 8, "vit": 2, "pixels": 1}


def count_of(case):
    """Enough images for a rank to be killed among them."""
    return 60 if int(CASES[case][2][1]) >= 5 else 300


def codec(name, folder):
    if name == "autoencoder":
        return DIGITS / "vae"
    if name == "pixels":
        return name
    weights = ldm_weights((1, 2, 4, 4), 4, ()) if name == "ldm" else vit_weights(4, 8)
    torch.save(dict(weights), folder / f"{name}.pt")
    return folder / f"{name}.pt"


def arguments(case, folder):
    """Of a run in `folder`, whose files stand beside it."""
    model, decoder, (sampler, steps, *more) = CASES[case]
    side, channels = (16, 3) if decoder == "pixels" else (8, 4)
    network = lively(spec_of(model).build[model](input_size=side, in_channels=channels, num_classes=10), std=0.05)
    folder.mkdir()
    size = side * FACTORS[decoder]
    given = (
        "--model",
        model,
        "--ckpt",
        write(network.state_dict(), folder),
        "--vae",
        codec(decoder, folder),
        "--image-size",
        size,
    )
    counts = ("--image-size", size, "--num-classes", 10, "--num-fid-samples", count_of(case), "--per-proc-batch-size", BLOCK)
    scale = 1.0 if spec_of(model).guidance == "trained" else 1.5
    how = ("--sampler", sampler, "--num-sampling-steps", steps, "--cfg-scale", scale, "--cfg-channels", channels, *more)
    return [*map(str, (*given, *counts, *how, "--no-probe", "--exact", *PLAIN))]


def test_no_row_is_left_out():
    models, codecs, ways = zip(*CASES.values(), strict=True)
    assert {spec_of(model).name for model in models} == set(NETWORKS)
    assert set(codecs) == set(DECODERS)
    assert {sampler for sampler, *_ in ways} == set(SAMPLERS)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_any_ranks_killed_or_not_end_in_the_same_bytes(case, tmp_path):
    given = arguments(case, tmp_path / "files")
    one, several = tmp_path / "one", tmp_path / "several"
    one.mkdir()
    several.mkdir()
    draw_here(*given, "--sample-dir", str(one), "--run-name", "run")
    there = [*given, "--sample-dir", str(several), "--run-name", "run"]
    run = Launched(several, there, ranks=3)
    os.kill(run.reach(6).workers()[1], signal.SIGKILL)
    assert run.process.wait(120) != 0
    assert 0 < run.images < count_of(case), run.said
    done = run_command("sample_ddp.py", *there, ranks=2)
    assert done.returncode == 0, done.stderr
    assert contents(several) == contents(one)
    with np.load(one / "run.npz") as arrays:
        assert len({image.tobytes() for image in arrays["arr_0"]}) == count_of(case)
