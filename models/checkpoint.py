"""DiT weights from files nobody has to trust: official `.pt`, training checkpoints (`model, ema, opt, args`), safetensors.

Pickles are read with `weights_only=True`, and everything is memory-mapped: a check costs no more than the header.
"""

import argparse
import math
import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distributed import UserError
from models.dit import DIT_SIZES, DiT, DiT_models

State = dict[str, Tensor]
CLASS_TO_IDX = "class_to_idx"  # torchvision's name for {"name": index}


def read_safetensors(path: Path) -> State:
    """The tensors of a safetensors file, memory-mapped.

    Raises:
        UserError: if the file is not whole.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not iterable in older versions)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error})") from error


def read_weights(path: Path) -> tuple[State, str]:
    """The network's weights in `path`, memory-mapped, and which they are: `ema`, `model`, or `plain` for an unnested file.

    A training checkpoint gives its `ema`, the weights that are published.

    Raises:
        UserError: if there is no such file, or it is damaged, or it holds anything but weights.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        return read_safetensors(path), "plain"
    try:
        content = _unpickle(path)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than weights, or is damaged, and was not unpickled ({_reason(error)})") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f"{path} is not whole in torch's zip format ({_reason(error)}); if it is older, re-save it with torch.save"
        ) from error
    kind = next((name for name in ("ema", "model") if isinstance(content, dict) and isinstance(content.get(name), dict)), "plain")
    state = content if kind == "plain" else content[kind]
    if not (isinstance(state, dict) and state and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())):
        raise UserError(f"{path} holds no state dict: expected tensors by name, or a training checkpoint with `ema` or `model`")
    return state, kind


def _unpickle(path: Path) -> object:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def read_class_to_idx(path: Path) -> object | None:
    """The class mapping that a checkpoint carries as `class_to_idx`, unchecked; None if it has none.

    It stands at the top of a training checkpoint or among its `args`, or in the metadata of a safetensors file, as JSON. The
    checkpoint is one that `read_weights` has accepted.
    """
    if not path.is_file():  # a folder's files have no place for it
        return None
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(CLASS_TO_IDX)
    content = _unpickle(path)
    if not isinstance(content, dict):
        return None
    return content.get(CLASS_TO_IDX, getattr(content.get("args"), CLASS_TO_IDX, None))


def _reason(error: Exception) -> str:
    """The first line of an exception of torch's, without the advice that follows it."""
    return re.split(r"\n|\. ", str(error).strip() or type(error).__name__)[0]


def check(state: State, path: Path, model: str, num_classes: int, input_size: int, in_channels: int) -> None:
    """Holds the weights against the network they are meant for; only shapes are read.

    Raises:
        UserError: naming the file, what was expected and what was found.
    """
    expected = {"model": model, "num_classes": num_classes, "input_size": input_size, "in_channels": in_channels}
    found = describe(state, path)
    if wrong := [name for name in expected if expected[name] != found[name]]:
        said = ", ".join(f"{name} {expected[name]}" for name in wrong)
        seen = ", ".join(f"{name} {found[name]}" for name in wrong)
        remedy = f"; give --num-classes {found['num_classes']}" if "num_classes" in wrong else ""
        raise UserError(f"{path}: expected {said}; found {seen}{remedy}")
    with torch.device("meta"):
        network = DiT_models[model](input_size=input_size, num_classes=num_classes, in_channels=in_channels)
    wanted = network.state_dict()
    for difference, keys in (("lacks", wanted.keys() - state.keys()), ("has the surplus", state.keys() - wanted.keys())):
        if keys:
            raise UserError(
                f"{path} {difference} {len(keys)} of the keys of {model} with {len(wanted)} keys, first {min(keys)!r}"
            )
    for key, tensor in wanted.items():
        found = state[key]
        if found.shape != tensor.shape or not found.is_floating_point() or found.layout != torch.strided:
            raise UserError(
                f"{path}: {key} expected as dense floating point {tuple(tensor.shape)}; "
                f"found {found.layout} {found.dtype} {tuple(found.shape)}"
            )


def describe(state: State, path: Path) -> dict[str, str | int]:
    """What network some weights are of: `model`, `num_classes`, `input_size`, `in_channels`.

    Raises:
        UserError: if they are not of a DiT.
    """
    for key, dimensions in (("x_embedder.proj.weight", 4), ("y_embedder.embedding_table.weight", 2), ("pos_embed", 3)):
        if key not in state or state[key].dim() != dimensions:
            found = f"{tuple(state[key].shape)}" if key in state else f"none among its {len(state)} keys"
            raise UserError(f"{path} is not a DiT checkpoint: expected a tensor {key} of {dimensions} dimensions, found {found}")
    hidden, channels, patch, _ = state["x_embedder.proj.weight"].shape
    rows, _ = state["y_embedder.embedding_table.weight"].shape
    _, tokens, _ = state["pos_embed"].shape
    depth = len({match[1] for key in state if (match := re.match(r"blocks\.(\d+)\.", key))})
    sizes = (size for size, (width, layers, _) in DIT_SIZES.items() if (width, layers) == (hidden, depth))
    size = next(sizes, f"({hidden} wide, {depth} deep)")
    return {
        "model": f"DiT-{size}/{patch}",
        "num_classes": rows - 1,
        "input_size": math.isqrt(tokens) * patch,
        "in_channels": channels,
    }


def load_dit(path: Path, model: str, num_classes: int, input_size: int, in_channels: int, device: torch.device) -> DiT:
    """The network of a checked file (see `check`), its weights copied to `device` as float32, in evaluation mode."""
    state, _ = read_weights(path)
    with torch.device("meta"):
        network = DiT_models[model](input_size=input_size, num_classes=num_classes, in_channels=in_channels)
    network.to_empty(device=device).load_state_dict(state)
    return network.eval().requires_grad_(False)
