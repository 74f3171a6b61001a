"""Each family's network once more, from a state dict under its files' names: plain, slow, in float64, a head at a time.

Written from the families' descriptions alone; nothing of `models` is imported.
"""

import math

import torch

State = dict[str, torch.Tensor]


class Weights:
    """The weights whose names begin with a prefix, in float64."""

    def __init__(self, state: State, prefix: str = ""):
        self.state, self.prefix = state, prefix

    def under(self, name: str) -> "Weights":
        return Weights(self.state, f"{self.prefix}{name}.")

    def has(self, name: str) -> bool:
        return f"{self.prefix}{name}" in self.state

    def get(self, name: str) -> torch.Tensor:
        return self.state[f"{self.prefix}{name}"].double()

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y = torch.einsum("oi,...i->...o", self.get(f"{name}.weight"), x)
        return y + self.get(f"{name}.bias") if self.has(f"{name}.bias") else y


def silu(x):
    return x / (1 + torch.exp(-x))


def gelu(x):
    """The approximation by tanh."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def centred(x, eps):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + eps)


def rms(x, weight, eps=1e-6):
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps) * weight


def sinusoid(t, period):
    """256 numbers of a time: cosines, then sines."""
    angles = [t * period ** (-i / 128) for i in range(128)]
    return torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)


def embedded(weights, name, t, period=10_000.0):
    hidden = silu(weights.linear(f"{name}.mlp.0", sinusoid(t, period)))
    return weights.linear(f"{name}.mlp.2", hidden)


def patches(x, size):
    """(C, H, W) -> a row a patch, line by line, each channel by channel."""
    channels, height, _ = x.shape
    cells = range(0, height, size)
    return torch.stack([x[:, i : i + size, j : j + size].reshape(-1) for i in cells for j in cells]), channels


def by_convolution(weights, name, x):
    """A convolution whose stride is its kernel, as a matrix on patches."""
    kernel = weights.get(f"{name}.weight")
    rows, _ = patches(x, kernel.shape[-1])
    y = rows @ kernel.reshape(len(kernel), -1).T
    return y + weights.get(f"{name}.bias") if weights.has(f"{name}.bias") else y


def assembled(tokens, size, channels, channels_first=False):
    """Tokens (T, size * size * channels), pixel by pixel, to an image; or channel by channel."""
    side = math.isqrt(len(tokens))
    image = torch.zeros(channels, side * size, side * size, dtype=torch.float64)
    for place, token in enumerate(tokens):
        i, j = size * (place // side), size * (place % side)
        cell = token.reshape(channels, size, size) if channels_first else token.reshape(size, size, channels).permute(2, 0, 1)
        image[:, i : i + size, j : j + size] = cell
    return image


def turned(x, angles):
    """Pairs of neighbours of x (T, d) as complex numbers, turned by angles (T, d / 2)."""
    pairs = torch.complex(x[:, 0::2], x[:, 1::2]) * torch.exp(1j * angles)
    return torch.stack([pairs.real, pairs.imag], dim=-1).flatten(1)


def row_and_column_angles(side, head_dim):
    """LightningDiT's: half of the pairs by the row, the others by the column."""
    quarter = head_dim // 4
    rates = [10_000.0 ** (-2 * i / (head_dim // 2)) for i in range(quarter)]
    return torch.tensor(
        [[i * rate for rate in rates] + [j * rate for rate in rates] for i in range(side) for j in range(side)],
        dtype=torch.float64,
    )


def interleaved_angles(side, head_dim):
    """DDT's: pairs by the column and by the row in turn, of places from 0 to 16."""
    rates = [10_000.0 ** (-4 * i / head_dim) for i in range(head_dim // 4)]
    places = [16 * i / (side - 1) for i in range(side)]
    return torch.tensor(
        [[place * rate for rate in rates for place in (places[j], places[i])] for i in range(side) for j in range(side)],
        dtype=torch.float64,
    )


def softmax_attention(q, k, v):
    scores = torch.exp(q @ k.T / math.sqrt(q.shape[-1]))
    return scores / scores.sum(-1, keepdim=True) @ v


def attention(weights, x, heads, norm=None, angles=None):
    """Of x (T, D); norm(values, weights, name) of queries and keys."""
    head_dim = x.shape[-1] // heads
    q, k, v = weights.linear("qkv", x).split(x.shape[-1], dim=-1)
    found = []
    for head in range(heads):
        part = slice(head * head_dim, (head + 1) * head_dim)
        each = [q[:, part], k[:, part]]
        if norm:
            each = [norm(value, weights, name) for value, name in zip(each, ("q_norm", "k_norm"), strict=True)]
        if angles is not None:
            each = [turned(value, angles) for value in each]
        found.append(softmax_attention(*each, v[:, part]))
    return weights.linear("proj", torch.cat(found, dim=-1))


def rms_norm_of(x, weights, name):
    return rms(x, weights.get(f"{name}.weight"))


def layer_norm_of(x, weights, name):
    return centred(x, 1e-5) * weights.get(f"{name}.weight") + weights.get(f"{name}.bias")


def sit_blocks(weights, x, c, heads, qk_norm):
    """DiT's blocks and last layer, on tokens."""
    depth = len({key.split(".")[1] for key in weights.state if key.startswith("blocks.")})
    for number in range(depth):
        block = weights.under(f"blocks.{number}")
        shift1, scale1, gate1, shift2, scale2, gate2 = block.linear("adaLN_modulation.1", silu(c)).chunk(6)
        y = centred(x, 1e-6) * (1 + scale1) + shift1
        x = x + gate1 * attention(block.under("attn"), y, heads, layer_norm_of if qk_norm else None)
        y = centred(x, 1e-6) * (1 + scale2) + shift2
        x = x + gate2 * block.linear("mlp.fc2", gelu(block.linear("mlp.fc1", y)))
    shift, scale = weights.linear("final_layer.adaLN_modulation.1", silu(c)).chunk(2)
    return weights.linear("final_layer.linear", centred(x, 1e-6) * (1 + scale) + shift)


def of_sit(state, x, t, label, heads, qk_norm=False, gap=None):
    """SiT, REPA, and, with a `gap` of t - r, MeanFlow; x (C, H, W)."""
    weights = Weights(state)
    c = embedded(weights, "t_embedder", t) + weights.get("y_embedder.embedding_table.weight")[label]
    if gap is not None:
        c = c + embedded(weights, "r_embedder", gap)
    tokens = by_convolution(weights, "x_embedder.proj", x.double()) + weights.get("pos_embed")[0]
    size = state["x_embedder.proj.weight"].shape[-1]
    return assembled(sit_blocks(weights, tokens, c, heads, qk_norm), size, len(x))


def swiglu(weights, x):
    """By w12 and w3."""
    a, b = weights.linear("w12", x).chunk(2, dim=-1)
    return weights.linear("w3", silu(a) * b)


def gated(weights, x):
    """By w1, w3 and back by w2."""
    return weights.linear("w2", silu(weights.linear("w1", x)) * weights.linear("w3", x))


def modern_block(weights, x, c, heads, mlp=swiglu, qk_norm=True, angles=None, adaln="adaLN_modulation.1", act=silu):
    """RMSNorms, modulation by c (D,) or (T, D), six parts or four."""
    found = weights.linear(adaln, act(c))
    parts = found.split(x.shape[-1], dim=-1)
    shift1, scale1, gate1, shift2, scale2, gate2 = parts if len(parts) == 6 else (0, parts[0], parts[1], 0, parts[2], parts[3])
    y = rms(x, weights.get("norm1.weight")) * (1 + scale1) + shift1
    x = x + gate1 * attention(weights.under("attn"), y, heads, rms_norm_of if qk_norm else None, angles)
    y = rms(x, weights.get("norm2.weight")) * (1 + scale2) + shift2
    return x + gate2 * mlp(weights.under("mlp"), y)


def of_lightningdit(state, x, t, label, heads, qk_norm):
    weights = Weights(state)
    c = embedded(weights, "t_embedder", t) + weights.get("y_embedder.embedding_table.weight")[label]
    tokens = by_convolution(weights, "x_embedder.proj", x.double()) + weights.get("pos_embed")[0]
    angles = row_and_column_angles(math.isqrt(len(tokens)), tokens.shape[-1] // heads)
    for number in range(len({key.split(".")[1] for key in state if key.startswith("blocks.")})):
        tokens = modern_block(weights.under(f"blocks.{number}"), tokens, c, heads, qk_norm=qk_norm, angles=angles)
    shift, scale = weights.linear("final_layer.adaLN_modulation.1", silu(c)).chunk(2)
    y = rms(tokens, weights.get("final_layer.norm_final.weight")) * (1 + scale) + shift
    return assembled(weights.linear("final_layer.linear", y), state["x_embedder.proj.weight"].shape[-1], len(x))


def of_jit(state, x, t, label, heads, start):
    """x (3, H, W); 32 tokens of the class before the image's from block `start` on."""
    weights = Weights(state)
    of_class = weights.get("y_embedder.embedding_table.weight")[label]
    c = embedded(weights, "t_embedder", t) + of_class
    low = by_convolution(weights, "x_embedder.proj1", x.double())
    second = weights.get("x_embedder.proj2.weight")
    tokens = low @ second[:, :, 0, 0].T + weights.get("x_embedder.proj2.bias") + weights.get("pos_embed")[0]
    angles = row_and_column_angles(math.isqrt(len(tokens)), tokens.shape[-1] // heads)
    for number in range(len({key.split(".")[1] for key in state if key.startswith("blocks.")})):
        if number == start:
            context = weights.get("in_context_posemb")[0] + of_class
            tokens = torch.cat([context, tokens])
            angles = torch.cat([torch.zeros(len(context), angles.shape[1], dtype=torch.float64), angles])
        tokens = modern_block(weights.under(f"blocks.{number}"), tokens, c, heads, angles=angles)
    shift, scale = weights.linear("final_layer.adaLN_modulation.1", silu(c)).chunk(2)
    y = rms(tokens[state["in_context_posemb"].shape[1] :], weights.get("final_layer.norm_final.weight")) * (1 + scale) + shift
    return assembled(weights.linear("final_layer.linear", y), state["x_embedder.proj1.weight"].shape[-1], len(x))


def of_ddt(state, x, t, label, heads, encoders, size):
    weights = Weights(state)
    time = embedded(weights, "t_embedder", t, period=10.0)
    c = silu(time + weights.get("y_embedder.embedding_table.weight")[label])
    rows, _ = patches(x.double(), size)
    tokens = weights.linear("s_embedder.proj", rows)
    angles = interleaved_angles(math.isqrt(len(rows)), tokens.shape[-1] // heads)

    def block(number, tokens, c):
        one = weights.under(f"blocks.{number}")
        return modern_block(one, tokens, c, heads, gated, angles=angles, adaln="adaLN_modulation.0", act=lambda value: value)

    for number in range(encoders):
        tokens = block(number, tokens, c)
    state_of_tokens = silu(time + tokens)
    tokens = weights.linear("x_embedder.proj", rows)
    for number in range(encoders, len({key.split(".")[1] for key in state if key.startswith("blocks.")})):
        tokens = block(number, tokens, state_of_tokens)
    shift, scale = weights.linear("final_layer.adaLN_modulation.0", state_of_tokens).chunk(2, dim=-1)
    y = weights.linear("final_layer.linear", centred(tokens, 1e-6) * (1 + scale) + shift)
    return assembled(y, size, len(x), channels_first=True)


def of_rae(state, x, t, label, heads, encoders, qk_norm=False):
    """`heads` of the encoder and of the head."""
    weights = Weights(state)
    angles = 2 * math.pi * t * weights.get("t_embedder.W")
    hidden = silu(weights.linear("t_embedder.mlp.0", torch.cat([torch.sin(angles), torch.cos(angles)])))
    time = weights.linear("t_embedder.mlp.2", hidden)
    c = silu(time + weights.get("y_embedder.embedding_table.weight")[label])
    s = by_convolution(weights, "s_embedder.proj", x.double()) + weights.get("pos_embed")[0]
    side = math.isqrt(len(s))
    for number in range(encoders):
        turn = row_and_column_angles(side, s.shape[-1] // heads[0])
        s = modern_block(weights.under(f"blocks.{number}"), s, c, heads[0], qk_norm=qk_norm, angles=turn)
    s = silu(time + s)
    s = weights.linear("s_projector", s) if weights.has("s_projector.weight") else s
    tokens = by_convolution(weights, "x_embedder.proj", x.double())
    for number in range(encoders, len({key.split(".")[1] for key in state if key.startswith("blocks.")})):
        turn = row_and_column_angles(side, tokens.shape[-1] // heads[1])
        tokens = modern_block(weights.under(f"blocks.{number}"), tokens, s, heads[1], qk_norm=qk_norm, angles=turn)
    shift, scale = weights.linear("final_layer.adaLN_modulation.1", silu(s)).chunk(2, dim=-1)
    y = rms(tokens, weights.get("final_layer.norm_final.weight")) * (1 + scale) + shift
    return assembled(weights.linear("final_layer.linear", y), 1, len(x))


def by_four_matrices(weights, x, heads, angles):
    """RAEv2's attention: queries, keys and values apart."""
    head_dim = x.shape[-1] // heads
    q, k, v = (weights.linear(name, x) for name in "qkv")
    found = []
    for head in range(heads):
        part = slice(head * head_dim, (head + 1) * head_dim)
        one, other = rms(q[:, part], weights.get("q_norm.weight")), rms(k[:, part], weights.get("k_norm.weight"))
        found.append(softmax_attention(turned(one, angles), turned(other, angles), v[:, part]))
    return weights.linear("proj", torch.cat(found, dim=-1))


def of_raev2(state, x, t, label, heads, encoders, inner=None):
    """By the names of its files; with `inner`, what its inner head after that block puts out comes behind."""
    weights = Weights(state)
    angles = 2 * math.pi * t * weights.get("t_embedder.W")
    hidden = silu(weights.linear("t_embedder.mlp.0", torch.cat([torch.sin(angles), torch.cos(angles)])))
    time = weights.linear("t_embedder.mlp.2", hidden)
    image = by_convolution(weights, "s_embedder.proj", x.double())
    of_class = weights.get("ctx_embedder.embedding_table.weight")[label] + weights.get("ctx_embedder.learnable_tokens")
    s = torch.cat([image, weights.get("t_embedder.learnable_tokens") + time, of_class])
    side = math.isqrt(len(image))
    turn = row_and_column_angles(side, s.shape[-1] // heads[0])
    turn = torch.cat([turn, torch.zeros(len(s) - len(image), turn.shape[1], dtype=torch.float64)])

    def mlp(block, y):
        return block.linear("mlp.w3", silu(block.linear("mlp.w1", y)) * block.linear("mlp.w2", y))

    def last(name, tokens, c):
        shift, scale = weights.linear(f"{name}.adaln_modulation.1", silu(c)).chunk(2, dim=-1)
        y = rms(tokens, weights.get(f"{name}.norm.weight")) * (1 + scale) + shift
        return assembled(weights.linear(f"{name}.linear", y), 1, len(x))

    for number in range(encoders):
        block = weights.under(f"blocks.{number}")
        s = s + by_four_matrices(block.under("attn"), rms(s, block.get("norm1.weight")), heads[0], turn)
        s = s + mlp(block, rms(s, block.get("norm2.weight")))
        if number + 1 == inner:
            early = silu(time + s[: len(image)])
    s = silu(time + s[: len(image)])
    s = weights.linear("s_projector", s) if weights.has("s_projector.weight") else s
    tokens = by_convolution(weights, "x_embedder.proj", x.double())
    turn = row_and_column_angles(side, tokens.shape[-1] // heads[1])
    for number in range(encoders, len({key.split(".")[1] for key in state if key.startswith("blocks.")})):
        block = weights.under(f"blocks.{number}")
        found = block.linear("adaln_modulation.1", silu(s)).chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = found
        y = rms(tokens, block.get("norm1.weight")) * (1 + scale1) + shift1
        tokens = tokens + gate1 * by_four_matrices(block.under("attn"), y, heads[1], turn)
        tokens = tokens + gate2 * mlp(block, rms(tokens, block.get("norm2.weight")) * (1 + scale2) + shift2)
    out = last("final_layer", tokens, s)
    return out if inner is None else torch.cat([out, last("base_final_layer", early, early)])


def flax_linear(weights, name, x):
    return weights.linear(f"{name}._flax_linear", x)


def of_imf(state, x, gap, omega, low, high, label, heads):
    """The average velocity; names as in its files, without `net.`."""
    weights = Weights(state)

    def of_number(name, number):
        hidden = silu(flax_linear(weights, f"{name}.mlp.0", sinusoid(number, 10_000.0)))
        return flax_linear(weights, f"{name}.mlp.2", hidden)

    image = by_convolution(weights, "x_embedder.proj", x.double())
    tokens = torch.cat(
        [
            weights.get("class_tokens") + weights.get("y_embedder.embedding_table._flax_embedding.weight")[label],
            weights.get("omega_tokens") + of_number("omega_embedder", 1 - 1 / omega),
            weights.get("t_min_tokens") + of_number("cfg_t_start_embedder", low),
            weights.get("t_max_tokens") + of_number("cfg_t_end_embedder", high),
            weights.get("time_tokens") + of_number("h_embedder", gap),
            image,
        ]
    )
    head_dim = tokens.shape[-1] // heads
    rates = [10_000.0 ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    angles = torch.tensor([[place * rate for rate in rates] for place in range(len(tokens))], dtype=torch.float64)
    for kind in ("shared_blocks", "u_heads"):
        for number in range(len({key.split(".")[1] for key in state if key.startswith(f"{kind}.")})):
            block = weights.under(f"{kind}.{number}")
            attn, y = block.under("attn"), rms(tokens, block.get("norm1.weight"))
            q, k, v = (flax_linear(attn, f"{name}_proj", y) for name in "qkv")
            heads_found = []
            for head in range(heads):
                part = slice(head * head_dim, (head + 1) * head_dim)
                one, other = rms(q[:, part], attn.get("q_norm.weight")), rms(k[:, part], attn.get("k_norm.weight"))
                heads_found.append(softmax_attention(turned(one, angles), turned(other, angles), v[:, part]))
            tokens = tokens + flax_linear(attn, "out_proj", torch.cat(heads_found, dim=-1)) * block.get("attn_scale")
            mlp, y = block.under("mlp"), rms(tokens, block.get("norm2.weight"))
            y = flax_linear(mlp, "w2", silu(flax_linear(mlp, "w1", y)) * flax_linear(mlp, "w3", y))
            tokens = tokens + y * block.get("mlp_scale")
    tokens = rms(tokens[len(tokens) - len(image) :], weights.get("u_final_layer.norm.weight"))
    size = state["x_embedder.proj.weight"].shape[-1]
    return assembled(flax_linear(weights, "u_final_layer.linear", tokens), size, len(x))
