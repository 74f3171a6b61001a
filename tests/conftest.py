"""What tests share: a tiny random model on disk, commands run as a user runs them, and no silent skips in CI."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

import distributed
from models import DiT_models

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


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Features go to a folder of this session's, also those of commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def alone() -> distributed.Group:
    """A group of one, on the CPU."""
    return distributed.init("cpu")


def pictures(count: int, seed: int, size: int = 64) -> np.ndarray:
    """Smooth coloured blobs (count, size, size, 3) uint8: unlike noise, they differ after Inception's resize."""
    random = np.random.default_rng(seed)
    small = torch.from_numpy(random.normal(0.5 + 0.1 * seed, 0.4, size=(count, 3, 5, 5)))
    large = torch.nn.functional.interpolate(small, size=size, mode="bicubic").clamp(0, 1)
    return (255 * large).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def write_pngs(folder: Path, images: np.ndarray) -> Path:
    """Makes `folder` with one PNG an image, named by index."""
    folder.mkdir()
    for index, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{index:06d}.png", compress_level=1)
    return folder


def inception_score_of(logits: torch.Tensor) -> float:
    """exp(mean KL) in one block."""
    p = logits.double().softmax(1)
    return float((p * (p / p.mean(0)).clamp_min(1e-30).log()).sum(1).mean().exp())


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file in torch-fidelity's form, random but alive.

    At the default initialisation all features are near 0 and every Inception score is 1; here the batch norms know the
    statistics of some pictures, and the last layer is scaled until the score of some is above 3. Its bias is large, so that
    keeping it would show.
    """
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["logits_unbiased"])
    seen = torch.from_numpy(np.concatenate([pictures(8, 0), pictures(8, 1)])).permute(0, 3, 1, 2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    with torch.no_grad():
        network(seen)
        network.eval()
        network.fc.bias.normal_(0, 2)
        (logits,) = network(seen)
        scale = next(scale for scale in range(1, 1000) if inception_score_of(scale * logits) > 5)
        network.fc.weight *= scale
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


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
