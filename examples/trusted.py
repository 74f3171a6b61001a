"""The common part of generators whose networks are published as pickles: reading them, which runs the code in them, their labels,
and autoencoders of their latents.
"""

import functools
import pickle
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fiducial import file_sha256
from fiducial.models.decoders.affine import Affine
from fiducial.models.decoders.table import Decoder, decoder_of


@functools.cache
def network(path: str, sha256: str, code: str, device: torch.device) -> nn.Module:
    """The network in a pickle of EDM2's kind, a dictionary with the averaged network as `ema`, in evaluation mode on the device.

    Whoever made the file decides what runs when it is read. So it is read only where its hash is that of a file which is trusted.

    Args:
        sha256: of the file, 64 hexadecimal digits.
        code: folder of the maker's repository, from which the file imports; empty where that can be imported as it is.

    Raises:
        ValueError: if the file has another hash, or holds no such network.
    """
    if (found := file_sha256(Path(path))) != str(sha256).lower():
        raise ValueError(
            f"{path} is a pickle, and reading it runs the code in it; where you trust its maker, give the SHA-256 that they tell "
            f"(the file's is {found}), not {sha256!r}"
        )
    if code and code not in sys.path:
        sys.path.insert(0, code)
    with open(path, "rb") as file:
        content = pickle.load(file)
    averaged = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(averaged, nn.Module):
        raise ValueError(f"{path} holds no network as `ema`")
    return averaged.eval().requires_grad_(False).to(device)


def one_hot(labels: Tensor, classes: int) -> Tensor | None:
    """Labels (n,) as such networks take them, (n, classes) float32; None for one that takes none.

    Raises:
        ValueError: if there are labels beyond its classes.
    """
    if not classes:
        return None
    if (most := int(labels.max())) >= classes:
        raise ValueError(f"label {most}, and the network has {classes} classes; give --num-classes {classes}")
    return F.one_hot(labels, classes).float()


@functools.cache
def codec(vae: str, mean: tuple[float, ...], std: tuple[float, ...], final_std: float, device: torch.device) -> Decoder:
    """The autoencoder that `--vae` would say, loaded, for latents (z - mean) / std * final_std of its own z, by channel."""
    row = decoder_of(vae)
    found = row.open(row.find(vae, None))
    centre, spread = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
    found.affine = Affine(final_std / spread, centre)
    return found.load(device)
