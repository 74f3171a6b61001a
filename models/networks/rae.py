"""RAE's DiT^DH (Zheng et al., arXiv 2510.11690): a transformer with a wide, shallow head, on features of a vision encoder.

It predicts noise - image on the straight path; its clock is 1 at noise. An encoder makes a condition for each token, under which
the head, of two blocks 2048 wide, makes the velocity. Times are embedded by Gaussian Fourier features, whose frequencies are part
of its files, as are the tables of both rotations. Names and arithmetic are those of the published code (commit a4d18c4); no
published weights have been read by this one, and the sizes S, B and L are from memory.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiducial.models.networks import parts
from fiducial.models.networks.dit import LabelEmbedder, PatchEmbed, sincos_position_embedding

# Width, depth and heads, of the encoder and of the head; XS is Fiducial's own, for trials.
SIZES = {
    "XS": (160, 5, 5, 256, 1, 4),
    "S": (384, 12, 6, 2048, 2, 16),
    "B": (768, 12, 12, 2048, 2, 16),
    "L": (1024, 24, 16, 2048, 2, 16),
    "XL": (1152, 28, 16, 2048, 2, 16),
}
CHANNELS = 768  # of DINOv2-B's features, of 16 x 16 at 256
FOURIER = 256
FREQUENCIES, EMBEDDER, QUERIES = "t_embedder.W", "s_embedder.proj.weight", "blocks.0.attn.q_norm.weight"
TOKENS = "t_embedder.learnable_tokens"  # which RAEv2's have besides


class FourierEmbedder(nn.Module):
    """Sines and cosines of a time at random frequencies, which are kept with the weights; then an MLP."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.W = nn.Parameter(torch.randn(FOURIER), requires_grad=False)
        self.mlp = nn.Sequential(nn.Linear(2 * FOURIER, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, t: Tensor) -> Tensor:
        angles = 2 * math.pi * t.to(self.W.dtype).unsqueeze(1) * self.W
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))


class DiTDH(parts.Transformer):
    """Args as of `DiT`, of the encoder; patches are of one pixel.

    Args:
        head_size, head_depth, head_heads: the same of the head.
        qk_norm: queries and keys are normalised.
    """

    def __init__(
        self,
        input_size: int = 16,
        in_channels: int = CHANNELS,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        head_size: int = 2048,
        head_depth: int = 2,
        head_heads: int = 16,
        num_classes: int = 1000,
        has_null: bool = True,
        qk_norm: bool = False,
    ):
        super().__init__(input_size, 1, in_channels, num_classes, has_null)
        self.encoders = depth
        self.x_embedder = PatchEmbed(1, in_channels, head_size)
        self.s_embedder = PatchEmbed(1, in_channels, hidden_size)
        self.s_projector = nn.Linear(hidden_size, head_size) if hidden_size != head_size else nn.Identity()
        self.t_embedder = FourierEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, has_null)
        self.pos_embed = nn.Parameter(sincos_position_embedding(hidden_size, input_size), requires_grad=False)
        self.enc_feat_rope = parts.RotaryTable(hidden_size // num_heads, input_size)
        self.dec_feat_rope = parts.RotaryTable(head_size // head_heads, input_size)
        norm = parts.RMSNorm if qk_norm else None
        sizes = [(hidden_size, num_heads)] * depth + [(head_size, head_heads)] * head_depth
        self.blocks = nn.ModuleList(parts.Block(width, heads, parts.SwiGLU(width), norm) for width, heads in sizes)
        self.final_layer = parts.FinalLayer(head_size, in_channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x (N, C, H, W), times (N,), or (1,) for all, 1 noise; labels (N,) int64 -> (N, C, H, W)."""
        time, turn = self.t_embedder(t), self.enc_feat_rope()
        c = F.silu(time + self.y_embedder(y))  # and once more in each block
        s = self.s_embedder(x) + self.pos_embed
        for block in self.blocks[: self.encoders]:
            s = block(s, c, turn)
        s = self.s_projector(F.silu(time.unsqueeze(1) + s))
        x, turn = self.x_embedder(x), self.dec_feat_rope()
        for block in self.blocks[self.encoders :]:
            x = block(x, s, turn)
        return self.unpatchify(self.final_layer(x, s))


def build(size: str, **options: object) -> DiTDH:
    """A network of one of `SIZES`."""
    names = ("hidden_size", "depth", "num_heads", "head_size", "head_depth", "head_heads")
    return DiTDH(**dict(zip(names, SIZES[size], strict=True)), **options)


RAE_models: dict[str, Callable[..., DiTDH]] = {f"RAE-{size}/1": partial(build, size) for size in reversed(SIZES)}


def is_told_by(keys: Iterable[str]) -> bool:
    """Whether names of weights are of a DiT^DH, and of no RAEv2."""
    keys = set(keys)
    return {EMBEDDER, FREQUENCIES} <= keys and TOKENS not in keys


def shape(state: parts.State) -> parts.Shape:
    """See `parts.Layout.shape`."""
    width, channels, patch, _ = state[EMBEDDER].shape
    head, depth = len(state["x_embedder.proj.weight"]), parts.depth_of(state)
    encoders = next((n for n in range(depth) if len(state[f"blocks.{n}.norm1.weight"]) != width), depth)
    _, tokens, _ = state["pos_embed"].shape
    sizes = (name for name, size in SIZES.items() if (size[0], size[1], *size[3:5]) == (width, encoders, head, depth - encoders))
    size = next(sizes, f"({width} wide, {encoders} deep, head {head} wide, {depth - encoders} deep)")
    side, rows = math.isqrt(tokens), len(state[parts.TABLE])
    return parts.Shape(size, patch, channels, side, rows, width, depth, {"qk_norm": QUERIES in state})


def build_any(found: parts.Shape) -> DiTDH:
    """A network of whatever size, for its names; a head of another width has a projector before it."""
    head = 2 * found.width
    encoder = found.side, found.channels, found.width, found.depth, 1
    return DiTDH(*encoder, head, 0, 1, num_classes=found.rows, has_null=False, **found.options)


LAYOUT = parts.Layout(is_told_by, shape, build=build_any)
