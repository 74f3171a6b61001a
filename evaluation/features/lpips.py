"""LPIPS: the distance of images by a network's layers (Zhang et al. 2018, arXiv 1801.03924), its weights read from files.

Written from the paper and the names in the published files; `lpips`, the package of its authors, is what the tests compare it
with. It is no dependency, as it has not been released since 2021 and imports plotting, but its linear layers are taken where it
is installed.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fiducial import Group, UserError, file_sha256
from fiducial.evaluation.features.perceptual import IN_PACKAGE, PACKAGE, PerceptualSpec
from fiducial.evaluation.features.states import read_state, require_finite
from fiducial.evaluation.features.weights import Weights
from fiducial.precision import plain_float32

EPSILON = 1e-10  # added to the length of a place's features
# By which pixels from -1 to 1 are normalised: ImageNet's mean and deviation on that scale.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """Two tensors (N, 3, H, W) of pixels from -1 to 1 -> their distances (N,) float32, from 0 on.

    Args:
        features: the convolutions of the network that `spec` names.
        heads: the weights of the linear layers, (C,) each.
    """

    def __init__(self, spec: PerceptualSpec, features: nn.Sequential, heads: list[Tensor]):
        super().__init__()
        self.spec = spec
        self.features = features[: spec.layers[-1] + 1]
        for module in self.features:
            if isinstance(module, nn.ReLU):
                module.inplace = False  # or it would change a layer that is still to be compared
        for number, head in enumerate(heads):
            self.register_buffer(f"head{number}", head.view(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    @plain_float32()
    def forward(self, images: Tensor, originals: Tensor) -> Tensor:
        count, x, total = len(images), (torch.cat([images, originals]) - self.shift) / self.scale, 0.0
        for place, module in enumerate(self.features):
            x = module(x)
            if place in self.spec.layers:
                normed = x / (x.square().sum(1, keepdim=True).sqrt() + EPSILON)
                head = self.get_buffer(f"head{self.spec.layers.index(place)}")
                total = total + (head * (normed[:count] - normed[count:]).square()).sum(1).mean((1, 2))
        return total


class Perceptual:
    """A network of LPIPS that is loaded: `network` on its device, and the SHA-256 of both files of weights."""

    def __init__(self, spec: PerceptualSpec, network: Lpips, files: Mapping[str, str]):
        self.spec, self.network, self.sha256 = spec, network, dict(files)

    @property
    def as_published(self) -> bool:
        """Whether both files are the published ones."""
        return all(weights.are_published(self.sha256[weights.name]) for weights in self.spec.weights)


def find(spec: PerceptualSpec, given: Mapping[str, str | Path], group: Group, cache_dir: Path | None) -> dict[str, Path]:
    """The files of weights by their names: those given, else the package's linear layers, else the published ones, fetched.

    Raises:
        UserError: if one is missing and cannot be fetched.
    """
    return {
        one.name: Path(given[one.name]) if one.name in given else packaged(one) or one.find(None, group, cache_dir)
        for one in spec.weights
    }


def packaged(weights: Weights) -> Path | None:
    """The file of that name in the package lpips, where it is installed and its file is the published one."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.origin:
        return None
    path = Path(found.origin).parent / IN_PACKAGE / weights.url.rsplit("/", 1)[1]
    return path if path.is_file() and weights.are_published(file_sha256(path)) else None


def load(spec: PerceptualSpec, files: Mapping[str, Path], device: torch.device) -> Perceptual:
    """The network on its device, of files by the names of their weights.

    Raises:
        UserError: if a file is damaged, or of another network.
    """
    backbone, heads = (read_state(one.name, files[one.name]) for one in spec.weights)
    network = Lpips(spec, _features(spec, files, backbone), _heads(spec, files, heads))
    return Perceptual(spec, network.to(device), {name: file_sha256(path) for name, path in files.items()})


def _features(spec: PerceptualSpec, files: Mapping[str, Path], state: dict[str, Tensor]) -> nn.Sequential:
    """The convolutions of torchvision's model with the weights of a file of it."""
    import torchvision.models

    with torch.device("meta"):
        features = getattr(torchvision.models, spec.model)(weights=None).features
    path, prefix = files[spec.backbone.name], "features."
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    wanted = {name: tuple(value.shape) for name, value in features.state_dict().items()}
    if {name: tuple(value.shape) for name, value in own.items()} != wanted:
        raise UserError(f"--weights {spec.backbone.name}={path}: its layers are not those of {spec.backbone.form}")
    require_finite(spec.backbone.name, path, own)
    features.load_state_dict(own, assign=True)
    return features


def _heads(spec: PerceptualSpec, files: Mapping[str, Path], state: dict[str, Tensor]) -> list[Tensor]:
    """The linear layers' weights, (C,) each."""
    name, path = spec.heads.name, files[spec.heads.name]
    found = [state.get(f"lin{number}.model.1.weight") for number in range(len(spec.channels))]
    if any(head is None or tuple(head.shape) != (1, count, 1, 1) for head, count in zip(found, spec.channels, strict=True)):
        raise UserError(f"--weights {name}={path}: its layers are not {spec.heads.form}")
    require_finite(name, path, dict(enumerate(found)))
    return [head.flatten() for head in found]
