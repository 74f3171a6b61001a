"""Checkpoints and autoencoders in every form, written as their makers write them: diffusers by its own `save_pretrained`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import DIGITS
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from safetensors.torch import load_file, save_file

from fiducial.models import DiT
from fiducial.models.checkpoints.diffusers_form import to_diffusers

State = dict[str, torch.Tensor]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def diffusers_twin(network: DiT, norm_eps: float = 1e-5, frequency_shift: int = 1) -> DiTTransformer2DModel:
    """The same network in diffusers: as it comes, or with 1e-6 and 0 as the official network is."""
    heads, hidden = network.blocks[0].attn.num_heads, network.pos_embed.shape[2]
    twin = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=hidden // heads,
        in_channels=network.in_channels,
        out_channels=network.out_channels,
        num_layers=len(network.blocks),
        sample_size=int(network.pos_embed.shape[1] ** 0.5) * network.patch_size,
        patch_size=network.patch_size,
        num_embeds_ada_norm=network.null_label,
        norm_eps=norm_eps,
    )
    twin.load_state_dict(to_diffusers(network.state_dict()), strict=True)
    for block in twin.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = frequency_shift
    return twin.eval()


def training_checkpoint(state: State, **changes) -> dict:
    """As train.py of DiT leaves it: the raw weights are not the ones that are published."""
    raw = {key: value + 1 for key, value in state.items()}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict()
    arguments = argparse.Namespace(model="DiT-XS/8", num_classes=10, global_seed=0, ckpt=None)
    return {"model": raw, "ema": state, "opt": optimizer, "args": arguments} | changes


def wrapped(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def _official(network: DiT, folder: Path) -> Path:
    torch.save(network.state_dict(), folder / "DiT.pt")
    return folder / "DiT.pt"


def _training(network: DiT, folder: Path) -> Path:
    torch.save(training_checkpoint(network.state_dict()), folder / "0400000.pt")
    return folder / "0400000.pt"


def _compiled_ddp(network: DiT, folder: Path) -> Path:
    state = wrapped(network.state_dict(), "module._orig_mod.")
    torch.save(training_checkpoint(state), folder / "0500000.pt")
    return folder / "0500000.pt"


def _nested(network: DiT, folder: Path) -> Path:
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, folder / "last.ckpt")
    return folder / "last.ckpt"


def _safetensors(network: DiT, folder: Path) -> Path:
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def _transformer(network: DiT, folder: Path) -> Path:
    diffusers_twin(network).save_pretrained(folder / "transformer-alone")
    return folder / "transformer-alone"


def _pickled_transformer(network: DiT, folder: Path) -> Path:
    diffusers_twin(network).save_pretrained(folder / "bin", safe_serialization=False)
    return folder / "bin"


def _sharded_transformer(network: DiT, folder: Path) -> Path:
    diffusers_twin(network).save_pretrained(folder / "sharded", max_shard_size="4MB")
    assert len(list((folder / "sharded").glob("*.safetensors"))) > 2
    return folder / "sharded"


def _pipeline(network: DiT, folder: Path) -> Path:
    vae = AutoencoderKL.from_pretrained(DIGITS / "vae", local_files_only=True)
    DiTPipeline(diffusers_twin(network), vae, DDIMScheduler()).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


CHECKPOINTS: dict[str, Callable[[DiT, Path], Path]] = {
    "official .pt": _official,
    "training checkpoint": _training,
    "compiled under DDP": _compiled_ddp,
    "state_dict nested": _nested,
    "safetensors": _safetensors,
    "diffusers": _transformer,
    "diffusers .bin": _pickled_transformer,
    "diffusers sharded": _sharded_transformer,
    "DiTPipeline": _pipeline,
}


def _kl(folder: Path) -> Path:
    channels = (8, 8, 16, 16)
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    options = {"norm_num_groups": 4, "scaling_factor": 0.36, "shift_factor": 0.12}
    AutoencoderKL(block_out_channels=channels, **levels, **options).save_pretrained(folder / "kl")
    return folder / "kl"


def _tiny(folder: Path) -> Path:
    AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).save_pretrained(folder / "taesd")
    return folder / "taesd"


AUTOENCODERS: dict[str, Callable[[Path], Path]] = {"AutoencoderKL": _kl, "AutoencoderTiny": _tiny}


def weights_file(path: Path) -> Path:
    """The file, or the first, that has the weights of what was written at `path`."""
    if path.is_file():
        return path
    inner = path / "transformer"
    return min(file for file in (inner if inner.is_dir() else path).iterdir() if file.suffix in (".safetensors", ".bin"))


def config_file(path: Path) -> Path:
    inner = path / "transformer"
    return (inner if inner.is_dir() else path) / "config.json"


def change_weights(path: Path, change: Callable[[State], object]) -> None:
    """Writes the weights anew after `change`, whatever their form; through another file, because the old one may be mapped."""
    file = weights_file(path)
    new = file.with_suffix(".new")
    if file.suffix == ".safetensors":
        state = load_file(file)
        change(state)
        save_file(state, new, metadata={"format": "pt"})
    else:
        content = torch.load(file, weights_only=False)
        change(next((content[name] for name in ("ema", "state_dict") if name in content), content))
        torch.save(content, new)
    new.replace(file)


def change_config(path: Path, **changes) -> None:
    """Sets fields of the configuration; None removes one."""
    config = json.loads(config_file(path).read_text()) | changes
    config_file(path).write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
