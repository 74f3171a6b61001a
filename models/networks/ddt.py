"""DDT (Wang et al., arXiv 2504.05741): an encoder of a condition for each token, and a decoder of the velocity under it.

It predicts image - noise on the straight path, by SiT's clock: 0 is noise. Patches are embedded by matrices, there are no fixed
positions, and the rotation is of places from 0 to 16, whatever the size. Where the encoder ends stands in no file: it is known of
the published sizes. Names and arithmetic are those of the published code (commit 1d1b4d2); no published weights have been read by
this one, and the encoders of B and L are as the paper says, from memory.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiducial.models.networks import parts
from fiducial.models.networks.dit import FREQUENCY_EMBEDDING_SIZE, MLP_RATIO, LabelEmbedder, timestep_frequencies

# hidden size, depth, heads, blocks of the encoder; XS is Fiducial's own, for trials.
SIZES = {
    "XS": (160, 6, 5, 4),
    "B": (768, 12, 12, 8),
    "L": (1024, 24, 16, 20),
    "XL": (1152, 28, 16, 22),
}
PATCH = 2
MAX_PERIOD = 10.0  # of the frequencies of its times
EXTENT = 16.0  # of the places that are turned by
EMBEDDER, GATE = "s_embedder.proj.weight", "blocks.0.mlp.w1.weight"


class PatchEmbed(nn.Module):
    """Patches (B, T, C * patch**2), channel by channel, to tokens (B, T, D)."""

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int):
        super().__init__()
        self.proj = nn.Linear(patch_size**2 * in_channels, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class TimestepEmbedder(nn.Module):
    """DiT's, at other frequencies."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCY_EMBEDDING_SIZE, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(timestep_frequencies(t, max_period=MAX_PERIOD).to(self.mlp[0].weight.dtype))


@parts.table
def interleaved_rotation(head_dim: int, side: int, device: torch.device | None = None) -> Tensor:
    """Of a square of tokens, row by row: pairs are turned by the column and by the row in turn."""
    places = torch.linspace(0, EXTENT, side, device=device)
    angles = torch.outer(places, parts.frequencies(head_dim // 4, device))
    columns, rows = angles.repeat(side, 1), angles.repeat_interleave(side, dim=0)
    return parts.rotation(torch.stack([columns, rows], dim=-1).flatten(1))


class DDT(parts.Transformer):
    """Args as of `DiT`.

    Args:
        encoders: how many of the blocks are the encoder's.
    """

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = PATCH,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        num_classes: int = 1000,
        has_null: bool = True,
        encoders: int = 22,
    ):
        super().__init__(input_size, patch_size, in_channels, num_classes, has_null)
        self.encoders, self.head_dim = encoders, hidden_size // num_heads
        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.s_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, has_null)
        width = int(2 * MLP_RATIO * hidden_size / 3)
        plain = {"qkv_bias": False, "with_silu": False}
        self.blocks = nn.ModuleList(
            parts.Block(hidden_size, num_heads, parts.ApartSwiGLU(hidden_size, width), parts.RMSNorm, **plain)
            for _ in range(depth)
        )
        self.final_layer = parts.FinalLayer(hidden_size, patch_size**2 * in_channels, parts.plain_norm, with_silu=False)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x (N, C, H, W), times (N,), or (1,) for all, 0 noise; labels (N,) int64 -> (N, C, H, W)."""
        size = x.shape[-2:]
        turn = interleaved_rotation(self.head_dim, size[0] // self.patch_size, x.device)
        cut = F.unfold(x, self.patch_size, stride=self.patch_size).transpose(1, 2)
        time = self.t_embedder(t)
        c, s = F.silu(time + self.y_embedder(y)), self.s_embedder(cut)
        for block in self.blocks[: self.encoders]:
            s = block(s, c, turn)
        s, tokens = F.silu(time.unsqueeze(1) + s), self.x_embedder(cut)
        for block in self.blocks[self.encoders :]:
            tokens = block(tokens, s, turn)
        return F.fold(self.final_layer(tokens, s).transpose(1, 2), size, self.patch_size, stride=self.patch_size)


def build(size: str, **options: object) -> DDT:
    """A network of one of `SIZES`."""
    hidden_size, depth, num_heads, encoders = SIZES[size]
    return DDT(hidden_size=hidden_size, depth=depth, num_heads=num_heads, encoders=encoders, **options)


DDT_models: dict[str, Callable[..., DDT]] = {f"DDT-{size}/{PATCH}": partial(build, size) for size in reversed(SIZES)}


def is_told_by(keys: Iterable[str]) -> bool:
    """Whether names of weights are of a DDT."""
    return {EMBEDDER, GATE} <= set(keys)


def shape(state: parts.State) -> parts.Shape:
    """See `parts.Layout.shape`. No weight tells the size of the latent, nor how the numbers of a patch are its channels: patches
    are of 2 by 2, and the latent that of 256 pixels, 32 by 32, which the network takes as it does any other."""
    width, numbers = state["x_embedder.proj.weight"].shape
    channels, rest = divmod(numbers, PATCH**2)
    if rest or not channels:
        raise ValueError(f"patches of {numbers} numbers")
    depth = parts.depth_of(state)
    return parts.Shape(parts.named_size(SIZES, width, depth), PATCH, channels, 32, len(state[parts.TABLE]), width, depth)


def build_any(found: parts.Shape) -> DDT:
    """A network of whatever size, for its names."""
    return DDT(found.side, found.patch, found.channels, found.width, found.depth, 1, found.rows, False)


LAYOUT = parts.Layout(is_told_by, shape, build=build_any, any_size=True)
