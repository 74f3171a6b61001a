"""Feature extractors: uint8 images -> features, each with the hash of its weights.

A number is only comparable to others from the same extractor, so each has a suffix that its metrics carry in their names.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from fiducial import Group, UserError, file_sha256
from fiducial.evaluation import dinov2, inception
from fiducial.memory import keep_freed_memory
from fiducial.wings import ASSETS

CUDA_CHUNK = 64  # images at once on a GPU
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Outputs:
    """What an extractor gives, known before its weights are fetched, so that a mistake is told before. As in `Extractor`."""

    name: str
    dimension: int
    spatial_dimension: int = 0
    logits: bool = True


KNOWN = (
    Outputs("inception", inception.POOL_DIMENSION, inception.SPATIAL_DIMENSION),
    Outputs("inception-clean", inception.POOL_DIMENSION),
    Outputs("dinov2", dinov2.DIMENSION, logits=False),
    Outputs("digits", 64),
)
EXTRACTORS = {outputs.name: outputs for outputs in KNOWN}


@dataclass(frozen=True)
class Extractor:
    """A network in evaluation mode on its device.

    `apply` takes (N, 3, H, W) uint8 and gives features (N, dimension) and, unless `spatial_dimension` is 0, spatial features
    (N, spatial_dimension), float32. `logits` takes features, on any device, and gives what the Inception score is made of; None
    where there are none.
    `image_size`, where set, is the only one that it takes. `suffix` belongs in the name of every metric made with it: a FID
    over digits is not a FID; `distance` is what a Fréchet distance over it is called. `as_published` is whether the weights are
    those that published numbers are made with, None where that is not known.
    `cpu_chunk` is how many images it takes at once on a CPU, `packages` are those that its features hang on beside torch.
    """

    name: str
    dimension: int
    weights_sha256: str
    device: torch.device
    apply: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    logits: Callable[[Tensor], Tensor] | None
    spatial_dimension: int = 0
    dtype: str = "float32"
    suffix: str = ""
    image_size: int | None = None
    distance: str = "FID"
    as_published: bool | None = True
    cpu_chunk: int = 64
    packages: tuple[str, ...] = ()

    def run(self, batch: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """`apply` on a batch as files give it, (B, H, W, 3) uint8, in chunks of one size.

        Matrix products and convolutions of another size sum in another order. So a chunk that is not full is filled up with
        its last image: the features of an image are the same to the bit, whatever batch it comes in.
        """
        size = self.cpu_chunk if self.device.type == "cpu" else CUDA_CHUNK
        parts = [self._run_chunk(batch[start : start + size], size) for start in range(0, len(batch), size)]
        features, spatial = zip(*parts, strict=True)
        return torch.cat(features), torch.cat(spatial) if self.spatial_dimension else None

    def _run_chunk(self, images: np.ndarray, size: int) -> tuple[Tensor, Tensor | None]:
        """`apply` on up to `size` images, filled up to as many; the results of those that were given."""
        count = len(images)
        if count < size:
            images = np.concatenate([images, np.repeat(images[-1:], size - count, axis=0)])
        features, spatial = self.apply(torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device))
        return features[:count], None if spatial is None else spatial[:count]


def load_extractor(
    name: str, weights: Path | None, group: Group, dtype: str = "float32", cache_dir: Path | None = None
) -> Extractor:
    """The extractor called `name`; `weights` and `cache_dir` are for those whose weights are files (see `find_weights`).

    Raises:
        UserError: if the weights are missing, damaged, or not this network's.
    """
    assert name in EXTRACTORS, name
    with torch.random.fork_rng(devices=[]):  # networks are made before their weights are read, which draws random numbers
        return _load(name, weights, group, dtype, cache_dir)


def _load(name: str, weights: Path | None, group: Group, dtype: str, cache_dir: Path | None) -> Extractor:
    if dtype != "float32" and name in ("digits", "dinov2"):
        raise UserError(f"--dtype {dtype}: the extractor {name} runs in float32 only")
    if name == "digits":
        return _load_digits(group.device)
    if group.device.type == "cpu":
        keep_freed_memory()
    return (
        _load_dinov2(weights, group, cache_dir) if name == "dinov2" else _load_inception(name, weights, group, dtype, cache_dir)
    )


def _load_inception(name: str, weights: Path | None, group: Group, dtype: str, cache_dir: Path | None) -> Extractor:
    """The Inception network with TensorFlow's resize or, as `inception-clean`, with clean-fid's, which sFID is not defined on."""
    path = inception.find_weights(weights, group, cache_dir)
    clean = name == "inception-clean"
    resize = inception.clean_resize if clean else inception.tensorflow_resize
    network = inception.Inception(inception.load_inception(path), DTYPES[dtype], resize)
    network.requires_grad_(False).to(group.device)
    digest = file_sha256(path)
    return Extractor(
        name,
        inception.POOL_DIMENSION,
        digest,
        group.device,
        (lambda images: (network(images)[0], None)) if clean else network,
        lambda features: features @ network.head.to(features.device).T,
        spatial_dimension=0 if clean else inception.SPATIAL_DIMENSION,
        dtype=dtype,
        suffix="-clean" if clean else "",
        as_published=digest.startswith(inception.PUBLISHED_SHA256),
        cpu_chunk=inception.CPU_CHUNK,
        packages=("torch-fidelity",),
    )


def _load_dinov2(weights: Path | None, group: Group, cache_dir: Path | None) -> Extractor:
    path = dinov2.find_weights(weights, group, cache_dir)
    network = dinov2.DINOv2(dinov2.load_dinov2(path))
    network.requires_grad_(False).to(group.device)
    return Extractor(
        "dinov2",
        dinov2.DIMENSION,
        file_sha256(path),
        group.device,
        lambda images: (network(images), None),
        None,
        suffix="-DINOv2",
        distance="FD",
        as_published=None,
        cpu_chunk=dinov2.CPU_CHUNK,
        packages=("timm",),
    )


def weights_of(name: str, inception_weights: Path | None, dinov2_weights: Path | None) -> Path | None:
    """The file that was given for the extractor called `name`, if one was.

    Raises:
        UserError: if one was given for DINOv2 only, which is not used.
    """
    if dinov2_weights and name != "dinov2":
        raise UserError(f"--dinov2-weights {dinov2_weights}: the extractor is {name}, which does not take them")
    return dinov2_weights if name == "dinov2" else inception_weights


def _load_digits(device: torch.device) -> Extractor:
    data = (ASSETS / "digits" / "extractor.safetensors").read_bytes()
    network = DigitsNet()
    network.load_state_dict(load(data))
    network.eval().requires_grad_(False).to(device)
    digest = hashlib.sha256(data).hexdigest()
    head = network.fc2
    return Extractor(
        "digits",
        EXTRACTORS["digits"].dimension,
        digest,
        device,
        lambda images: (network(images.float()), None),
        lambda features: F.linear(features, head.weight.to(features.device), head.bias.to(features.device)),
        suffix="-digits",
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
