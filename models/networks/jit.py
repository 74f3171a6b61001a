"""JiT (Li and He, "Back to Basics", arXiv 2511.13720): a transformer that predicts the image itself, in pixels.

Its clock is SiT's: 0 is noise. Patches are embedded through a bottleneck; from some block on, 32 tokens of the class stand before
those of the image. Its rotation is no part of its files. Its files hold two averages, `model_ema1` (of decay 0.9999, which its
published numbers are of) and `model_ema2` (0.9996). At 512 pixels its noise is twice as large.
Names and arithmetic are those of the published code (cbc743a); no published weights have been read by this one.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from fiducial.models.networks import parts
from fiducial.models.networks.dit import LabelEmbedder, TimestepEmbedder, sincos_position_embedding

# hidden size, depth, heads, width of the bottleneck, first block with tokens of the class; XS is Fiducial's own, for trials.
SIZES = {
    "XS": (160, 6, 5, 32, 2),
    "B": (768, 12, 12, 128, 4),
    "L": (1024, 24, 16, 128, 8),
    "H": (1280, 32, 16, 256, 10),
}
PATCH_SIZES = (16, 32)
SMALL_PATCHES = (8,)  # of XS
CONTEXT = 32  # tokens of the class
LOUD_SIZE, LOUD = 512, 2.0  # from this image size on, the noise's standard deviation
LEAST_TIME = 0.05  # by which the velocity is at least divided, (x - image) / t
MARK, OWN = "x_embedder.proj1.weight", "in_context_posemb"


class Bottleneck(nn.Module):
    """Patches (B, C, H, W) to tokens (B, T, D), row by row, by way of few numbers each."""

    def __init__(self, patch_size: int, in_channels: int, width: int, hidden_size: int):
        super().__init__()
        self.proj1 = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.proj2 = nn.Conv2d(width, hidden_size, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj2(self.proj1(x)).flatten(2).transpose(1, 2)


class JiT(parts.Transformer):
    """Args as of `DiT`.

    Args:
        bottleneck: numbers a patch is reduced to.
        start: the first block with tokens of the class.
        context: how many there are.
    """

    def __init__(
        self,
        input_size: int = 256,
        patch_size: int = 16,
        in_channels: int = 3,
        hidden_size: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        num_classes: int = 1000,
        has_null: bool = True,
        bottleneck: int = 128,
        start: int = 4,
        context: int = CONTEXT,
    ):
        super().__init__(input_size, patch_size, in_channels, num_classes, has_null)
        self.start, self.side = start, input_size // patch_size
        self.head_dim = hidden_size // num_heads
        self.x_embedder = Bottleneck(patch_size, in_channels, bottleneck, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size, frequency_shift=0)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, has_null)
        self.pos_embed = nn.Parameter(sincos_position_embedding(hidden_size, self.side), requires_grad=False)
        self.in_context_posemb = nn.Parameter(0.02 * torch.randn(1, context, hidden_size))
        self.blocks = nn.ModuleList(
            parts.Block(hidden_size, num_heads, parts.SwiGLU(hidden_size), parts.RMSNorm) for _ in range(depth)
        )
        self.final_layer = parts.FinalLayer(hidden_size, patch_size**2 * in_channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x (N, C, H, W), times (N,), or (1,) for all, 0 noise; labels (N,) int64 -> images (N, C, H, W)."""
        of_class = self.y_embedder(y)
        c = self.t_embedder(t) + of_class
        x = self.x_embedder(x) + self.pos_embed
        turn, tokens = parts.grid_rotation(self.head_dim, self.side, x.device), self.in_context_posemb.shape[1]
        for number, block in enumerate(self.blocks):
            if number == self.start:
                x = torch.cat([self.in_context_posemb + of_class.unsqueeze(1), x], dim=1)
                turn = parts.behind(tokens, turn)
            x = block(x, c, turn)
        return self.unpatchify(self.final_layer(x[:, x.shape[1] - self.side**2 :], c))


def build(size: str, patch_size: int, **options: object) -> JiT:
    """A network of one of `SIZES`."""
    names = ("hidden_size", "depth", "num_heads", "bottleneck", "start")
    return JiT(patch_size=patch_size, **dict(zip(names, SIZES[size], strict=True)), **options)


JiT_models: dict[str, Callable[..., JiT]] = {
    f"JiT-{size}/{patch}": partial(build, size, patch)
    for size in reversed(SIZES)
    for patch in (SMALL_PATCHES if size == "XS" else PATCH_SIZES)
}


def clock(t: float) -> float:
    """The time that it is fed at one from 0, the image, to 1, noise."""
    return 1 - t


def noise_scale(image_size: int) -> float:
    """The standard deviation of the noise that it was trained with, of images in [-1, 1]."""
    return LOUD if image_size >= LOUD_SIZE else 1.0


def is_told_by(keys: Iterable[str]) -> bool:
    """Whether names of weights are of a JiT."""
    return {MARK, OWN} <= set(keys)


def shape(state: parts.State) -> parts.Shape:
    """See `parts.Layout.shape`."""
    _, channels, patch, _ = state[MARK].shape
    _, tokens, width = state["pos_embed"].shape
    depth, side = parts.depth_of(state), math.isqrt(tokens) * patch
    return parts.Shape(parts.named_size(SIZES, width, depth), patch, channels, side, len(state[parts.TABLE]), width, depth)


def build_any(found: parts.Shape) -> JiT:
    """A network of whatever size, for its names."""
    return JiT(found.side, found.patch, found.channels, found.width, found.depth, 1, found.rows, False)


LAYOUT = parts.Layout(is_told_by, shape, mark=MARK, build=build_any)
