"""Codecs whose weights are one file, as their makers publish them: the file read, and found in what it is nested in."""

import hashlib
import json
from functools import cached_property, lru_cache
from pathlib import Path

from torch import Tensor, nn

from fiducial import UserError, file_sha256, quoted
from fiducial.models.checkpoints.checkpoint import read_safetensors
from fiducial.models.checkpoints.unpickling import require_stored, unpickle
from fiducial.models.decoders.affine import Affine

State = dict[str, Tensor]
NESTS = ("vae", "state_dict", "model", "ema")  # under which a file has the weights, one within another too
MARK = "decoder."  # what names in such a file begin with, or with what comes after it


def state_in(path: Path) -> State:
    """The weights in a file, memory-mapped; no code of it runs.

    Raises:
        UserError: if it is damaged, or holds no tensors by name.
    """
    found = path.stat()
    try:
        return _read(path, found.st_size, found.st_mtime_ns)
    except UserError as error:
        raise UserError(f"--vae: {error}") from error


@lru_cache(maxsize=1)
def _read(path: Path, *_: int) -> State:
    content: object = read_safetensors(path) if path.suffix == ".safetensors" else unpickle(path)
    for _ in range(3):
        if not isinstance(content, dict) or any(str(name).startswith(MARK) for name in content):
            break
        if (nest := next((name for name in NESTS if isinstance(content.get(name), dict)), None)) is None:
            break
        content = content[nest]
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)} if isinstance(content, dict) else {}
    if not state:
        raise UserError(f"{path} holds no tensors by name, neither bare nor under {', '.join(NESTS)}")
    require_stored(state, path)
    return state


class SingleFile(nn.Module):
    """The common part of codecs of one file. A kind of it says in `parts` what its network is.

    Args:
        path: of the file.
        shape: what the network is besides its weights, for the identity.
    """

    needs_statistics = True  # such a file does not say by what latents are normalised

    def __init__(self, path: Path, state: State, shape: dict):
        nn.Module.__init__(self)  # whatever else a kind of it is
        self.folder, self._shape, self.affine = path, shape, Affine()
        if odd := next((name for name, value in state.items() if not value.is_floating_point()), None):
            raise UserError(f"--vae {path}: {quoted(odd)} is of no floating point dtype")

    @cached_property
    def sha256(self) -> str:
        """Of the file."""
        return file_sha256(self.folder)

    def identity(self) -> dict[str, str | float]:
        network = json.dumps(self._shape, sort_keys=True)
        return {"vae_sha256": self.sha256, "vae_config_sha256": hashlib.sha256(network.encode()).hexdigest()}

    def parts(self) -> tuple[nn.Module, State]:
        """Its network, on no device, and the weights of the file under that one's names."""
        raise NotImplementedError

    def unlike(self) -> dict[str, list[str]]:
        """The names of weights that are missing, that no network here has, and of another shape than in it."""
        network, state = self.parts()
        wanted = shapes_of(network.state_dict())
        given = shapes_of(state)
        return {
            "missing": sorted(wanted.keys() - given.keys()),
            "unexpected": sorted(given.keys() - wanted.keys()),
            "of_another_shape": sorted(name for name in wanted.keys() & given.keys() if wanted[name] != given[name]),
        }

    def filled(self) -> nn.Module:
        """The network with copies of the file's weights as float32, in evaluation mode.

        Raises:
            UserError: if names or shapes are not its own.
        """
        network, state = self.parts()
        given = shapes_of(state)
        if unlike := sorted(name for names in self.unlike().values() for name in names):
            name = unlike[0]
            there = f"has the shape {list(given[name])}" if name in given else "is missing"
            raise UserError(f"--vae {self.folder}: {len(unlike)} weights are not as its own others want them; {name} {there}")
        network.load_state_dict({name: value.float().clone() for name, value in state.items()}, assign=True)
        return network.eval().requires_grad_(False)


def shapes_of(state: State) -> dict[str, tuple[int, ...]]:
    """The shapes of weights by name."""
    return {name: tuple(value.shape) for name, value in state.items()}
