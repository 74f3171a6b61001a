"""The Inception network of FID, in inference form: torch-fidelity's port of the TensorFlow graph, made to run fast.

Its numbers are those of the port to rounding: batch norm is folded into the convolutions, tensors lie channels last, and the
resize is one call. Beside TensorFlow's resize there are clean-fid's and pytorch-fid's. In bfloat16 they are not, so that is an
option.
"""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fiducial import UserError, file_sha256, no_file
from fiducial.evaluation.features import SPATIAL_CHANNELS, ExtractorSpec
from fiducial.evaluation.features.extractor import Extractor

RESOLUTION = 299
CPU_CHUNK = 8  # images at once: their activations stay near the caches, where 64 at once do not
BLOCKS = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build(spec: ExtractorSpec, path: Path, device: torch.device, dtype: str) -> Extractor:
    """The network with the resize and scaling that the row names; sFID is defined on TensorFlow's alone."""
    network = Inception(load_inception(path), DTYPES[dtype], *PREPARED[spec.resized_as])
    network.requires_grad_(False).to(device)
    return Extractor.of(
        spec,
        file_sha256(path),
        device,
        network if spec.spatial_dimension else (lambda images: (network(images)[0], None)),
        logits=lambda features: features @ network.head.to(features.device).T,
        dtype=dtype,
        cpu_chunk=CPU_CHUNK,
    )


class FoldedConv(nn.Module):
    """A convolution with its batch norm folded in, and ReLU."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.conv = fuse_conv_bn_eval(block.conv, block.bn)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.conv(x))


class Inception(nn.Module):
    """(N, 3, H, W) uint8 -> pool3 (N, 2048) and the spatial features of sFID (N, 2023), float32.

    Args:
        network: torch-fidelity's FeatureExtractorInceptionV3 with its weights.
        dtype: of the convolutions; the resize, the last pooling and all outputs are float32.
        resize: float32 (N, 3, H, W), values 0 to 255, to 299 x 299; TensorFlow's unless given.
        centre: the level that becomes 0; 0 becomes -1.
    """

    def __init__(
        self,
        network: nn.Module,
        dtype: torch.dtype = torch.float32,
        resize: Callable[[Tensor], Tensor] | None = None,
        centre: float = 128,
    ):
        super().__init__()
        network = fold(copy.deepcopy(network)).to(memory_format=torch.channels_last)
        self.head = network.fc.weight.detach().clone()  # (1008, 2048): the Inception score takes no bias
        self.network = network.to(dtype)
        self.dtype = dtype
        self.resize, self.centre = resize or tensorflow_resize, centre

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        net, levels = self.network, images.to(torch.promote_types(images.dtype, torch.float32))
        x = ((self.resize(levels) - self.centre) / self.centre).to(self.dtype, memory_format=torch.channels_last)
        x = net.MaxPool_1(net.Conv2d_2b_3x3(net.Conv2d_2a_3x3(net.Conv2d_1a_3x3(x))))
        x = net.MaxPool_2(net.Conv2d_4a_3x3(net.Conv2d_3b_1x1(x)))
        for name in BLOCKS:
            x = net.get_submodule(f"Mixed_{name}")(x)
            if name == "6d":
                spatial = x[:, :SPATIAL_CHANNELS]  # a block's output begins with that of its branch1x1
        spatial = spatial.permute(0, 2, 3, 1).flatten(1)  # height, width, channel, as TensorFlow lays it out
        return x.float().mean((2, 3)), spatial.float()


def fold(module: nn.Module) -> nn.Module:
    """Replace each convolution with batch norm by its `FoldedConv`, in place."""
    for name, child in module.named_children():
        setattr(module, name, FoldedConv(child)) if hasattr(child, "bn") else fold(child)
    return module


def tensorflow_resize(images: Tensor) -> Tensor:
    """TensorFlow 1's bilinear resize of (N, C, H, W) float32 to 299 x 299: pixel i samples position i * in / out.

    There is no half-pixel centre and no antialias; neighbours beyond the edge repeat it. That is an align-corners resize of
    the image with its last row and column repeated, to one pixel more than wanted.
    """
    if images.shape[-2:] == (RESOLUTION, RESOLUTION):
        return images
    padded = F.pad(images, (0, 1, 0, 1), mode="replicate")
    large = F.interpolate(padded, size=(RESOLUTION + 1, RESOLUTION + 1), mode="bilinear", align_corners=True)
    return large[..., :RESOLUTION, :RESOLUTION]


def clean_resize(images: Tensor) -> Tensor:
    """clean-fid's resize of (N, C, H, W) float32 to 299 x 299: bicubic with antialias, clipped to 0..255, not rounded.

    It is PIL's of single channels in mode F, to rounding.
    """
    return F.interpolate(images, size=(RESOLUTION, RESOLUTION), mode="bicubic", antialias=True).clamp(0, 255)


def half_pixel_resize(images: Tensor) -> Tensor:
    """pytorch-fid's resize of (N, C, H, W) float32 to 299 x 299: bilinear with half-pixel centres, no antialias."""
    return F.interpolate(images, size=(RESOLUTION, RESOLUTION), mode="bilinear", align_corners=False)


# By whose it is: the resize, and the level that becomes 0. pytorch-fid's levels of 0 to 1 become -1 to 1.
PREPARED = {"ADM": (tensorflow_resize, 128), "clean-fid": (clean_resize, 128), "pytorch-fid": (half_pixel_resize, 127.5)}


def load_inception(path: Path) -> nn.Module:
    """torch-fidelity's network with the weights in `path`, which are loaded here, without unpickling objects.

    Raises:
        UserError: if they are missing, damaged, or not this network's.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    if reason := no_file(path):
        raise UserError(f"--weights inception={path}: {reason}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError, KeyError) as error:
        raise UserError(f"--weights inception={path}: not a whole file of weights ({type(error).__name__})") from error
    # torch-fidelity unpickles whatever file it is named, so it is handed what was just read, in memory.
    safe = io.BytesIO()
    torch.save(state, safe)
    safe.seek(0)
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=safe
        )
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"--weights inception={path}: not the weights of torch-fidelity's InceptionV3 (names or shapes differ)"
        ) from error
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        raise UserError(f"--weights inception={path}: holds NaN or infinity")
    return network
