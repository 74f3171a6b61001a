"""The form in which diffusers keeps a DiT: its names for the weights and its configuration, both ways and bit for bit.

It stores q, k and v of the attention apart; the embedders of timestep and label once in every block, all the same; and no
position embedding, which is a formula. What is otherwise in a file has no place in the other form, so that file is refused.
"""

from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from fiducial import QUOTED, UserError, quoted
from fiducial.models.networks.dit import ARITHMETICS, DIT_SIZES, PATCH_SIZES, DiT_models, sincos_position_embedding

POSITIONS = "pos_embed"
# Names of modules, official and diffusers'. Those of EMBEDDERS stand in every block.
EMBEDDERS = {
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
    "y_embedder.embedding_table": "norm1.emb.class_embedder.embedding_table",
}
ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.linear": "proj_out_2",
    "final_layer.adaLN_modulation.1": "proj_out_1",
}
IN_BLOCKS = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "adaLN_modulation.1": ("norm1.linear",),
}

CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")  # the second is what the first was called until diffusers 0.28
CLASS_OF = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "norm_eps": ARITHMETICS["diffusers"].mlp_norm_eps,
}
SHAPE = (
    *("num_attention_heads", "attention_head_dim", "num_layers", "patch_size"),
    *("in_channels", "out_channels", "sample_size", "num_embeds_ada_norm"),
)
LARGEST = {"sample_size": 1024, "num_embeds_ada_norm": 1_000_000}  # beyond these a number is no network's
LARGEST_OTHER = 10_000
SAME_SINE = 1e-6  # what the sines of two mathematical libraries may differ by

State = dict[str, Tensor]


def places(key: str, depth: int, is_own: bool) -> list[str]:
    """Where diffusers keeps an official parameter of a network with `depth` blocks: one place, three for q, k and v, none for
    the position embedding, and every block's for an embedder, unless that `is_own` to each."""
    if key == POSITIONS:
        return []
    module, _, kind = key.rpartition(".")
    if module in EMBEDDERS:
        return [f"transformer_blocks.{block}.{EMBEDDERS[module]}.{kind}" for block in range(1 if is_own else depth)]
    if module in ENDS:
        return [f"{ENDS[module]}.{kind}"]
    _, block, part = module.split(".", 2)
    return [f"transformer_blocks.{block}.{name}.{kind}" for name in IN_BLOCKS.get(part) or (EMBEDDERS[part],)]


def has_own_embedders(state: State) -> bool:
    """Whether the blocks of a network under official names have embedders of their own (see `DiT`)."""
    return any(key.startswith("blocks.1.t_embedder.") for key in state)


def is_fused(key: str) -> bool:
    """Whether an official parameter is what diffusers has as three."""
    return ".attn.qkv." in key


def depth_of(state: State) -> int:
    """How many blocks a network under official names has."""
    return len({key.split(".")[1] for key in state if key.startswith("blocks.")})


def to_diffusers(state: State) -> State:
    """Official weights under diffusers' names, each tensor with memory of its own where they share an official one.

    The position embedding stays behind: see `require_formula`.
    """
    depth, is_own, renamed = depth_of(state), has_own_embedders(state), {}
    for key, value in state.items():
        names = places(key, depth, is_own)
        parts = value.chunk(3) if is_fused(key) else [value] * len(names)
        renamed |= {name: part if len(names) == 1 else part.clone() for name, part in zip(names, parts, strict=True)}
    return renamed


def to_official(state: State, config: dict, path: Path) -> State:
    """diffusers' weights under official names, with the position embedding that diffusers does not keep.

    Diffusers has embedders in each block. In weights that were converted from official ones they are equal, and become one.

    Raises:
        UserError: if they are not of the network that `config` describes.
    """
    options = shape_of(config, path)
    build = DiT_models[options.pop("model")]
    with torch.device("meta"):
        wanted = build(**options).state_dict()
    depth = depth_of(wanted)
    hold_against(state, to_diffusers(wanted), path, "what its config.json describes")
    embedders = [[state[name] for name in places(key, depth, False)] for key in wanted if key.rpartition(".")[0] in EMBEDDERS]
    if is_own := any(not same_bits(first, other) for first, *others in embedders for other in others):
        with torch.device("meta"):
            wanted = build(**options, own_embedders=True).state_dict()
    return {
        key: positions(state["pos_embed.proj.weight"].dtype, like)
        if key == POSITIONS
        else _joined(places(key, depth, is_own), state, path)
        for key, like in wanted.items()
    }


def hold_against(state: State, wanted: State, path: Path, described: str) -> None:
    """Raise UserError if the weights in `path` have other names or shapes than those wanted, or are no dense floating point
    numbers. `described` says in the error whose these are.
    """
    for difference, keys in (("lacks", wanted.keys() - state.keys()), ("has the surplus", state.keys() - wanted.keys())):
        if keys:
            raise UserError(
                f"{path} {difference} {len(keys)} of the keys of {described} with {len(wanted)} keys, "
                f"first {quoted(min(keys, key=str))}"
            )
    for key, tensor in wanted.items():
        found = state[key]
        if found.shape != tensor.shape or not found.is_floating_point() or found.layout != torch.strided:
            raise UserError(
                f"{path}: {key} of {described} is dense floating point {tuple(tensor.shape)}; "
                f"found {found.layout} {found.dtype} {tuple(found.shape)}"
            )


def _joined(names: list[str], state: State, path: Path) -> Tensor:
    """The official parameter, from the places where diffusers has it: q, k and v one below the other, or equal ones."""
    parts = [state[name] for name in names]
    if "to_q" not in names[0]:
        return parts[0]
    if len({part.dtype for part in parts}) > 1:
        raise UserError(f"{path}: {', '.join(names)} are of several dtypes, and the official network has them as one tensor")
    return torch.cat(parts)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape are the same, also in what is no number or a negative zero."""
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def positions(dtype: torch.dtype, like: Tensor) -> Tensor:
    """The formula's position embedding in the shape of `like` (1, tokens, dim)."""
    _, tokens, dim = like.shape
    return sincos_position_embedding(dim, int(tokens**0.5)).to(dtype)


def require_formula(state: State, path: Path) -> None:
    """Raise UserError if official weights have a position embedding that diffusers would not compute itself."""
    found = state[POSITIONS]
    wanted = positions(state["x_embedder.proj.weight"].dtype, found)
    if found.dtype != wanted.dtype or not torch.allclose(found.double(), wanted.double(), rtol=0, atol=SAME_SINE):
        raise UserError(
            f"{path}: its pos_embed is not the sines and cosines, in the dtype of its patch embedding, that diffusers computes "
            "in the place of a stored one; convert it to official or safetensors instead"
        )


def shape_of(config: dict, path: Path) -> dict[str, str | int | bool]:
    """The network that a configuration of diffusers describes, as the options of `DiT_models[model]`.

    Raises:
        UserError: if it is none of these.
    """
    where = f"{path}: its config.json"
    if (kind := config.get("_class_name")) not in CLASSES:
        raise UserError(f"{where} describes a {str(kind)[:QUOTED]}, expected a {CLASSES[0]}")
    for name, value in CLASS_OF.items():
        if config.get(name, value) != value:
            raise UserError(f"{where} has {name} {quoted(config[name])}; a DiT has {value!r}")
    config = config | {"out_channels": config.get("out_channels") or config.get("in_channels")}
    for name in SHAPE:
        most = LARGEST.get(name, LARGEST_OTHER)
        if not isinstance(number := config.get(name), int) or isinstance(number, bool) or not 1 <= number <= most:
            raise UserError(f"{where} has {name} {quoted(number)}, expected a number from 1 to {most:,}")
    heads, head, depth, patch, channels, out, size, classes = (config[name] for name in SHAPE)
    sizes = (name for name, shape in DIT_SIZES.items() if shape == (heads * head, depth, heads))
    if (found := next(sizes, None)) is None or patch not in PATCH_SIZES:
        raise UserError(
            f"{where} describes {depth} blocks of {heads} heads of {head} with patches of {patch}; "
            f"choose from {', '.join(DiT_models)}"
        )
    if out not in (channels, 2 * channels) or size % patch:
        raise UserError(
            f"{where} has in_channels {channels}, out_channels {out}, sample_size {size} and patch_size {patch}; a DiT puts out "
            "as many channels as it takes in, or twice as many, and is cut into whole patches"
        )
    return {
        "model": f"DiT-{found}/{patch}",
        "input_size": size,
        "num_classes": classes,
        "in_channels": channels,
        "learn_sigma": out == 2 * channels,
    }


def config_of(model: str, input_size: int, num_classes: int, in_channels: int, learn_sigma: bool) -> dict:
    """diffusers' configuration of a network of ours; the other way round than `shape_of`."""
    size, patch = model.removeprefix("DiT-").split("/")
    hidden, depth, heads = DIT_SIZES[size]
    out = 2 * in_channels if learn_sigma else in_channels
    numbers = (heads, hidden // heads, depth, int(patch), in_channels, out, input_size, num_classes)
    return {
        "_class_name": CLASSES[0],
        "_diffusers_version": version("diffusers"),
        **CLASS_OF,
        **dict(zip(SHAPE, numbers, strict=True)),
        "dropout": 0.0,
    }
