"""The embedded classifier of digits, whose features make FID-digits: no download, seconds on a CPU."""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from fiducial.evaluation.features import ExtractorSpec
from fiducial.evaluation.features.extractor import Extractor
from fiducial.wings import ASSETS


def build(spec: ExtractorSpec, _path: Path | None, device: torch.device, _dtype: str) -> Extractor:
    """The classifier with its weights."""
    data = (ASSETS / "digits" / "extractor.safetensors").read_bytes()
    network = DigitsNet()
    network.load_state_dict(load(data))
    network.eval().requires_grad_(False).to(device)
    head = network.fc2
    return Extractor.of(
        spec,
        hashlib.sha256(data).hexdigest(),
        device,
        lambda images: (network(images.float()), None),
        logits=lambda features: F.linear(features, head.weight.to(features.device), head.bias.to(features.device)),
        image_size=64,
    )


class DigitsNet(nn.Module):
    """A small classifier of digits; its 64 features before the last layer, `fc2`, make FID-digits.

    Input (N, 3, 64, 64), values 0 to 255 -> features (N, 64), whose logits (N, 10) are `fc2` of them.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 4 * 4, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.avg_pool2d(images.mean(1, keepdim=True) / 127.5 - 1, 4)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.conv3(x))
        return F.relu(self.fc1(x.flatten(1)))
