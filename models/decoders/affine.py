"""Between the latents that a diffusion model draws and those that a codec decodes: one scale for all, or each channel's or
element's own, as a codec's configuration, a file or a command line says.
"""

import hashlib
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fiducial import UserError, no_file, one_line, quoted, read_json
from fiducial.models.checkpoints.checkpoint import read_safetensors
from fiducial.models.checkpoints.unpickling import unpickle
from fiducial.models.latent import LatentShape

EPSILON = 1e-5  # added to a variance in RAE's `stat.pt`
MOST_BYTES = 1 << 26  # of a file of statistics: two values for each element of 768 x 64 x 64 latents are 25 MB
OPTION = "--latent-stats"
# What the parts are called in files: LightningDiT's `latents_stats.pt`, RAE's `stat.pt`, REPA-E's, diffusers' configurations.
NAMES = {
    **{name: name for name in ("mean", "std", "var", "scale", "shift")},
    **{"latents_mean": "mean", "latents_std": "std", "latents_scale": "scale", "latents_bias": "shift", "bias": "shift"},
}
FORMS = ({"mean", "std"}, {"mean", "var"}, {"scale", "shift"}, {"scale"})


@dataclass(frozen=True, eq=False)
class Affine:
    """A diffusion model's latents are x = (z - shift) * scale of a codec's own z.

    Both are numbers, or float64 tensors that broadcast to (N, C, h, w).
    """

    scale: Tensor | float = 1.0
    shift: Tensor | float = 0.0

    def undo(self, latents: Tensor) -> Tensor:
        """The codec's own latents (N, C, h, w) of a diffusion model's, of the same dtype."""
        scale, shift = (part.to(latents) if isinstance(part, Tensor) else part for part in (self.scale, self.shift))
        return latents / scale + shift

    def apply(self, latents: Tensor) -> Tensor:
        """A diffusion model's latents (N, C, h, w) of a codec's own, of the same dtype: what `undo` undoes."""
        scale, shift = (part.to(latents) if isinstance(part, Tensor) else part for part in (self.scale, self.shift))
        return (latents - shift) * scale

    @property
    def sha256(self) -> str:
        """Of the values, whatever form they were given in."""
        digest = hashlib.sha256()
        for part in (self.scale, self.shift):
            values = torch.as_tensor(part, dtype=torch.float64).cpu()
            digest.update(f"{list(_spread(values).shape)}".encode() + values.contiguous().numpy().astype("<f8").tobytes())
        return digest.hexdigest()

    def check(self, shape: LatentShape, said: str) -> None:
        """Raise UserError if it is of other latents than `shape`; `said` begins the sentence."""
        for part in (self.scale, self.shift):
            _, channels, height, width = _spread(torch.as_tensor(part)).shape
            fits = channels in (1, shape.channels) and height in (1, shape.size) and width in (1, shape.size)
            if not fits:
                raise UserError(
                    f"{said} is of {channels} x {height} x {width} latents, and these are of {shape.channels} x {shape.size} x "
                    f"{shape.size}; give the statistics that the model was trained with"
                )


def _spread(values: Tensor) -> Tensor:
    """One number, a number a channel (C,), or one an element (C, h, w), as it broadcasts: with a leading 1 too.

    Raises:
        ValueError: if it is none of these.
    """
    if values.ndim in (0, 1):
        return values.reshape(1, -1, 1, 1)
    if values.ndim == 3:
        return values[None]
    if values.ndim == 4 and len(values) == 1:
        return values
    raise ValueError(f"a shape of {list(values.shape)}, which is neither (C,), (C, h, w) nor (1, C, h, w)")


def from_parts(parts: Mapping[str, Tensor], multiplier: float = 1.0) -> Affine:
    """The map of statistics by the names of `NAMES`' values: x = (z - mean) / std * multiplier, with RAE's epsilon in a variance,
    or (z - shift) * scale * multiplier.

    Raises:
        ValueError: if they are not of one of `FORMS`, or no numbers that a latent can be divided by.
    """
    if set(parts) not in FORMS:
        raise ValueError(f"they are {', '.join(sorted(parts)) or 'none'}, not mean and std, mean and var, or scale and shift")
    values = {name: _spread(torch.as_tensor(part, dtype=torch.float64)) for name, part in parts.items()}
    if bad := next((name for name, part in values.items() if not part.isfinite().all()), None):
        raise ValueError(f"{bad} holds NaN or infinity")
    if bad := next((name for name in ("std", "var") if name in values and not (values[name] >= 0).all()), None):
        raise ValueError(f"{bad} holds negative numbers")
    deviation = values.get("std")
    if "var" in values:
        deviation = (values["var"] + EPSILON).sqrt()
    scale = multiplier * (values["scale"] if deviation is None else 1 / deviation)
    if not (scale.isfinite().all() and (scale != 0).all()):
        raise ValueError("a latent would be divided by zero, or be infinite")
    shift = values.get("mean", values.get("shift", torch.zeros(1, 1, 1, 1, dtype=torch.float64)))
    return Affine(scale, shift)


def read(given: str, multiplier: float = 1.0) -> Affine:
    """The map that `--latent-stats` says: a file, or NAME=NUMBERS,... such as mean=0.1:0.2,std=1.5:2 or scale=0.13025.

    Raises:
        UserError: in one sentence, if it is neither.
    """
    if "=" in given and not Path(given).exists():
        return _read_text(given, multiplier)
    path = Path(given)
    if reason := no_file(path):
        raise UserError(f"{OPTION} {given}: {reason}")
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{OPTION} {given}: has {path.stat().st_size:,} bytes, more than statistics of latents can have")
    try:
        return from_parts(_tensors(_content(path)), multiplier)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise UserError(f"{OPTION} {given}: holds no statistics of latents ({one_line(error)})") from error


def _read_text(given: str, multiplier: float) -> Affine:
    parts: dict[str, Tensor] = {}
    try:
        for entry in given.split(","):
            name, _, numbers = entry.partition("=")
            if (known := NAMES.get(name.strip())) is None or known in parts:
                raise ValueError(f"{entry!r}; names are mean and std, mean and var, or scale and shift, each once")
            parts[known] = torch.tensor([float(number) for number in numbers.split(":")], dtype=torch.float64)
        lengths = {len(part) for part in parts.values()} - {1}
        if len(lengths) > 1:
            raise ValueError(f"of {' and '.join(map(str, sorted(lengths)))} channels")
        return from_parts(parts, multiplier)
    except ValueError as error:
        raise UserError(
            f"{OPTION} {given}: no such file, and not NAME=NUMBERS,... such as mean=0.1:0.2,std=1.5:2 ({one_line(error)})"
        ) from error


def _content(path: Path) -> Mapping:
    """The content of a file by name; no code of it runs."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix == ".json":
        return read_json(path, MOST_BYTES)
    if path.suffix == ".npz":
        return _arrays(path)
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        return unpickle(path)
    raise ValueError(f"its name ends in {quoted(path.suffix)}; give .pt, .safetensors, .npz or .json")


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if NAMES.get(name)}
    except (OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"it is damaged: {one_line(error)}") from error


def _tensors(content: object) -> dict[str, Tensor]:
    """The statistics among what a file holds, by their names here; what else is there is left.

    Raises:
        ValueError: if there are none, or one twice.
    """
    if not isinstance(content, Mapping):
        raise ValueError("it is no mapping of names")
    found: dict[str, Tensor] = {}
    for name, value in content.items():
        if (known := NAMES.get(name)) is None or value is None:
            continue
        if known in found:
            raise ValueError(f"it has {known} under two names")
        if not isinstance(value, Tensor | np.ndarray | list | int | float) or isinstance(value, bool):
            raise ValueError(f"its {name} is {re.sub('[<>]', '', type(value).__name__)}, no numbers")
        found[known] = torch.as_tensor(value, dtype=torch.float64)
    return found
