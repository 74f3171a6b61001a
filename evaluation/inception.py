"""The Inception network of FID, in inference form: torch-fidelity's port of the TensorFlow graph, made to run fast.

Its numbers are those of the port to rounding: batch norm is folded into the convolutions, tensors lie channels last, and the
resize is one call. Beside TensorFlow's resize there is clean-fid's. In bfloat16 they are not, which is why that is an option.
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

from fiducial import Group, UserError, download, no_file

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
PUBLISHED_SHA256 = "6726825d"  # the first digits, which the published file carries in its name
RESOLUTION = 299
POOL_DIMENSION = 2048
SPATIAL_CHANNELS = 7  # of Mixed_6d's first branch; ADM's sFID takes as many so that there are about 2,000 features
SPATIAL_DIMENSION = 17 * 17 * SPATIAL_CHANNELS
CPU_CHUNK = 8  # images at once: their activations stay near the caches, where 64 at once do not
BLOCKS = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")


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
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.float32, resize: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        network = fold(copy.deepcopy(network)).to(memory_format=torch.channels_last)
        self.head = network.fc.weight.detach().clone()  # (1008, 2048): the Inception score takes no bias
        self.network = network.to(dtype)
        self.dtype = dtype
        self.resize = resize or tensorflow_resize

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        net = self.network
        x = ((self.resize(images.float()) - 128) / 128).to(self.dtype, memory_format=torch.channels_last)
        x = net.MaxPool_1(net.Conv2d_2b_3x3(net.Conv2d_2a_3x3(net.Conv2d_1a_3x3(x))))
        x = net.MaxPool_2(net.Conv2d_4a_3x3(net.Conv2d_3b_1x1(x)))
        for name in BLOCKS:
            x = net.get_submodule(f"Mixed_{name}")(x)
            if name == "6d":
                spatial = x[:, :SPATIAL_CHANNELS]  # a block's output begins with that of its branch1x1
        spatial = spatial.permute(0, 2, 3, 1).flatten(1)  # height, width, channel, as TensorFlow lays it out
        return x.float().mean((2, 3)), spatial.float()


def fold(module: nn.Module) -> nn.Module:
    """Replaces each convolution with batch norm by its `FoldedConv`, in place."""
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


def load_inception(path: Path) -> nn.Module:
    """torch-fidelity's network with the weights in `path`, which are loaded here, without unpickling objects.

    Raises:
        UserError: if they are missing, damaged, or not this network's.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    if reason := no_file(path):
        raise UserError(f"--inception-weights {path}: {reason}")
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
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"--inception-weights {path}: not the weights of torch-fidelity's InceptionV3 (names or shapes differ)"
        ) from error
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        raise UserError(f"--inception-weights {path}: holds NaN or infinity")
    return network


def kept_at(cache_dir: Path | None) -> Path:
    """Where the published file is kept: in Fiducial's cache if a person says where that is, else in torch's hub cache."""
    folder = cache_dir or Path(torch.hub.get_dir())
    return folder / "checkpoints" / URL.rsplit("/", 1)[1]


def fetch(cache_dir: Path | None = None) -> Path:
    """The published file, downloaded if it is not there.

    Raises:
        UserError: if it cannot be had.
    """
    try:
        return download(URL, kept_at(cache_dir), PUBLISHED_SHA256)
    except UserError as error:
        raise UserError(
            f"the Inception weights are missing: {error}, or give it as --inception-weights; FID-digits alone needs none"
        ) from error


def find_weights(given: Path | None, group: Group, cache_dir: Path | None = None) -> Path:
    """The file of weights: the one given, else the published one, which rank 0 fetches first, then nodes that do not see it.

    Raises:
        UserError: if there is none and it cannot be fetched.
    """
    if given is not None:
        return given
    return Path(group.once_per_node(["inception-weights", cache_dir], lambda: str(fetch(cache_dir)), main_first=True))
