"""SiT's (and so DiT's), LightningDiT's and JiT's networks once more, the usual way: eager torch on a state dict, whole batches,
torch's own kernel for attention. The peers of scripts/benchmark.py; tests/second_writings.py has slow ones to be right by.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fiducial.models.networks.dit import DIT_SIZES
from fiducial.models.networks.jit import SIZES as JIT_SIZES
from fiducial.models.networks.lightningdit import SIZES as LIGHTNING_SIZES

State = Mapping[str, Tensor]
Plain = Callable[[State, Tensor, Tensor, Tensor], Tensor]  # weights, x (N, C, H, W), t (N,), labels (N,) -> (N, C or 2C, H, W)


def linear(w: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def convolved(w: State, name: str, x: Tensor) -> Tensor:
    """A convolution of patches."""
    kernel = w[f"{name}.weight"]
    return F.conv2d(x, kernel, w.get(f"{name}.bias"), stride=kernel.shape[-1])


def tokens_of(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def conditioning(w: State, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The embedding of time and class, and that of the class alone, (N, D)."""
    of_class = F.embedding(y, w["y_embedder.embedding_table.weight"])
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * torch.arange(128, device=t.device) / 128)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1).to(of_class.dtype)
    return linear(w, "t_embedder.mlp.2", F.silu(linear(w, "t_embedder.mlp.0", waves))) + of_class, of_class


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, 1e-6)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs of neighbours of x (N, heads, T, d) turned."""
    even, odd = x[..., ::2], x[..., 1::2]
    return x * cos + torch.stack([-odd, even], dim=-1).flatten(3) * sin


def rotation(side: int, head_dim: int, before: int = 0) -> Tensor:
    """Cosines and sines (2, before + side * side, head_dim), by row and by column; what is before the grid is not turned."""
    rates = 10_000 ** (-torch.arange(0, head_dim // 2, 2) / (head_dim // 2))
    line = (torch.arange(side)[:, None] * rates).repeat_interleave(2, dim=1)
    grid = torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], dim=-1).flatten(0, 1)
    angles = torch.cat([torch.zeros(before, head_dim), grid])
    return torch.stack([angles.cos(), angles.sin()])


def attention(w: State, name: str, x: Tensor, heads: int, turn: Tensor | None = None) -> Tensor:
    q, k, v = linear(w, f"{name}.qkv", x).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    if f"{name}.q_norm.weight" in w:
        q, k = rms(q, w[f"{name}.q_norm.weight"]), rms(k, w[f"{name}.k_norm.weight"])
    if turn is not None:
        q, k = turned(q, *turn), turned(k, *turn)
    return linear(w, f"{name}.proj", F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def parts(w: State, name: str, c: Tensor, count: int) -> tuple[Tensor, ...]:
    """Shifts, scales and gates of a conditioning (N, D), each (N, 1, D)."""
    return linear(w, f"{name}.adaLN_modulation.1", F.silu(c))[:, None].chunk(count, dim=-1)


def unpatchified(tokens: Tensor, patch: int) -> Tensor:
    side = math.isqrt(tokens.shape[1])
    return (
        torch.einsum("nhwpqc->nchpwq", tokens.unflatten(1, (side, side)).unflatten(3, (patch, patch, -1)))
        .flatten(4)
        .flatten(2, 3)
    )


def sit(w: State, x: Tensor, t: Tensor, y: Tensor, depth: int, heads: int) -> Tensor:
    c, _ = conditioning(w, t, y)
    patch = w["x_embedder.proj.weight"].shape[-1]
    x = tokens_of(convolved(w, "x_embedder.proj", x)) + w["pos_embed"]

    def normed(x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    for name in (f"blocks.{number}" for number in range(depth)):
        shift1, scale1, gate1, shift2, scale2, gate2 = parts(w, name, c, 6)
        x = x + gate1 * attention(w, f"{name}.attn", normed(x) * (1 + scale1) + shift1, heads)
        hidden = F.gelu(linear(w, f"{name}.mlp.fc1", normed(x) * (1 + scale2) + shift2), approximate="tanh")
        x = x + gate2 * linear(w, f"{name}.mlp.fc2", hidden)
    shift, scale = parts(w, "final_layer", c, 2)
    return unpatchified(linear(w, "final_layer.linear", normed(x) * (1 + scale) + shift), patch)


def modern_block(w: State, name: str, x: Tensor, c: Tensor, heads: int, turn: Tensor) -> Tensor:
    shift1, scale1, gate1, shift2, scale2, gate2 = parts(w, name, c, 6)
    y = rms(x, w[f"{name}.norm1.weight"]) * (1 + scale1) + shift1
    x = x + gate1 * attention(w, f"{name}.attn", y, heads, turn)
    a, b = linear(w, f"{name}.mlp.w12", rms(x, w[f"{name}.norm2.weight"]) * (1 + scale2) + shift2).chunk(2, dim=-1)
    return x + gate2 * linear(w, f"{name}.mlp.w3", F.silu(a) * b)


def modern_end(w: State, x: Tensor, c: Tensor, patch: int) -> Tensor:
    shift, scale = parts(w, "final_layer", c, 2)
    y = rms(x, w["final_layer.norm_final.weight"]) * (1 + scale) + shift
    return unpatchified(linear(w, "final_layer.linear", y), patch)


def lightningdit(w: State, x: Tensor, t: Tensor, y: Tensor, depth: int, heads: int) -> Tensor:
    c, _ = conditioning(w, t, y)
    patch = w["x_embedder.proj.weight"].shape[-1]
    x = tokens_of(convolved(w, "x_embedder.proj", x)) + w["pos_embed"]
    turn = torch.stack([w["feat_rope.freqs_cos"], w["feat_rope.freqs_sin"]])
    for number in range(depth):
        x = modern_block(w, f"blocks.{number}", x, c, heads, turn)
    return modern_end(w, x, c, patch)


def jit(w: State, x: Tensor, t: Tensor, y: Tensor, depth: int, heads: int, start: int) -> Tensor:
    c, of_class = conditioning(w, t, y)
    patch = w["x_embedder.proj1.weight"].shape[-1]
    x = tokens_of(convolved(w, "x_embedder.proj2", convolved(w, "x_embedder.proj1", x))) + w["pos_embed"]
    image, context = x.shape[1], w["in_context_posemb"]
    whole = rotation(math.isqrt(image), x.shape[-1] // heads, context.shape[1]).to(x)
    turn = whole[:, context.shape[1] :]
    for number in range(depth):
        if number == start:
            x, turn = torch.cat([context + of_class[:, None], x], dim=1), whole
        x = modern_block(w, f"blocks.{number}", x, c, heads, turn)
    return modern_end(w, x[:, -image:], c, patch)


def of_model(model: str) -> Plain | None:
    """The plain writing of a model, None where there is none."""
    family, _, size = model.partition("/")[0].partition("-")
    if family in ("DiT", "SiT"):
        _, depth, heads = DIT_SIZES[size]
        return partial(sit, depth=depth, heads=heads)
    if family == "LightningDiT":
        _, depth, heads = LIGHTNING_SIZES[size]
        return partial(lightningdit, depth=depth, heads=heads)
    if family == "JiT":
        _, depth, heads, _, start = JIT_SIZES[size]
        return partial(jit, depth=depth, heads=heads, start=start)
    return None
