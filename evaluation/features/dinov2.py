"""The DINOv2 network of FD-DINOv2: timm's ViT-L/14 with the published weights, whose position embeddings are resampled as in the
official code.

timm would resample them in another way, which gives other features; so it is handed those of 16 x 16 patches.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiducial import UserError, file_sha256
from fiducial.evaluation.features import ExtractorSpec
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.features.states import read_state, require_finite

RESOLUTION, PATCH = 224, 14
PATCHES, TRAINED_PATCHES = RESOLUTION // PATCH, 37  # a side; the network was trained at 518 pixels
OFFSET = 0.1  # added to the patches wanted, as the official code does against rounding; it moves every embedding a little
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU_CHUNK = 8  # images at once


def build(spec: ExtractorSpec, path: Path, device: torch.device, _dtype: str) -> Extractor:
    """The network with its weights."""
    network = DINOv2(load_dinov2(path))
    network.requires_grad_(False).to(device)
    return Extractor.of(spec, file_sha256(path), device, lambda images: (network(images), None), cpu_chunk=CPU_CHUNK)


class DINOv2(nn.Module):
    """(N, 3, H, W) uint8 -> the normalised class token (N, 1024) float32.

    Args:
        network: a Vision Transformer of timm's for images of 224 pixels, without a head.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(prepare(images))


def prepare(images: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, 3, 224, 224) float32 as EDM2's `calculate_metrics.py` does by default.

    That is a bicubic resize with antialias in float32, neither rounded nor clipped, and the mean and deviation of ImageNet.
    """
    x = F.interpolate(images.float(), size=(RESOLUTION, RESOLUTION), mode="bicubic", antialias=True) / 255
    mean, std = (torch.tensor(values, device=x.device).view(3, 1, 1) for values in (MEAN, STD))
    return (x - mean) / std


def interpolate_positions(embeddings: Tensor) -> Tensor:
    """(1, 1 + 37 x 37, D) -> (1, 1 + 16 x 16, D), as `interpolate_pos_encoding` of facebookresearch/dinov2 does.

    Bicubic without antialias, where pixel i samples position (i + 0.5) * 37 / 16.1 - 0.5. The class token's stays as it is.
    """
    token, patches = embeddings[:, :1], embeddings[:, 1:]
    grid = patches.unflatten(1, (TRAINED_PATCHES, TRAINED_PATCHES)).permute(0, 3, 1, 2)
    factor = (PATCHES + OFFSET) / TRAINED_PATCHES
    small = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([token, small.flatten(2).transpose(1, 2)], 1)


def bare() -> nn.Module:
    """timm's network without weights, on the meta device.

    Raises:
        UserError: if timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError("the extractor dinov2 needs timm; pip install timm") from error
    with torch.device("meta"):
        return timm.create_model("vit_large_patch14_dinov2", pretrained=False, img_size=RESOLUTION, num_classes=0)


def load_dinov2(path: Path) -> nn.Module:
    """The network with the weights in `path`, under the official names or timm's (the same, without the token of masks).

    Raises:
        UserError: if they are missing, damaged, or not this network's.
    """
    state = read_state("dinov2", path)
    network = bare().eval()
    state.pop("mask_token", None)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    shapes["pos_embed"] = (1, 1 + TRAINED_PATCHES**2, shapes["pos_embed"][2])
    if {name: tuple(tensor.shape) for name, tensor in state.items()} != shapes:
        raise UserError(f"--weights dinov2={path}: not the weights of DINOv2's ViT-L/14 (names or shapes differ)")
    require_finite("dinov2", path, state)
    state["pos_embed"] = interpolate_positions(state["pos_embed"])
    network.load_state_dict(state, assign=True)
    return network
