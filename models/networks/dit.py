"""The diffusion transformer of Peebles and Xie (arXiv 2212.09748), under the official parameter names.

The only place with the null label (`DiT.null_label`), the clock (`NUM_TIMESTEPS`) and the table of sizes (`DIT_SIZES`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiducial.guidance import guide

# hidden size, depth, heads. XS is Fiducial's own, for the embedded digits; the others are the published ones.
DIT_SIZES = {
    "XS": (160, 6, 5),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
PATCH_SIZES = (2, 4, 8)
NUM_TIMESTEPS = 1000  # of the chain that it was trained on; it is fed their numbers, 0 the image
FREQUENCY_EMBEDDING_SIZE = 256
MLP_RATIO = 4
SCORES_AT_ONCE = 1 << 23  # of attention by products; more do not stay in a processor's caches
SCORES_AT_MOST = 1 << 27  # beyond it, products take long to compile, and much memory


@dataclass(frozen=True)
class Arithmetic:
    """In what networks of one shape and one set of weights can differ."""

    frequency_shift: int  # the highest of n timestep frequencies is 1, the next 10,000 ** (-1 / (n - shift))
    mlp_norm_eps: float


# diffusers' DiTTransformer2DModel computes otherwise than the network that the published weights were trained with.
ARITHMETICS = {"official": Arithmetic(0, 1e-6), "diffusers": Arithmetic(1, 1e-5)}


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Affine modulation of tokens, x (B, T, D), by one shift and one scale (B, D) an image."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def timestep_frequencies(t: Tensor, dim: int = FREQUENCY_EMBEDDING_SIZE, max_period: float = 10_000.0, shift: int = 0) -> Tensor:
    """Sinusoidal embedding of timesteps: t (B,), fractional allowed -> (B, dim) float32, cosines before sines.

    Args:
        shift: see `Arithmetic.frequency_shift`.
    """
    half = dim // 2
    # Divided last, as in diffusers, whose rounding shows in the frequencies; by 128, the official divisor, nothing is rounded.
    # By `math`, because a compiler makes a tensor on the CPU of numpy's number, which has no place in a CUDA graph.
    exponents = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - shift)
    angles = t.float().unsqueeze(1) * torch.exp(exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def sincos_position_embedding(dim: int, grid_size: int) -> Tensor:
    """Fixed 2D position embedding (1, grid_size**2, dim): the first half encodes the column, the second half the row."""
    omega = 1.0 / 10_000 ** (np.arange(dim // 4, dtype=np.float64) / (dim / 4))
    row, column = np.meshgrid(np.arange(grid_size), np.arange(grid_size), indexing="ij")
    columns, rows = np.outer(column.ravel(), omega), np.outer(row.ravel(), omega)
    table = np.concatenate([np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)], axis=1)
    return torch.from_numpy(table).float().unsqueeze(0)


class PatchEmbed(nn.Module):
    """Cuts (B, C, H, W) into patches and projects each to a token: (B, T, D), row by row."""

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    def __init__(self, hidden_size: int, frequency_shift: int):
        super().__init__()
        self.frequency_shift = frequency_shift
        self.mlp = nn.Sequential(nn.Linear(FREQUENCY_EMBEDDING_SIZE, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(timestep_frequencies(t, shift=self.frequency_shift).to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """A table of a row a class, and one after them for the null label where there is one (see `DiT`). Dropping labels is the
    training loop's business."""

    def __init__(self, num_classes: int, hidden_size: int, has_null: bool):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + has_null, hidden_size)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


def attention_by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d)) v by two matrix products, the softmax between them in float32; q, k, v (B, heads, T, d).

    By torch's own kernel where there are more than `SCORES_AT_MOST` scores.
    """
    scores_each = q.shape[1] * q.shape[2] ** 2
    if len(q) * scores_each > SCORES_AT_MOST:
        return F.scaled_dot_product_attention(q, k, v)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
        return scores.softmax(-1).to(v.dtype) @ v

    images = max(1, SCORES_AT_ONCE // scores_each)
    return torch.cat([attend(*parts) for parts in zip(*(x.split(images) for x in (q, k, v)), strict=True)])


class Attention(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.attend = F.scaled_dot_product_attention
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, hidden_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, MLP_RATIO * hidden_size)
        self.fc2 = nn.Linear(MLP_RATIO * hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class DiTBlock(nn.Module):
    """Attention and MLP, each normalised, modulated by the conditioning and gated (adaLN-Zero)."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_norm_eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=mlp_norm_eps)
        self.mlp = Mlp(hidden_size)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.t_embedder: TimestepEmbedder | None = None  # of its own, see `DiT`
        self.y_embedder: LabelEmbedder | None = None

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        half = self.attn.qkv.weight.dtype  # that of x, unless `DiT.to_half` was called
        modulation = self.adaLN_modulation(c.to(half)).to(x.dtype)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=1)
        x = x + gate_attn.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_attn, scale_attn).to(half))
        return x + gate_mlp.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp).to(half))


class FinalLayer(nn.Module):
    def __init__(self, hidden_size: int, patch_size: int, out_channels: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(hidden_size, patch_size * patch_size * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """Predicts noise and, with `learn_sigma`, the variance interpolation of an `input_size` x `input_size` latent.

    Args:
        input_size: height and width of the latent, a multiple of `patch_size`.
        num_classes: classes of the data; the label table has one row more, and `null_label` is that last row.
        has_null: else there is no such row, as in a network that was trained without dropping labels; it cannot be guided.
        learn_sigma: the output has 2 x `in_channels` channels, the second half for the variance.
        network: of `ARITHMETICS`: whose arithmetic.
        own_embedders: each block after the first has embedders of its own, as only a network that was trained in diffusers does.
    """

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        network: str = "official",
        own_embedders: bool = False,
        has_null: bool = True,
    ):
        super().__init__()
        if input_size % patch_size:
            raise ValueError(f"input_size {input_size} is not a multiple of patch_size {patch_size}")
        self.in_channels = in_channels
        self.out_channels = in_channels * 2 if learn_sigma else in_channels
        self.patch_size = patch_size
        self.null_label = num_classes if has_null else None

        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size, ARITHMETICS[network].frequency_shift)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, has_null)
        # A parameter, never trained, because the official checkpoints carry it as one.
        positions = sincos_position_embedding(hidden_size, input_size // patch_size)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.blocks = nn.ModuleList(DiTBlock(hidden_size, num_heads, ARITHMETICS[network].mlp_norm_eps) for _ in range(depth))
        for block in self.blocks[1:] if own_embedders else ():
            block.t_embedder = TimestepEmbedder(hidden_size, ARITHMETICS[network].frequency_shift)
            block.y_embedder = LabelEmbedder(num_classes, hidden_size, has_null)
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)
        self.initialize_weights()

    def to_half(self, dtype: torch.dtype) -> "DiT":
        """Let the blocks multiply in bfloat16 or float16. All between their matrix products, and what is before and after the
        blocks (embeddings, last layer), stays float32, so that rounding does not add up from block to block.
        """
        for block in self.blocks:
            for part in (block.attn, block.mlp, block.adaLN_modulation):
                part.to(dtype)
        return self

    def attend_by_products(self) -> None:
        """Let the blocks compute attention as `attention_by_products` does, not by torch's own kernel."""
        for block in self.blocks:
            block.attn.attend = attention_by_products

    def initialize_weights(self) -> None:
        """The paper's initialisation: Xavier everywhere, zero for every gate and for the output (the network starts at 0)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        for weight in (self.y_embedder.embedding_table, self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(weight.weight, std=0.02)
        for module in [*(block.adaLN_modulation[1] for block in self.blocks), self.final_layer.adaLN_modulation[1]]:
            nn.init.zeros_(module.weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x (N, C, H, W), original timestep numbers t (N,), or (1,) for all, labels y (N,) int64 -> (N, out_channels, H, W)."""
        c = self.t_embedder(t) + self.y_embedder(y)
        x = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            x = block(x, block.t_embedder(t) + block.y_embedder(y) if block.t_embedder else c)
        return self.unpatchify(self.final_layer(x, c))

    def forward_with_cfg(self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float, cfg_channels: int = 3) -> Tensor:
        """DiT's contract for guidance: 2N rows, of which only the first N latents are read.

        Args:
            x: (2N, C, H, W). y: (2N,), the second half null labels. t: (2N,).
            cfg_channels: how many of the C latent channels to guide. Published DiT numbers guide 3 of 4.

        Returns:
            (2N, out_channels, H, W): guided channels equal in both halves, all others as predicted for each row.
        """
        half = x[: len(x) // 2]
        out = self(torch.cat([half, half]), t, y)
        conditional, unconditional = out[:, :cfg_channels].chunk(2)
        guided = guide(conditional, unconditional, cfg_scale)
        return torch.cat([torch.cat([guided, guided]), out[:, cfg_channels:]], dim=1)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """(N, T, patch**2 * out_channels) -> (N, out_channels, H, W)."""
        side, p = int(tokens.shape[1] ** 0.5), self.patch_size
        patches = tokens.unflatten(1, (side, side)).unflatten(3, (p, p, self.out_channels))
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def _build(size: str, patch_size: int, **kwargs) -> DiT:
    hidden_size, depth, num_heads = DIT_SIZES[size]
    return DiT(patch_size=patch_size, hidden_size=hidden_size, depth=depth, num_heads=num_heads, **kwargs)


DiT_models: dict[str, Callable[..., DiT]] = {
    f"DiT-{size}/{patch}": partial(_build, size, patch) for size in reversed(DIT_SIZES) for patch in PATCH_SIZES
}
