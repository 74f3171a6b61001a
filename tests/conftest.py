"""What tests share: a tiny random model on disk, commands run as a user runs them, and no silent skips in CI."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mirror import Mirror
from safetensors.torch import save_file

import fiducial
from fiducial.models import DiT_models
from fiducial.models.decoders.autoencoder import Autoencoder
from fiducial.models.latent import LatentShape
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.run import session
from fiducial.sampling.run.image_files import ImageFiles
from fiducial.sampling.source.latent_diffusion import LatentDiffusion
from fiducial.sampling.source.networks import Networks
from fiducial.sampling.source.numerics import Numerics
from scripts.stand_ins import write_inception

torch.set_num_threads(1)  # on networks as small as these, threads only wait for each other

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "assets" / "digits"


def randomised(network: torch.nn.Module, seed: int = 0, std: float = 0.05) -> torch.nn.Module:
    """Every parameter random: the official initialisation gives zeros, on which any two networks agree."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if name != "pos_embed":
            parameter.data = std * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def digits_source(config: SamplingConfig, device: torch.device, how: Numerics) -> LatentDiffusion:
    """What draws latents of the digits' shape, with their autoencoder; not loaded."""
    networks = Networks(config, device, how, LatentShape(4, 8), lambda: Autoencoder(DIGITS / "vae"))
    return LatentDiffusion(networks)


def run_command(*arguments: str | Path, ranks: int = 0, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess:
    """Runs a Python program of ours, through torchrun if `ranks` is given, one thread a process; output is captured as text."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks else []
    return subprocess.run(
        [sys.executable, *launcher, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def features(count: int, seed: int, dimension: int = 24) -> np.ndarray:
    """Non-negative and skewed, as pooled activations are."""
    random = np.random.default_rng(seed)
    return np.abs(random.normal(0.4 + 0.02 * seed, 0.3, size=(count, dimension))).astype(np.float32)


PLAIN = ("--precision", "fp32", "--no-compile")  # on any processor the same, and nothing to wait for


def options(checkpoint: Path, folder: Path, **changes) -> list[str]:
    """Arguments of sample_ddp.py for a small run of `tiny_checkpoint`."""
    settings = {
        "preset": "digits",
        "model": "DiT-XS/8",
        "ckpt": checkpoint,
        "num_fid_samples": 22,
        "per_proc_batch_size": 4,
        "num_sampling_steps": 3,
        "sample_dir": folder,
        "run_name": "run",
    } | changes
    given = [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return [*PLAIN, *given, "--no-probe"]  # its weights are random


def draw_files(config: SamplingConfig, group: fiducial.Group, with_png: bool = True, *more: object, **options: object) -> Path:
    """The npz of a run, drawn in this process."""
    return session.draw(config, group, ImageFiles(with_png), *more, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Every image of the run in `folder` and its npz."""
    return {path.name: path.read_bytes() for path in [*(folder / "run").glob("*.png"), folder / "run.npz"]}


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Features go to a folder of this session's, also those of commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def alone() -> fiducial.Group:
    """A group of one, on the CPU."""
    return fiducial.init("cpu")


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    """A web server that has nothing yet."""
    server = Mirror()
    yield server
    server.close()


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random but lively weights of the Inception network, in a file as it is published."""
    return write_inception(tmp_path_factory.mktemp("inception") / "weights.pth")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DiT-XS/8 for the digits' latents with random weights: one token, so a step costs nothing."""
    network = randomised(DiT_models["DiT-XS/8"](input_size=8, num_classes=10))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(network.state_dict(), path)
    return path


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a test that is skipped for want of anything but a GPU is a failure: the machine is to have what it needs."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = [report.nodeid for report in reporter.stats.get("skipped", []) if "needs a GPU" not in str(report.longrepr)]
    if skipped and os.environ.get("CI"):
        reporter.write_line(f"skipped, which counts as a failure in CI: {', '.join(skipped)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
