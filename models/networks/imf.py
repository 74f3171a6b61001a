"""Improved MeanFlow (Geng et al., arXiv 2512.02012): a transformer that is told the strength and the interval of its guidance.

It predicts the mean velocity of MeanFlow, towards noise, over a step of length t - r; of where that step begins, t, it is told
nothing. All that it is told stands before the image as tokens, which are turned by one number each. Residuals are scaled by a
vector, and there are no modulated norms. Files hold further blocks, for the velocity at t, which only training asks.
Names and arithmetic are those of the published port to torch (commit bf60cd7), but for `_flax_linear` and `_flax_embedding`, left
out of names here; no published weights have been read by this one.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from fiducial.models.networks import parts
from fiducial.models.networks.dit import LabelEmbedder, PatchEmbed, TimestepEmbedder

# hidden size, depth, heads, blocks of the mean velocity's own; XS is Fiducial's own, for trials.
SIZES = {
    "XS": (160, 6, 5, 2),
    "B": (768, 12, 12, 8),
    "M": (768, 24, 12, 8),
    "L": (1024, 32, 16, 8),
    "XL": (1024, 48, 16, 8),
}
PATCH = 2
TOKENS = {"class_tokens": 8, "omega_tokens": 4, "t_min_tokens": 2, "t_max_tokens": 2, "time_tokens": 4}  # in this order
EMBEDDERS = ("omega_embedder", "cfg_t_start_embedder", "cfg_t_end_embedder", "h_embedder")  # of those after the class
SHARED, OWN = "shared_blocks.", "u_heads."
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
WRAPPERS = ("._flax_linear", "._flax_embedding")
TRAINING = ("v_heads.", "v_final_layer.")


@parts.table
def line_rotation(head_dim: int, count: int, device: torch.device | None = None) -> Tensor:
    """Of `count` tokens by their number."""
    places = torch.arange(count, dtype=torch.float32, device=device)
    return parts.rotation(torch.outer(places, parts.frequencies(head_dim // 2, device)))


class Block(nn.Module):
    """Attention and an MLP behind RMSNorms, each scaled by a vector before it is added."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.norm1 = parts.RMSNorm(hidden_size)
        self.attn = parts.ApartAttention(hidden_size, num_heads, PROJECTIONS, bias=False)
        self.norm2 = parts.RMSNorm(hidden_size)
        self.mlp = parts.ApartSwiGLU(hidden_size, int(hidden_size * 8 / 3))
        self.attn_scale = nn.Parameter(torch.zeros(hidden_size))
        self.mlp_scale = nn.Parameter(torch.zeros(hidden_size))

    def products(self) -> list[nn.Module]:
        """Its matrices, and what consists of nothing else."""
        return [*self.attn.products(), self.mlp]

    def forward(self, x: Tensor, rotation: parts.Rotation) -> Tensor:
        half = self.attn.q_proj.weight.dtype
        x = x + self.attn(self.norm1(x).to(half), rotation) * self.attn_scale
        return x + self.mlp(self.norm2(x).to(half)) * self.mlp_scale


class LastLayer(nn.Module):
    """From tokens to patches."""

    def __init__(self, hidden_size: int, out: int):
        super().__init__()
        self.norm = parts.RMSNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class IMF(parts.Transformer):
    """Args as of `DiT`.

    Args:
        own: how many of the blocks are the mean velocity's alone.
    """

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = PATCH,
        in_channels: int = 4,
        hidden_size: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        num_classes: int = 1000,
        has_null: bool = True,
        own: int = 8,
    ):
        super().__init__(input_size, patch_size, in_channels, num_classes, has_null)
        self.head_dim = hidden_size // num_heads
        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        for name in EMBEDDERS:
            setattr(self, name, TimestepEmbedder(hidden_size, frequency_shift=0))
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, has_null)
        for name, count in TOKENS.items():
            setattr(self, name, nn.Parameter(torch.randn(count, hidden_size) / math.sqrt(hidden_size)))
        self.shared_blocks = nn.ModuleList(Block(hidden_size, num_heads) for _ in range(depth - own))
        self.u_heads = nn.ModuleList(Block(hidden_size, num_heads) for _ in range(own))
        self.u_final_layer = LastLayer(hidden_size, patch_size**2 * in_channels)

    @property
    def blocks(self) -> list[Block]:
        """All of them, in order."""
        return [*self.shared_blocks, *self.u_heads]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        r: Tensor | None = None,
        omega: Tensor | None = None,
        low: Tensor | None = None,
        high: Tensor | None = None,
    ) -> Tensor:
        """The mean velocity (N, C, H, W) from r to t, towards noise.

        Args:
            x: (N, C, H, W).
            t, r: times (N,), or (1,) for all, 1 noise; where no r is given, it is t.
            y: labels (N,) int64.
            omega: (N,) or (1,), the strength of guidance, at least 1; where it is not given, 1, which is none.
            low, high: (N,) or (1,), the times between which it was guided; where they are not given, 0 and 1.
        """
        one = torch.ones_like(t)
        gap = t - r if r is not None else 0 * one
        told = (1 - 1 / (one if omega is None else omega), 0 * one if low is None else low, one if high is None else high, gap)
        embedded = [self.y_embedder(y), *(getattr(self, name)(value) for name, value in zip(EMBEDDERS, told, strict=True))]
        first = [getattr(self, name) + one.unsqueeze(1) for name, one in zip(TOKENS, embedded, strict=True)]
        image = self.x_embedder(x)
        tokens = torch.cat([*(part.expand(len(x), -1, -1) for part in first), image], dim=1)
        rotation = line_rotation(self.head_dim, tokens.shape[1], x.device)
        for block in self.blocks:
            tokens = block(tokens, rotation)
        return self.unpatchify(self.u_final_layer(tokens[:, -image.shape[1] :]))


def build(size: str, **options: object) -> IMF:
    """A network of one of `SIZES`."""
    hidden_size, depth, num_heads, own = SIZES[size]
    return IMF(hidden_size=hidden_size, depth=depth, num_heads=num_heads, **{"own": own} | options)


IMF_models: dict[str, Callable[..., IMF]] = {f"iMF-{size}/{PATCH}": partial(build, size) for size in reversed(SIZES)}


def is_told_by(keys: Iterable[str]) -> bool:
    """Whether names of weights are of an iMF."""
    keys = set(keys)
    return {"omega_tokens", "x_embedder.proj.weight"} <= keys and any(key.startswith(OWN) for key in keys)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the names of what is wrapped in its files."""
    for name in WRAPPERS:
        state = {key.replace(name, ""): value for key, value in state.items()}
    return state


def shape(state: parts.State) -> parts.Shape:
    """See `parts.Layout.shape`. No weight tells the size of the latent, which is 32 by 32 of 256 pixels."""
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    own = parts.depth_of(state, OWN)
    depth = own + parts.depth_of(state, SHARED)
    sizes = {name: size for name, size in SIZES.items() if size[3] == own}
    rows = len(state[parts.TABLE])
    return parts.Shape(parts.named_size(sizes, width, depth), patch, channels, 32, rows, width, depth, {"own": own})


def build_any(found: parts.Shape) -> IMF:
    """A network of whatever size, for its names."""
    return IMF(found.side, found.patch, found.channels, found.width, found.depth, 1, found.rows, False, **found.options)


LAYOUT = parts.Layout(is_told_by, shape, renamed=renamed, unused=TRAINING, build=build_any, any_size=True)
