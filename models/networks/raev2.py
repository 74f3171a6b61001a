"""RAEv2 (Singh et al., arXiv 2605.18324): a DiT^DH that predicts the image, and has an inner head that does so earlier and worse.

Its clock is 1 at noise. Times and classes stand behind the image as tokens, 4 and 8, which are not turned, and the blocks of the
encoder are not modulated; the condition that it makes for each token modulates the blocks of the wide head, as in RAE. The inner
head is one layer on the tokens of the image after the encoder's eighth block, and what guidance leads away from.
The tables of both rotations are in its files. Names and arithmetic are those of the published code (commit 8a0d238), but for
`ctx_embedder`, `adaln_modulation` and the last norms, which are called here as in other families; no published weights have been
read by this one. The published networks have one size, called XL here.
"""

import math
import re
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiducial.models.networks import parts, rae
from fiducial.models.networks.dit import MLP_RATIO, LabelEmbedder, PatchEmbed

# Width, depth and heads, of the encoder and of the head; the block before the inner head. XS is Fiducial's own, for trials.
SIZES = {
    "XS": (160, 5, 5, 256, 1, 4, 2),
    "XL": (1440, 28, 20, 2048, 2, 16, 8),
}
CHANNELS = 1024  # of DINOv3-L's features, of 16 x 16 at 256
TIME_TOKENS, CLASS_TOKENS = 4, 8
LEAST_TIME = 0.05  # by which the velocity is at least divided, (x - image) / t
MARK, INNER = "s_embedder.proj.weight", "base_final_layer.linear.weight"
PROJECTIONS = ("q", "k", "v", "proj")
NAMES = {  # of files, and here
    r"^ctx_embedder\.": "y_embedder.",
    r"\.adaln_modulation\.": ".adaLN_modulation.",
    r"^((?:base_)?final_layer)\.norm\.": r"\1.norm_final.",
}
TRAINING = ("repa_projector.",)


class TimeEmbedder(rae.FourierEmbedder):
    """RAE's, with tokens that stand for the time: (N,) -> (N, D), to be added to each of them."""

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size)
        self.learnable_tokens = nn.Parameter(torch.randn(TIME_TOKENS, hidden_size) / math.sqrt(hidden_size))


class ClassEmbedder(LabelEmbedder):
    """A row a class, with tokens that stand for the class: labels (N,) -> (N, D), to be added to each of them."""

    def __init__(self, num_classes: int, hidden_size: int, has_null: bool):
        super().__init__(num_classes, hidden_size, has_null)
        self.learnable_tokens = nn.Parameter(torch.randn(CLASS_TOKENS, hidden_size) / math.sqrt(hidden_size))


class GatedMLP(nn.Module):
    """silu(w1 x) w2 x, and back by w3, with biases."""

    def __init__(self, hidden_size: int):
        super().__init__()
        width = int(2 / 3 * hidden_size * MLP_RATIO)
        self.w1, self.w2 = (nn.Linear(hidden_size, width) for _ in range(2))
        self.w3 = nn.Linear(width, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class EncoderBlock(nn.Module):
    """Attention and an MLP behind RMSNorms, not modulated."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.norm1 = parts.RMSNorm(hidden_size)
        self.attn = parts.ApartAttention(hidden_size, num_heads, PROJECTIONS, bias=True)
        self.norm2 = parts.RMSNorm(hidden_size)
        self.mlp = GatedMLP(hidden_size)

    def products(self) -> list[nn.Module]:
        """Its matrices, and what consists of nothing else."""
        return [*self.attn.products(), self.mlp]

    def forward(self, x: Tensor, turn: parts.Rotation) -> Tensor:
        half = self.attn.proj.weight.dtype
        x = x + self.attn(self.norm1(x).to(half), turn)
        return x + self.mlp(self.norm2(x).to(half))


class HeadBlock(parts.Block):
    """A modulated block, whose attention has four matrices."""

    def __init__(self, hidden_size: int, num_heads: int):
        attn = parts.ApartAttention(hidden_size, num_heads, PROJECTIONS, bias=True)
        super().__init__(hidden_size, num_heads, GatedMLP(hidden_size), attn=attn)


class RAEv2(parts.Transformer):
    """Args as of `rae.DiTDH`.

    Args:
        inner: the block of the encoder that its inner head comes after, counted from 1; None where it has none.
    """

    def __init__(
        self,
        input_size: int = 16,
        in_channels: int = CHANNELS,
        hidden_size: int = 1440,
        depth: int = 28,
        num_heads: int = 20,
        head_size: int = 2048,
        head_depth: int = 2,
        head_heads: int = 16,
        num_classes: int = 1000,
        has_null: bool = True,
        inner: int | None = 8,
    ):
        super().__init__(input_size, 1, in_channels, num_classes, has_null)
        self.encoders, self.inner = depth, inner
        self.x_embedder = PatchEmbed(1, in_channels, head_size)
        self.s_embedder = PatchEmbed(1, in_channels, hidden_size)
        self.s_projector = nn.Linear(hidden_size, head_size) if hidden_size != head_size else nn.Identity()
        self.t_embedder = TimeEmbedder(hidden_size)
        self.y_embedder = ClassEmbedder(num_classes, hidden_size, has_null)
        self.enc_rope = parts.RotaryTable(hidden_size // num_heads, input_size, after=TIME_TOKENS + CLASS_TOKENS)
        self.dec_rope = parts.RotaryTable(head_size // head_heads, input_size)
        encoder, head = ([kind(width, heads) for _ in range(count)] for kind, width, heads, count in (
            (EncoderBlock, hidden_size, num_heads, depth), (HeadBlock, head_size, head_heads, head_depth)
        ))  # fmt: skip
        self.blocks = nn.ModuleList([*encoder, *head])
        self.final_layer = parts.FinalLayer(head_size, in_channels)
        if inner is not None:
            self.base_final_layer = parts.FinalLayer(hidden_size, in_channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, with_inner: bool = False) -> Tensor:
        """x (N, C, H, W), times (N,), or (1,) for all, 1 noise; labels (N,) int64 -> images (N, C, H, W).

        Args:
            with_inner: the inner head's images come behind them, (N, 2C, H, W); else they are not computed.
        """
        time, image = self.t_embedder(t).unsqueeze(1), self.s_embedder(x)
        of_time = (self.t_embedder.learnable_tokens + time).expand(len(x), -1, -1)
        of_class = self.y_embedder.learnable_tokens + self.y_embedder(y).unsqueeze(1)
        s, turn, count, inner = torch.cat([image, of_time, of_class], dim=1), self.enc_rope(), image.shape[1], None
        for number, block in enumerate(self.blocks[: self.encoders], 1):
            s = block(s, turn)
            if with_inner and number == self.inner:
                inner = F.silu(time + s[:, :count])
        s = self.s_projector(F.silu(time + s[:, :count]))
        tokens, turn = self.x_embedder(x), self.dec_rope()
        for block in self.blocks[self.encoders :]:
            tokens = block(tokens, s, turn)
        out = self.unpatchify(self.final_layer(tokens, s))
        return out if inner is None else torch.cat([out, self.unpatchify(self.base_final_layer(inner, inner))], dim=1)


def build(size: str, **options: object) -> RAEv2:
    """A network of one of `SIZES`; options win over what the size says."""
    names = ("hidden_size", "depth", "num_heads", "head_size", "head_depth", "head_heads", "inner")
    return RAEv2(**dict(zip(names, SIZES[size], strict=True)) | options)


RAEv2_models: dict[str, Callable[..., RAEv2]] = {f"RAEv2-{size}/1": partial(build, size) for size in reversed(SIZES)}


def is_told_by(keys: Iterable[str]) -> bool:
    """Whether names of weights are of a RAEv2."""
    return {MARK, rae.TOKENS} <= set(keys)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names that their like have in other families."""

    def name(key: str) -> str:
        for theirs, own in NAMES.items():
            key = re.sub(theirs, own, key)
        return key

    return {name(key): value for key, value in state.items()}


def shape(state: parts.State) -> parts.Shape:
    """See `parts.Layout.shape`. Where the encoder ends is told by the first block that is modulated; after which block the inner
    head is stands in no file, and is known of the published size."""
    width, channels, patch, _ = state[MARK].shape
    head, depth = len(state["x_embedder.proj.weight"]), parts.depth_of(state)
    encoders = next((n for n in range(depth) if f"blocks.{n}.adaLN_modulation.1.weight" in state), depth)
    tokens, _ = state["dec_rope.freqs_cos"].shape
    found = {"depth": encoders, "head_size": head, "head_depth": depth - encoders}
    known = {name: size for name, size in SIZES.items() if (*size[:2], *size[3:5]) == (width, *found.values())}
    size = next(iter(known), f"({width} wide, {encoders} deep, head {head} wide, {depth - encoders} deep)")
    *_, inner = known.get(size, (min(1, encoders),))
    options = found | {"inner": inner if INNER in state else None}
    return parts.Shape(size, patch, channels, math.isqrt(tokens), len(state[parts.TABLE]), width, depth, options)


def build_any(found: parts.Shape) -> RAEv2:
    """A network of whatever size, for its names; how many heads it has they do not tell."""
    sizes = {"hidden_size": found.width, "num_heads": 1, "head_heads": 1, "num_classes": found.rows}
    return RAEv2(found.side, found.channels, **sizes, has_null=False, **found.options)


LAYOUT = parts.Layout(is_told_by, shape, renamed=renamed, unused=TRAINING, build=build_any)
