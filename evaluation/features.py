"""Feature extractors: uint8 images -> (features, logits), each float32, each with the hash of its weights.

A number is only comparable to others from the same extractor, so each has a suffix that its metrics carry in their names.
"""

import hashlib
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from distributed import UserError, file_sha256

ASSETS = Path(__file__).resolve().parent.parent / "assets"
EXTRACTORS = ("inception", "digits")


@dataclass(frozen=True)
class Extractor:
    """A network in evaluation mode on its device.

    `apply` takes (N, 3, H, W) uint8 and gives features (N, dimension) and logits (N, classes) without bias, if the
    protocol wants it so. `image_size`, where set, is the only one that it takes. `suffix` belongs in the name of every
    metric made with it: a FID over digits is not a FID.
    """

    name: str
    dimension: int
    weights_sha256: str
    device: torch.device
    apply: Callable[[Tensor], tuple[Tensor, Tensor]]
    suffix: str = ""
    image_size: int | None = None


def load_extractor(name: str, weights: Path | None, device: torch.device) -> Extractor:
    """The extractor called `name`; `weights` is for `inception`, `digits` brings its own.

    Raises:
        UserError: if the weights are missing, damaged, or not this network's.
    """
    if name == "digits":
        return _load_digits(device)
    if name != "inception":
        raise UserError(f"there is no extractor {name!r}; choose from {', '.join(EXTRACTORS)}")
    if weights is None:
        raise UserError(
            "--inception-weights is missing: give the TF-ported Inception file that torch-fidelity publishes with its releases "
            "(weights-inception-2015-12-05-6726825d.pth); FID-digits alone needs none"
        )
    return _load_inception(weights, device)


def _load_inception(path: Path, device: torch.device) -> Extractor:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    if not path.is_file():
        raise UserError(f"--inception-weights {path}: no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError, KeyError) as error:
        raise UserError(f"--inception-weights {path}: not a whole file of weights ({type(error).__name__})") from error
    # torch-fidelity unpickles whatever file it is named, so it is handed what was just read, in memory.
    safe = io.BytesIO()
    torch.save(state, safe)
    safe.seek(0)
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=safe
        )
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"--inception-weights {path}: not the weights of torch-fidelity's InceptionV3 (names or shapes differ)"
        ) from error
    return Extractor("inception", 2048, file_sha256(path), device, network.to(device))


def _load_digits(device: torch.device) -> Extractor:
    data = (ASSETS / "digits" / "extractor.safetensors").read_bytes()
    network = DigitsNet()
    network.load_state_dict(load(data))
    network.eval().requires_grad_(False).to(device)
    digest = hashlib.sha256(data).hexdigest()
    return Extractor("digits", 64, digest, device, lambda images: network(images.float()), suffix="-digits", image_size=64)


class DigitsNet(nn.Module):
    """A small classifier of digits; its 64 features before the last layer make FID-digits.

    Input (N, 3, 64, 64), values 0 to 255 -> features (N, 64), logits (N, 10).
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 4 * 4, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = F.avg_pool2d(images.mean(1, keepdim=True) / 127.5 - 1, 4)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.conv3(x))
        features = F.relu(self.fc1(x.flatten(1)))
        return features, self.fc2(features)
