"""Files of weights: tensors by their names, without running what a file says."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fiducial import UserError, no_file


def read_state(name: str, path: Path) -> dict[str, Tensor]:
    """The tensors by their names in a file of torch's or of safetensors, in float32 where they are floats.

    Args:
        name: what `--weights` calls them.

    Raises:
        UserError: if it is missing, damaged, no such file, or not finite.
    """
    if reason := no_file(path):
        raise UserError(f"--weights {name}={path}: {reason}")
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"--weights {name}={path}: not a whole file of weights ({type(error).__name__})") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"--weights {name}={path}: holds no tensors by name")
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def require_finite(name: str, path: Path, state: dict[str, Tensor]) -> None:
    """Raise UserError if weights that are taken hold NaN or infinity."""
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise UserError(f"--weights {name}={path}: holds NaN or infinity")
