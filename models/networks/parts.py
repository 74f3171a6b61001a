"""Parts that several transformers share beside DiT's: RMSNorm, SwiGLU, attention with rotary positions, modulated blocks.

All between the matrix products is float32 at least, as in `DiT.to_half`: norms and rotations too.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiducial.models.networks.dit import MLP_RATIO, attention_by_products

ROTARY_THETA = 10_000.0
TABLE = "y_embedder.embedding_table.weight"
BLOCKS = "blocks."
State = Mapping[str, Tensor]
Norm = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Shape:
    """The network that the shapes of some weights are of."""

    size: str  # as in the name of a model, or its width and depth in words where it is none of the family's
    patch: int
    channels: int
    side: int  # of the latent
    rows: int  # of the label table
    width: int = 0
    depth: int = 0
    options: Mapping[str, object] = field(default_factory=dict)  # what else its class is to be told


class Transformer(nn.Module):
    """The base of networks of patches: what samplers ask of any, as of a `DiT`. A subclass has `blocks`.

    Args:
        input_size: height and width of the latent.
        outputs: channels that it puts out for each that goes in.
        has_null: the label table has a row more than there are classes, `null_label`; else that is None.
    """

    blocks: Iterable["Block"]

    def __init__(self, input_size: int, patch_size: int, in_channels: int, num_classes: int, has_null: bool, outputs: int = 1):
        super().__init__()
        if input_size % patch_size:
            raise ValueError(f"input_size {input_size} is not a multiple of patch_size {patch_size}")
        self.in_channels, self.out_channels, self.patch_size = in_channels, in_channels * outputs, patch_size
        self.null_label = num_classes if has_null else None

    def to_half(self, dtype: torch.dtype) -> "Transformer":
        """Let the blocks multiply in bfloat16 or float16, as `DiT.to_half` does, and turn queries and keys by halves."""
        for block in self.blocks:
            block.attn.turn_by_halves()
            for part in block.products():
                part.to(dtype)
        return self

    def attend_by_products(self) -> None:
        """Let the blocks compute attention as `attention_by_products` does, not by torch's own kernel."""
        for block in self.blocks:
            block.attn.attend = attention_by_products

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """(N, T, patch**2 * out_channels), channels last -> (N, out_channels, H, W)."""
        side, p = int(tokens.shape[1] ** 0.5), self.patch_size
        return tokens.unflatten(1, (side, side)).unflatten(3, (p, p, -1)).permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def wide(x: Tensor) -> Tensor:
    """The same in float32, unless it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) by a weight for each of the last dimension (arXiv 1910.07467); float32 at least comes out."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = wide(x)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def plain_norm(dim: int) -> nn.LayerNorm:
    """DiT's LayerNorm, without weights."""
    return nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)


class SwiGLU(nn.Module):
    """silu(a) b with a and b from one matrix, then back (arXiv 2002.05202); two thirds of an MLP's width, so of its size."""

    def __init__(self, hidden_size: int):
        super().__init__()
        width = int(2 / 3 * MLP_RATIO * hidden_size)
        self.w12 = nn.Linear(hidden_size, 2 * width)
        self.w3 = nn.Linear(width, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(a) * b)


class ApartSwiGLU(nn.Module):
    """The same from two matrices, w1 and w3, and back by w2, all without biases."""

    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.w1 = nn.Linear(hidden_size, width, bias=False)
        self.w3 = nn.Linear(hidden_size, width, bias=False)
        self.w2 = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


Rotation = Tensor | tuple[Tensor, Tensor]  # cosines and sines (T, d) each, by which pairs of neighbouring numbers are turned
TABLES: list[Callable[..., Rotation]] = []  # functions of numbers and a device alone, whose results a compiler may keep


def table(function: Callable[..., Rotation]) -> Callable[..., Rotation]:
    """The same function, as one of TABLES: compiled as it is, it would be computed anew for each number of each layer."""
    TABLES.append(function)
    return function


def turned(x: Tensor, by: Rotation) -> Tensor:
    """x (B, heads, T, d), each pair of neighbours turned by the angle of its token; float32 at least."""
    x = wide(x)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * by[0] + torch.stack([-odd, even], dim=-1).flatten(-2) * by[1]


def turned_by_halves(x: Tensor, by: Rotation) -> Tensor:
    """The same where the pairs are of a number in the first half of d and its fellow in the second (see `even_before_odd`)."""
    a, b = wide(x).chunk(2, dim=-1)
    cos, sin = (values[:, ::2] for values in by)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def even_before_odd(x: Tensor, heads: int) -> Tensor:
    """x (heads * d, ...), of each head the rows with even numbers first.

    Where queries and keys are both in this order their products stay as they are, and a processor's wide instructions turn many
    pairs at once.
    """
    return x.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def rotation(angles: Tensor) -> Tensor:
    """The rotation by angles (T, d / 2), one a pair, as (2, T, d)."""
    twice = angles.repeat_interleave(2, dim=-1)
    return torch.stack([twice.cos(), twice.sin()])


def behind(count: int, others: Rotation) -> Rotation:
    """The same with so many tokens before the others that are not turned."""
    cos, sin = others
    return F.pad(cos, (0, 0, count, 0), value=1.0), F.pad(sin, (0, 0, count, 0))


def frequencies(count: int, device: torch.device | None = None) -> Tensor:
    """The `count` frequencies of a rotation, theta ** (-i / count), float32."""
    return 1.0 / ROTARY_THETA ** (torch.arange(count, dtype=torch.float32, device=device) / count)


@table
def grid_rotation(head_dim: int, side: int, device: torch.device | None = None) -> Tensor:
    """Of a square of tokens, row by row: half of a head's pairs are turned by the row, then half by the column."""
    angles = torch.outer(torch.arange(side, dtype=torch.float32, device=device), frequencies(head_dim // 4, device))
    rows, columns = angles.repeat_interleave(side, dim=0), angles.repeat(side, 1)
    return rotation(torch.cat([rows, columns], dim=1))


class RotaryTable(nn.Module):
    """`grid_rotation` as buffers, as checkpoints carry it whose names are `freqs_cos` and `freqs_sin`, (T, d) each.

    Args:
        after: tokens behind those of the square, which are not turned.
    """

    def __init__(self, head_dim: int, side: int, after: int = 0):
        super().__init__()
        cos, sin = grid_rotation(head_dim, side)
        self.register_buffer("freqs_cos", F.pad(cos, (0, 0, 0, after), value=1.0))
        self.register_buffer("freqs_sin", F.pad(sin, (0, 0, 0, after)))

    def forward(self) -> Rotation:
        return self.freqs_cos, self.freqs_sin


def reorder_norms(attn: nn.Module) -> None:
    """Have `q_norm` and `k_norm` weigh what is in the order of `even_before_odd`, in place."""
    for norm in (attn.q_norm, attn.k_norm):
        for parameter in norm.parameters():
            parameter.copy_(even_before_odd(parameter, 1))


class Attention(nn.Module):
    """Self-attention whose queries and keys may be normalised, a head at a time, and turned."""

    def __init__(self, hidden_size: int, num_heads: int, norm: Norm | None = None, qkv_bias: bool = True):
        super().__init__()
        self.num_heads = num_heads
        self.attend, self.turned = F.scaled_dot_product_attention, turned
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=qkv_bias)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.q_norm, self.k_norm = (norm(hidden_size // num_heads) for _ in "qk") if norm else (nn.Identity(), nn.Identity())

    def products(self) -> list[nn.Module]:
        """The matrices in it."""
        return [self.qkv, self.proj]

    @torch.no_grad()
    def turn_by_halves(self) -> None:
        """Put queries and keys in the order of `even_before_odd`, in place; further calls do nothing."""
        if self.turned is not turned:
            return
        for parameter in self.qkv.parameters():
            q, k, v = parameter.chunk(3)
            parameter.copy_(torch.cat([*(even_before_odd(one, self.num_heads) for one in (q, k)), v]))
        reorder_norms(self)
        self.turned = turned_by_halves

    def forward(self, x: Tensor, turn: Rotation | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(wide(q)), self.k_norm(wide(k))
        if turn is not None:
            q, k = self.turned(q, turn), self.turned(k, turn)
        return self.proj(self.attend(q.to(v.dtype), k.to(v.dtype), v).transpose(1, 2).flatten(2))


class ApartAttention(nn.Module):
    """Self-attention by four matrices, of queries and keys that are normalised, a head at a time, and turned.

    Args:
        names: of the matrices of queries, keys, values and the way back.
        bias: of all four.
    """

    def __init__(self, hidden_size: int, num_heads: int, names: tuple[str, str, str, str], bias: bool):
        super().__init__()
        self.num_heads, self.names = num_heads, names
        self.attend, self.turned = F.scaled_dot_product_attention, turned
        for name in names:
            setattr(self, name, nn.Linear(hidden_size, hidden_size, bias=bias))
        self.q_norm, self.k_norm = (RMSNorm(hidden_size // num_heads) for _ in "qk")

    def products(self) -> list[nn.Module]:
        """The matrices in it."""
        return [getattr(self, name) for name in self.names]

    @torch.no_grad()
    def turn_by_halves(self) -> None:
        """As `Attention.turn_by_halves`."""
        if self.turned is not turned:
            return
        for matrix in self.products()[:2]:
            for parameter in matrix.parameters():
                parameter.copy_(even_before_odd(parameter, self.num_heads))
        reorder_norms(self)
        self.turned = turned_by_halves

    def forward(self, x: Tensor, turn: Rotation) -> Tensor:
        *each, back = self.products()
        q, k, v = (part(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in each)
        q, k = (self.turned(norm(one), turn).to(v.dtype) for norm, one in ((self.q_norm, q), (self.k_norm, k)))
        return back(self.attend(q, k, v).transpose(1, 2).flatten(2))


def modulated(x: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    """x (B, T, D) by a shift and a scale for each token, or (B, 1, D) for all; without a shift, by the scale alone."""
    x = x * (1 + scale)
    return x if shift is None else x + shift


def each_token(c: Tensor) -> Tensor:
    """A conditioning (B, D) for all tokens as (B, 1, D); one for each (B, T, D) as it is."""
    return c.unsqueeze(1) if c.dim() == 2 else c


class Block(nn.Module):
    """Attention and an MLP behind RMSNorms, each modulated and gated by the conditioning, of an image or of each token.

    Args:
        mlp: as its `mlp`.
        qk_norm: of queries and keys; None for none.
        with_silu: of the conditioning, before its matrix.
        with_shift: or else modulation is by scale and gate alone.
        attn: its attention, where that is another than `Attention`; `qk_norm` and `qkv_bias` are of no use then.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        mlp: nn.Module,
        qk_norm: Norm | None = None,
        qkv_bias: bool = True,
        with_silu: bool = True,
        with_shift: bool = True,
        attn: nn.Module | None = None,
    ):
        super().__init__()
        self.with_shift = with_shift
        self.norm1 = RMSNorm(hidden_size)
        self.attn = Attention(hidden_size, num_heads, qk_norm, qkv_bias) if attn is None else attn
        self.norm2 = RMSNorm(hidden_size)
        self.mlp = mlp
        last = nn.Linear(hidden_size, (6 if with_shift else 4) * hidden_size)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), last) if with_silu else nn.Sequential(last)

    def products(self) -> list[nn.Module]:
        """Its matrices, and what consists of nothing else."""
        return [*self.attn.products(), self.mlp, self.adaLN_modulation]

    def forward(self, x: Tensor, c: Tensor, turn: Rotation | None = None) -> Tensor:
        half = self.attn.proj.weight.dtype  # that of x, unless `Transformer.to_half` was called
        found = self.adaLN_modulation(each_token(c).to(half)).to(x.dtype)
        if self.with_shift:
            shift1, scale1, gate1, shift2, scale2, gate2 = found.chunk(6, dim=-1)
        else:
            (scale1, gate1, scale2, gate2), shift1, shift2 = found.chunk(4, dim=-1), None, None
        x = x + gate1 * self.attn(modulated(self.norm1(x), shift1, scale1).to(half), turn)
        return x + gate2 * self.mlp(modulated(self.norm2(x), shift2, scale2).to(half))


class FinalLayer(nn.Module):
    """From tokens to patches: a norm, modulated, and a matrix."""

    def __init__(self, hidden_size: int, out: int, norm: Norm = RMSNorm, with_silu: bool = True):
        super().__init__()
        self.norm_final = norm(hidden_size)
        self.linear = nn.Linear(hidden_size, out)
        last = nn.Linear(hidden_size, 2 * hidden_size)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), last) if with_silu else nn.Sequential(last)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(each_token(c)).chunk(2, dim=-1)
        return self.linear(modulated(self.norm_final(x), shift, scale))


def depth_of(state: State, prefix: str = BLOCKS) -> int:
    """How many modules there are in the list that is called so in front of their numbers."""
    return len({key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)})


def named_size(sizes: Mapping[str, tuple], width: int, depth: int) -> str:
    """The name of the size that begins with this width and depth, or these in words."""
    found = (name for name, size in sizes.items() if tuple(size[:2]) == (width, depth))
    return next(found, f"({width} wide, {depth} deep)")


def dit_shape(state: State, sizes: Mapping[str, tuple], **options: object) -> Shape:
    """The shape of weights under DiT's names. KeyError or ValueError if they are none."""
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    _, tokens, _ = state["pos_embed"].shape
    depth, side = depth_of(state), math.isqrt(tokens) * patch
    return Shape(named_size(sizes, width, depth), patch, channels, side, len(state[TABLE]), width, depth, options)


def no_change(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


@dataclass(frozen=True)
class Layout:
    """How a family's files name its weights, where that is not as a DiT's."""

    is_told_by: Callable[[Iterable[str]], bool]  # names that are of this family and of no other
    shape: Callable[[State], Shape]  # KeyError, ValueError or IndexError where some are of none of its networks
    mark: str = "x_embedder.proj.weight"  # a name by which its networks are found among others
    renamed: Callable[[dict[str, Tensor]], dict[str, Tensor]] = no_change  # from names of files to those of the class
    unused: tuple[str, ...] = ()  # beginnings of names that only training needs
    any_size: bool = False  # the network takes latents of any size, and its weights do not tell that of its training
    build: Callable[[Shape], nn.Module] | None = None  # of any size; None where it has a DiT's names at least

    def keys(self, state: State) -> set[str]:
        """The names of the weights of a network like these, if they are of one; else one that they lack."""
        try:
            with torch.device("meta"):
                return set(self.build(self.shape(state)).state_dict())
        except KeyError as error:
            return {error.args[0]}
        except (ValueError, IndexError):
            return {self.mark, TABLE}
