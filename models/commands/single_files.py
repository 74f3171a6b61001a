"""Facts of files beside a checkpoint: codecs that are one file, and statistics of latents."""

import shlex
from collections import Counter
from pathlib import Path

import torch

from fiducial import UserError, file_sha256
from fiducial.models.checkpoints import candidates
from fiducial.models.checkpoints.checkpoint import read_safetensors
from fiducial.models.checkpoints.unpickling import unpickle
from fiducial.models.decoders import affine, ldm, vit
from fiducial.models.decoders.single_file import state_in

NAMED = 5  # names of weights that are printed
STATISTICS_IN = (".pt", ".pth", ".bin", ".npz", ".json", ".safetensors")


def inspect(path: Path) -> dict[str, str | int | None] | None:
    """The facts of a codec's file or one of statistics; None where it is neither, or holds a network beside a codec.

    Raises:
        UserError: if it is a codec's, but no whole one.
    """
    return statistics_in(path) or codec_in(path)


def statistics_in(path: Path) -> dict[str, str | int | None] | None:
    """The facts of a file of latents' statistics, None where it is none."""
    if path.suffix not in STATISTICS_IN:
        return None
    try:
        found = affine.read(str(path))
    except UserError:
        return None
    parts = [torch.as_tensor(part, dtype=torch.float64) for part in (found.scale, found.shift)]
    _, channels, *sides = torch.broadcast_tensors(*(part.view(1, 1, 1, 1) if part.ndim == 0 else part for part in parts))[0].shape
    each = "each element" if max(sides) > 1 else "each channel" if channels > 1 else "all"
    scale, shift = (f"{part.min().item():.4g} to {part.max().item():.4g}" for part in parts)
    return {
        "path": str(path),
        "family": f"statistics of latents, of {each}",
        "latents": " x ".join(map(str, (channels, *sides)))
        if max(sides) > 1
        else f"{channels} channels"
        if channels > 1
        else None,
        "scale": scale,
        "shift": shift,
        "sha256": file_sha256(path),
        "option": shlex.join(["--latent-stats", str(path)]),
    }


def codec_in(path: Path) -> dict[str, str | int | None] | None:
    """The facts of a codec that is one file, None where it is none."""
    try:
        state = state_in(path)
        content = read_safetensors(path) if path.suffix == ".safetensors" else unpickle(path)
    except UserError:
        return None  # which whoever reads it as a checkpoint says
    is_vit = vit.MARK in state
    if not is_vit and "decoder.conv_in.weight" not in state:
        return None
    if isinstance(content, dict) and candidates.search(content, path).networks:
        return None
    codec = vit.ViTDecoder(path) if is_vit else ldm.LDMAutoencoder(path)
    unlike = {name: in_words(names) for name, names in codec.unlike().items()}
    size = getattr(codec, "only_size", None)
    dtypes = Counter(str(value.dtype).removeprefix("torch.") for value in state.values())
    return {
        "path": str(path),
        "family": "RAE's decoder, a ViT-MAE's" if is_vit else "AutoencoderKL in latent-diffusion's form",
        "latent_channels": codec.latent_channels,
        "factor": codec.factor,
        "latents": f"{codec.latent_channels} x {size // codec.factor} x {size // codec.factor}" if size else None,
        "image_size": size,
        **unlike,
        "normalised": "by what it does not say; give --latent-stats, scale=1 where by nothing",
        "dtype": ", ".join(dtypes),
        "parameters": sum(value.numel() for value in state.values()),
        "sha256": codec.sha256,
        "refused": "weights are not as its own others want them" if any(unlike.values()) else None,
        "option": shlex.join(["--vae", str(path)]),
    }


def in_words(names: list[str]) -> str | None:
    """How many, and the first of them; None for none."""
    more = ", ..." if len(names) > NAMED else ""
    return f"{len(names)}: {', '.join(names[:NAMED])}{more}" if names else None
