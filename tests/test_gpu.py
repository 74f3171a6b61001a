"""Drawing and evaluating on a GPU that is there: what can be seen nowhere else."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_files, run_command

import fiducial
import sample_ddp
from fiducial.evaluation import Evaluator, Settings
from fiducial.evaluation.features.load import load_extractor
from fiducial.sampling.source import numerics
from fiducial.sampling.store.manifest import read
from scripts.stand_ins import pictures

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
COUNT, BLOCK, STEPS = 24, 8, 10
LEVELS_APART = 0.5  # in the mean, of the same images in another precision
FEATURES_APART = 1e-4  # relatively, of the same images on another device


@pytest.fixture(autouse=True)
def _compile_anew() -> Iterator[None]:
    yield
    torch.compiler.reset()


def draw(folder: Path, *more: str) -> np.ndarray:
    """Digits (COUNT, 64, 64, 3) of a run in this process."""
    of_run = ["--num-fid-samples", COUNT, "--per-proc-batch-size", BLOCK, "--num-sampling-steps", STEPS]
    where = ["--sample-dir", folder, "--run-name", "run"]
    config, _ = sample_ddp.parse(["--preset", "digits", *map(str, (*of_run, *where)), *more])
    with np.load(draw_files(config, fiducial.init("cuda"), False)) as arrays:
        return arrays["arr_0"]


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """How many levels apart pixels are in the mean."""
    return float(np.abs(one.astype(int) - other).mean())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The digits in fp32, not compiled."""
    return draw(tmp_path_factory.mktemp("plain"), "--precision", "fp32", "--no-compile")


def draw_exactly(folder: Path, *counts: int) -> np.ndarray:
    """The digits of an exact run that is continued until there are so many, each time by a process of its own, as libraries
    choose algorithms when they are first used."""
    for count in counts:
        given = ["--num-fid-samples", count, "--per-proc-batch-size", BLOCK, "--num-sampling-steps", STEPS, "--device", "cuda"]
        where = ["--sample-dir", folder, "--run-name", "run", "--no-png"]
        done = run_command("sample_ddp.py", "--preset", "digits", "--exact", *given, *where, ranks=1)
        assert done.returncode == 0, done.stderr
    with np.load(folder / "run.npz") as arrays:
        return arrays["arr_0"]


def test_an_exact_run_that_is_continued_equals_one_that_was_not(tmp_path):
    whole = draw_exactly(tmp_path / "whole", COUNT)
    assert (draw_exactly(tmp_path / "parts", BLOCK, COUNT) == whole).all()
    session = read(tmp_path / "whole" / "run").sessions[0]
    assert session.device == torch.cuda.get_device_name()
    assert session.hardware["cudnn"] == torch.backends.cudnn.version()


@pytest.mark.parametrize(
    "ways",
    [
        (),
        ("--precision", "tf32"),
        ("--precision", "bf16"),
        ("--precision", "bf16", "--compile"),
        ("--precision", "bf16", "--compile", "--cuda-tuning"),
        ("--precision", "fp32", "--compile", "--cuda-tuning"),
    ],
    ids=" ".join,
)
def test_a_faster_way_draws_the_same_images(ways, plain, tmp_path):
    assert apart(draw(tmp_path, *ways), plain) < LEVELS_APART


@pytest.mark.parametrize("ways", [("--no-compile",), ("--compile",)], ids=" ".join)
def test_decoding_beside_and_graphs_change_no_image_but_by_rounding(ways, tmp_path):
    """A copy that is not waited for, or a graph whose input was not there yet, gives other images, not nearly the same."""
    given = ("--precision", "bf16", *ways)
    beside, alone = draw(tmp_path / "beside", *given, "--cuda-tuning"), draw(tmp_path / "alone", *given, "--no-cuda-tuning")
    assert apart(beside, alone) < LEVELS_APART
    assert (draw(tmp_path / "again", *given, "--cuda-tuning") == beside).mean() > 0.99


def test_networks_that_wait_in_the_hosts_memory_draw_the_same(plain, tmp_path):
    assert apart(draw(tmp_path, "--precision", "fp32", "--no-compile", "--offload", "both"), plain) < LEVELS_APART


@pytest.mark.parametrize("name", ["digits", "inception"])
def test_features_are_those_of_the_cpu(name, inception_weights):
    """TF32 that was left on gives 1e-3."""
    images = pictures(16, 0, 64)
    weights = {"inception": inception_weights} if name == "inception" else None
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
    try:
        group = fiducial.init("cuda")
        groups = group, replace(group, device=torch.device("cpu"))
        found, expected = (load_extractor(name, weights, one).run(images)[0].cpu().double() for one in groups)
    finally:
        torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "none"
    assert ((found - expected).norm() / expected.norm()).item() < FEATURES_APART


def test_metrics_are_those_of_the_cpu(tmp_path):
    images = pictures(600, 0, 64)
    settings = Settings(cache_dir=tmp_path, metrics=("fid", "precision", "recall", "kid"), kid_subset_size=100)
    found, expected = (Evaluator("digits", None, settings, device=device).update(images).compute() for device in ("cuda", "cpu"))
    for metric, value in expected.metrics.items():
        assert found.metrics[metric].value == pytest.approx(value.value, rel=1e-3, abs=1e-4), metric


def test_what_this_gpu_has_is_found():
    config, _ = sample_ddp.parse(["--preset", "digits"])
    first, *others = numerics.choices(config, torch.device("cuda", 0))
    assert first.precision == ("bf16" if numerics.is_ampere(torch.device("cuda", 0)) else "fp32")
    assert others or first == numerics.REFERENCE
