"""Stand-ins for published files: networks and codecs of the real sizes and file forms with random weights, put where the caches
have the published ones. What is drawn with them means nothing.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from test_models_families import in_files, raev2_files
from test_models_single_file import F8D4, F16D32, ldm_weights

from fiducial.models.checkpoints import catalogue, hub
from fiducial.models.checkpoints.places import HubFile, Place
from fiducial.models.decoders import vit
from fiducial.models.decoders.autoencoder import NAMED_VAES
from fiducial.models.networks.table import spec_of

REVISION = "0123abcd"
WIDTH = 128  # of the autoencoders' first level
SD_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 256,
}
RAE_DECODER = {"channels": 768, "tokens": 256, "width": 1152, "hidden": 4608, "depth": 28, "patch": 16}


def filled(network: torch.nn.Module, std: float = 0.02) -> dict[str, torch.Tensor]:
    """Random weights and buffers by the names and shapes of a network on the meta device; scales of norms are about 1."""
    random, state = torch.Generator().manual_seed(0), {}
    for name, value in network.state_dict().items():
        state[name] = torch.empty(value.shape).normal_(0, std, generator=random)
        if value.ndim == 1 and "norm" in name and name.endswith("weight"):
            state[name] += 1
    return state


def network(model: str, image_size: int, factor: int = 8, channels: int = 4, **options: object) -> dict[str, torch.Tensor]:
    """Weights of a model of 1000 classes under its own names, for latents of `channels` and 1 / `factor` of the image's size."""
    shape = {"input_size": image_size // factor, "in_channels": channels, "num_classes": 1000}
    return filled(_on_meta(lambda: spec_of(model).build[model](**shape, **options)))


def trained(state: dict, **more: object) -> dict:
    """As REPA's training leaves it: `model` and `ema`, here of the same tensors, which a file holds once."""
    return {"model": state, "ema": state, "opt": {"state": {}}, "args": argparse.Namespace(seed=0), "steps": 400_000, **more}


def projected(state: dict) -> dict:
    """With the projectors that only REPA's training needs."""
    return state | {
        f"projectors.0.{n}.{kind}": torch.ones(4, 4)[0 if kind == "bias" else ...] for n in (0, 2, 4) for kind in KINDS
    }


KINDS = ("weight", "bias")


def normalised(state: dict, channels: int) -> dict:
    """With the BatchNorm that REPA-E's networks have."""
    running = {"bn.running_mean": torch.zeros(channels), "bn.running_var": torch.full((channels,), 4.0)}
    return projected(state) | running | {"bn.num_batches_tracked": torch.tensor(400_000)}


def averaged(state: dict) -> dict:
    """JiT's file, whose second average is another."""
    named = {f"net.{name}": value for name, value in state.items()}
    other = named | {"net.x_embedder.proj1.weight": 2 * named["net.x_embedder.proj1.weight"]}
    return {"model": other, "model_ema1": named, "model_ema2": other, "optimizer": {}, "epoch": 599, "args": argparse.Namespace()}


def lightning(state: dict) -> dict:
    """DDT's file."""
    both = {f"{prefix}.{name}": value for prefix in ("denoiser", "ema_denoiser") for name, value in state.items()}
    return {"state_dict": both, "epoch": 325, "global_step": 1_600_000, "pytorch-lightning_version": "2.5.0"}


def _f16d32() -> dict:
    return ldm_weights(*F16D32, width=WIDTH)


def _each(channels: int, *sides: int) -> torch.Tensor:
    return torch.rand(channels, *sides, generator=torch.Generator().manual_seed(1)) + 0.5


FILES: dict[str, Callable[[], dict]] = {
    "dit-xl-2-256": lambda: network("DiT-XL/2", 256),
    "dit-xl-2-512": lambda: network("DiT-XL/2", 512),
    "sit-xl-2-256": lambda: network("SiT-XL/2", 256, learn_sigma=True),
    "repa-xl-2-256": lambda: projected(network("REPA-XL/2", 256)),
    "repa-e-sdvae-80-epochs": lambda: trained(
        normalised(network("REPA-XL/2", 256), 4), vae=dict(ldm_weights(*F8D4, width=WIDTH))
    ),
    "repa-e-vavae": lambda: trained(projected(network("REPA-XL/1", 256, 16, 32))),
    "e2e-vavae": lambda: dict(_f16d32()),
    "e2e-vavae-latent-stats": lambda: {"latents_scale": _each(32, 1, 1)[None], "latents_bias": _each(32, 1, 1)[None]},
    "va-vae": lambda: {"state_dict": dict(_f16d32()), "epoch": 50},
    "va-vae-latent-stats": lambda: {"mean": _each(32, 1, 1)[None], "std": _each(32, 1, 1)[None]},
    "lightningdit-xl-1-256-800-epochs": lambda: {"ema": network("LightningDiT-XL/1", 256, 16, 32)},
    "lightningdit-xl-1-256-64-epochs": lambda: {"ema": network("LightningDiT-XL/1", 256, 16, 32)},
    **{f"jit-{size.lower()}-16-256": lambda size=size: averaged(network(f"JiT-{size}/16", 256, 1, 3)) for size in "BLH"},
    **{f"ddt-xl-2-{size}": lambda size=size: lightning(network("DDT-XL/2", size)) for size in (256, 512)},
    "rae-xl-256": lambda: network("RAE-XL/1", 256, 16, 768),
    "rae-s-256-14-epochs": lambda: network("RAE-S/1", 256, 16, 768),
    "rae-decoder-dinov2-b": lambda: filled(_on_meta(lambda: vit.Network(**RAE_DECODER))),
    "rae-latent-stats-dinov2-b": lambda: {"mean": _each(768, 16, 16), "var": _each(768, 16, 16)},
    "raev2-xl-256": lambda: trained(raev2_files(network("RAEv2-XL/1", 256, 16, 1024))),
    "raev2-decoder-dinov3-l-k7": lambda: filled(_on_meta(lambda: vit.Network(**RAE_DECODER | {"channels": 1024}))),
    "raev2-latent-stats-dinov3-l-k7": lambda: {"mean": _each(1024, 16, 16), "var": _each(1024, 16, 16)},
    "meanflow-xl-2-256": lambda: trained(projected(network("MeanFlow-XL/2", 256))),
    **{
        f"imf-{size.lower()}-2-256": lambda size=size: {
            f"net.{name}": value for name, value in in_files(network(f"iMF-{size}/2", 256)).items()
        }
        for size in ("B", "L", "XL")
    },
}


def _on_meta(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    with torch.device("meta"):
        return build()


def snapshot(cache: Path, repository: str) -> Path:
    """The folder of a repository in the hub client's cache, made as the client makes it."""
    kept = hub.kept_at(repository, cache)
    (kept / "refs").mkdir(parents=True, exist_ok=True)
    (kept / "refs" / "main").write_text(REVISION)
    return kept / "snapshots" / REVISION


def put(place: Place, cache: Path) -> Path:
    """Write the stand-in for a published file where the cache has it, unless it is there."""
    path = snapshot(cache, place.repository) / place.file if isinstance(place, HubFile) else place.path(cache)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(FILES[place.name](), path)
    return path


@torch.no_grad()
def put_autoencoder(name: str, cache: Path) -> Path:
    """The same for `ema` and `mse`, in diffusers' form."""
    folder = snapshot(cache, NAMED_VAES[name])
    if not folder.exists():
        torch.manual_seed(0)
        AutoencoderKL(**SD_VAE).save_pretrained(folder)
    return folder


def put_all(preset: str, cache: Path) -> dict[str, Path]:
    """All files of a preset by the options that take them; other checkpoints in the cache are removed, as they are large."""
    published = catalogue.CATALOGUE[preset]
    for one in catalogue.CATALOGUE.values():
        if one.checkpoint != published.checkpoint and one.checkpoint.is_there(cache):
            os.unlink(one.checkpoint.path(cache))
    if published.vae in NAMED_VAES:
        put_autoencoder(published.vae, cache)
    return {option: put(place, cache) for option, place in published.places().items()}
