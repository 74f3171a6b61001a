"""Runs and evaluations on a GPU that is pretended: no tensor is on the wrong device, and no step of a sampler waits."""

from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import DIGITS, draw_files
from pretended_gpu import GPU, PretendedGPU, pretended  # noqa: F401 (the fixture `gpu`)

import sample_ddp
from fiducial import Group
from fiducial.diffusion.samplers import SAMPLERS
from fiducial.evaluation import Evaluator, Settings
from fiducial.evaluation.metrics import named
from fiducial.models.decoders.autoencoder import Autoencoder
from fiducial.models.networks.dit import DiT
from fiducial.sampling.run.image_files import ImageFiles

OF_INCEPTION = ("sfid", "is")
OF_OTHERS = ("fid-infinity", "vendi", "fdr6")  # of thousands of images, of features that are not all 0, and of six networks
AT_MOST = 3  # times that the host waits for a block: are its latents and pixels finite, and its pixels
FREE = True  # of a copy that nothing waits for


def group_on_gpu() -> Group:
    return Group(0, 1, 0, "0", GPU, dist.HashStore())


def draw(gpu: PretendedGPU, folder: Path, checkpoint: Path, steps: int, *more: str, blocks: int = 1) -> tuple[Counter, Counter]:
    """Where the host waited for the GPU, and what was copied there, while blocks of 4 were drawn."""
    count = 4 * blocks
    of_run = ("--num-fid-samples", str(count), "--per-proc-batch-size", "4", "--num-sampling-steps", str(steps))
    as_it_is = ("--no-probe", "--check", "off", "--no-compile")  # no weights are read, and no value
    network = () if "--model" in more else ("--model", "DiT-XS/8")
    weights = ("--ckpt", checkpoint, "--sample-dir", folder, "--run-name", str(steps), *network)
    config, _ = sample_ddp.parse([*map(str, ("--preset", "digits", *weights, *of_run, *as_it_is)), *more])
    gpu.waits.clear(), gpu.copies.clear(), gpu.events.clear()
    with gpu:
        npz = draw_files(config, group_on_gpu(), False)
    assert np.load(npz)["arr_0"].shape == (count, 64, 64, 3)
    return Counter(gpu.waits), Counter(gpu.copies)


SIT = ("--model", "SiT-XS/8")
WAYS = {
    "by default": (),
    "fp32": ("--precision", "fp32"),
    "bf16": ("--precision", "bf16"),
    "exact": ("--exact",),
    "beside": ("--cuda-tuning",),
    "not guided": ("--cfg-scale", "1"),
    "in an interval": ("--guidance-interval", "0.2,0.6"),
    "products": ("--attention", "products", "--precision", "bf16"),
    **{name: ("--sampler", name) for name, row in SAMPLERS.items() if row.spacing is None and name != "ddpm"},
    **{name: ("--sampler", name, *SIT) for name, row in SAMPLERS.items() if row.spacing and not row.takes and not row.is_joint},
    "a state in float64": ("--sampler", "euler-maruyama", "--state", "float64", "--cfg-schedule", "linear", *SIT),
    "eta": ("--sampler", "ddim", "--eta", "1"),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_step_waits_for_the_gpu(way, gpu, tiny_checkpoint, tmp_path):
    waits, copies = draw(gpu, tmp_path, tiny_checkpoint, 3, *WAYS[way])
    more_waits, more_copies = draw(gpu, tmp_path, tiny_checkpoint, 6, *WAYS[way])
    assert more_waits == waits
    assert sum(waits.values()) <= AT_MOST
    assert {is_free for (_, is_free) in more_copies - copies} <= {FREE}


def test_what_is_decoded_beside_is_waited_for_in_order(gpu, tiny_checkpoint, tmp_path, monkeypatch):
    forward, put = DiT.forward, ImageFiles.put
    monkeypatch.setattr(DiT, "forward", lambda *given: (gpu.note("steps"), forward(*given))[1])
    monkeypatch.setattr(ImageFiles, "put", lambda *given: (gpu.note("put"), put(*given))[1])
    waits, _ = draw(gpu, tmp_path, tiny_checkpoint, 3, "--cuda-tuning", blocks=2)
    assert sum(waits.values()) == 2  # for whether a block's latents are finite, and not for its pixels
    kept = gpu.events.count("memory is kept for beside")
    found = [event for event, _ in groupby(event for event in gpu.events if not event.startswith("memory"))]
    decoded, taken = ["steps", "beside waits for main", "copy by beside"], ["host waits for beside", "put"]
    assert found == [*decoded, "steps", *taken, *decoded[1:], *taken]  # the second block's steps while the first is decoded
    assert kept == 2


@pytest.mark.parametrize("extractor", ["digits", "inception"])
def test_an_evaluation_is_on_one_device(extractor, gpu, inception_weights, tmp_path, monkeypatch):
    monkeypatch.setattr("fiducial.evaluation.features.agreement.require", lambda *_: None)  # of values, which there are none of
    """By nearly every metric that the extractor has, copies of training images among them."""
    images = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    np.savez(tmp_path / "reference.npz", arr_0=images)
    left_out = {*OF_OTHERS, *(OF_INCEPTION if extractor != "inception" else ())}
    metrics = tuple(name for name in named() if name not in left_out)
    settings = Settings(cache_dir=tmp_path / "cache", metrics=metrics, kid_subset_size=6)
    weights = {"inception": inception_weights} if extractor == "inception" else None
    reference = str(tmp_path / "reference.npz")
    given = {"extractor": extractor, "weights": weights, "train": reference}
    with gpu:
        evaluator = Evaluator(reference, group_on_gpu(), settings, **given)
        gpu.waits.clear()
        evaluator.update(images[:8]).update(images[8:])
        assert sum(gpu.waits.values()) <= 2 * 4  # a batch: are features finite, and features; for the spatial ones as well
        found = evaluator.compute()
    assert len(found.metrics) >= 4


def test_what_is_pretended_finds_mistakes(gpu):
    with gpu:
        there, here = torch.zeros(3, device=GPU), torch.ones(3)
        with pytest.raises(RuntimeError, match="device"):
            there + here
        gpu.copies.clear()
        assert float(here.sum()) == 3
        assert not gpu.waits
        there.sum().item(), there.cpu(), there.nonzero(), here.to(GPU), here.to(GPU, non_blocking=True)
    assert sum(gpu.waits.values()) == 3
    assert sorted(is_free for _, is_free in gpu.copies.elements()) == [False, True]


def test_the_autoencoder_is_whole_on_the_gpu(gpu):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with gpu:
            decoder = Autoencoder(DIGITS / "vae").load(GPU, dtype, tiling=True, slicing=True)
            assert decoder(torch.zeros(2, 4, 8, 8, device=GPU)).device == GPU
