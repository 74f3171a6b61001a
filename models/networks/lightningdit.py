"""LightningDiT (Yao et al., arXiv 2501.01423): a transformer of RMSNorm, SwiGLU and rotary positions on latents of VA-VAE.

It predicts image - noise on the straight path, by SiT's clock: 0 is noise. The tables of its rotation are buffers and so in its
files, beside fixed positions that are added. Names and arithmetic are those of the published code (commit 2725fed); no published
weights have been read by this one.
"""

from collections.abc import Callable, Iterable
from functools import partial

from torch import Tensor, nn

from fiducial.models.networks import parts
from fiducial.models.networks.dit import LabelEmbedder, PatchEmbed, TimestepEmbedder, sincos_position_embedding

# hidden size, depth, heads; XS is Fiducial's own, for trials.
SIZES = {
    "XS": (160, 6, 5),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
    "1p0B": (1536, 24, 24),
    "1p6B": (1792, 28, 28),
}
PATCH_SIZES = (1, 2)
CHANNELS = 32  # of VA-VAE's latents, of 16 x 16 at 256
SPLIT, HEAD = "blocks.0.mlp.w12.weight", "s_embedder."  # of its MLP; of what has a head besides, as RAE's
QUERIES, MODULATION = "blocks.0.attn.q_norm.weight", "blocks.0.adaLN_modulation.1.weight"


class LightningDiT(parts.Transformer):
    """Args as of `DiT`.

    Args:
        qk_norm: queries and keys are normalised.
        wo_shift: blocks are modulated without shifts.
        learn_sigma: puts out twice the channels, of which the second half is not used.
    """

    def __init__(
        self,
        input_size: int = 16,
        patch_size: int = 1,
        in_channels: int = CHANNELS,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        num_classes: int = 1000,
        has_null: bool = True,
        qk_norm: bool = False,
        wo_shift: bool = False,
        learn_sigma: bool = False,
    ):
        super().__init__(input_size, patch_size, in_channels, num_classes, has_null, outputs=1 + learn_sigma)
        side = input_size // patch_size
        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size, frequency_shift=0)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, has_null)
        self.pos_embed = nn.Parameter(sincos_position_embedding(hidden_size, side), requires_grad=False)
        self.feat_rope = parts.RotaryTable(hidden_size // num_heads, side)
        norm = parts.RMSNorm if qk_norm else None
        self.blocks = nn.ModuleList(
            parts.Block(hidden_size, num_heads, parts.SwiGLU(hidden_size), norm, with_shift=not wo_shift) for _ in range(depth)
        )
        self.final_layer = parts.FinalLayer(hidden_size, patch_size**2 * self.out_channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x (N, C, H, W), times (N,), or (1,) for all, 0 noise; labels (N,) int64 -> (N, out_channels, H, W)."""
        c = self.t_embedder(t) + self.y_embedder(y)
        x, turn = self.x_embedder(x) + self.pos_embed, self.feat_rope()
        for block in self.blocks:
            x = block(x, c, turn)
        return self.unpatchify(self.final_layer(x, c))


def build(size: str, patch_size: int, **options: object) -> LightningDiT:
    """A network of one of `SIZES`."""
    hidden_size, depth, num_heads = SIZES[size]
    return LightningDiT(patch_size=patch_size, hidden_size=hidden_size, depth=depth, num_heads=num_heads, **options)


LightningDiT_models: dict[str, Callable[..., LightningDiT]] = {
    f"LightningDiT-{size}/{patch}": partial(build, size, patch) for size in reversed(SIZES) for patch in PATCH_SIZES
}


def is_told_by(keys: Iterable[str]) -> bool:
    """Whether names of weights are of a LightningDiT."""
    keys = set(keys)
    return {SPLIT, "x_embedder.proj.weight"} <= keys and not any(key.startswith((HEAD, "t_embedder.W")) for key in keys)


def shape(state: parts.State) -> parts.Shape:
    """See `parts.Layout.shape`."""
    width = len(state["x_embedder.proj.weight"])
    outputs, patch = len(state["final_layer.linear.bias"]), state["x_embedder.proj.weight"][0].numel()
    without = len(state[MODULATION]) == 4 * width
    return parts.dit_shape(state, SIZES, qk_norm=QUERIES in state, wo_shift=without, learn_sigma=outputs == 2 * patch)


def build_any(found: parts.Shape) -> LightningDiT:
    """A network of whatever size, for its names; how many heads it has they do not tell."""
    return LightningDiT(found.side, found.patch, found.channels, found.width, found.depth, 1, found.rows, False, **found.options)


LAYOUT = parts.Layout(is_told_by, shape, build=build_any)
