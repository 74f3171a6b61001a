"""Autoencoders in the form of latent-diffusion's code (KL f8d4, f16d32 and other depths), as VA-VAE and REPA-E publish theirs:
their decoder, and their encoder where it is wanted, under the names of diffusers' `AutoencoderKL`, which is the same network.
"""

import re
from pathlib import Path

import torch
from torch import nn

from fiducial import UserError
from fiducial.models.decoders.autoencoder import Autoencoder
from fiducial.models.decoders.single_file import SingleFile, State, state_in

NORM_GROUPS = 32
USUAL_SIZE = 256  # of the images that it was trained on, by which --vae-tiling cuts
# Names of parts, theirs and diffusers'; `N` is the level from the latents on, where theirs counts from the image.
PARTS = (
    (r"decoder\.up\.(\d+)\.block\.(\d+)\.", r"decoder.up_blocks.N.resnets.\2."),
    (r"decoder\.up\.(\d+)\.attn\.(\d+)\.", r"decoder.up_blocks.N.attentions.\2."),
    (r"decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.N.upsamplers.0."),
    (r"decoder\.mid\.block_1\.", "decoder.mid_block.resnets.0."),
    (r"decoder\.mid\.block_2\.", "decoder.mid_block.resnets.1."),
    (r"decoder\.mid\.attn_1\.", "decoder.mid_block.attentions.0."),
    (r"decoder\.norm_out\.", "decoder.conv_norm_out."),
    (r"encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"encoder\.down\.(\d+)\.attn\.(\d+)\.", r"encoder.down_blocks.\1.attentions.\2."),
    (r"encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"encoder\.mid\.block_1\.", "encoder.mid_block.resnets.0."),
    (r"encoder\.mid\.block_2\.", "encoder.mid_block.resnets.1."),
    (r"encoder\.mid\.attn_1\.", "encoder.mid_block.attentions.0."),
    (r"encoder\.norm_out\.", "encoder.conv_norm_out."),
)
OF_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
DECODER, ENCODER = ("decoder.", "post_quant_conv."), ("encoder.", "quant_conv.")  # what names of either begin with
NEEDED = ("decoder.conv_in.weight", "decoder.conv_out.weight", "decoder.up.0.block.0.conv1.weight", "decoder.norm_out.weight")


def config_of(state: State, path: Path) -> dict:
    """The configuration of the `AutoencoderKL` with such a decoder.

    Raises:
        UserError: if it is none that diffusers has.
    """
    if missing := [name for name in NEEDED if name not in state or state[name].ndim not in (1, 4)]:
        raise UserError(
            f"--vae {path}: no autoencoder in the form of latent-diffusion, nor RAE's decoder: it has no {missing[0]}; "
            "give such a file, or a diffusers folder"
        )
    levels = 1 + max(int(found[1]) for name in state if (found := re.match(r"decoder\.up\.(\d+)\.", name)))
    first = [state.get(f"decoder.up.{level}.block.0.conv1.weight") for level in range(levels)]
    blocks = {int(found[1]) for name in state if (found := re.match(r"decoder\.up\.0\.block\.(\d+)\.", name))}
    if any(weight is None for weight in first) or len(blocks) < 2:
        raise UserError(f"--vae {path}: a level of its decoder has no blocks")
    channels = state["decoder.conv_in.weight"].shape[1]
    embedded = state["post_quant_conv.weight"].shape[:2] if "post_quant_conv.weight" in state else (channels, channels)
    if tuple(embedded) != (channels, channels):
        raise UserError(f"--vae {path}: post_quant_conv makes {channels} channels of {embedded[1]}; only equal ones can be drawn")
    attends = [f"decoder.up.{level}.attn.0.norm.weight" in state for level in range(levels)]
    return {
        "block_out_channels": [weight.shape[0] for weight in first],
        "layers_per_block": len(blocks) - 1,
        "latent_channels": channels,
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "norm_num_groups": NORM_GROUPS,
        "up_block_types": ["AttnUpDecoderBlock2D" if attends[level] else "UpDecoderBlock2D" for level in reversed(range(levels))],
        "use_post_quant_conv": "post_quant_conv.weight" in state,
    }


def with_encoder(config: dict, state: State) -> dict:
    """The configuration with the encoder whose weights are in `state`; whether shapes are its own shows when it is filled."""
    levels = range(len(config["block_out_channels"]))
    attends = [f"encoder.down.{level}.attn.0.norm.weight" in state for level in levels]
    kinds = ["AttnDownEncoderBlock2D" if attends[level] else "DownEncoderBlock2D" for level in levels]
    return config | {"down_block_types": kinds, "use_quant_conv": "quant_conv.weight" in state}


def renamed(state: State, levels: int) -> State:
    """The weights of `decoder_in` or `both_in` under diffusers' names; 1 x 1 convolutions of attention as matrices."""
    found: State = {}
    for name, value in state.items():
        own = _renamed(name, levels)
        if whole := re.fullmatch(r"(.*\.attentions\.\d+\.)(\w+)(\.\w+)", own):
            own = whole[1] + OF_ATTENTION.get(whole[2], whole[2]) + whole[3]
            value = value[:, :, 0, 0] if value.ndim == 4 else value
        found[own] = value
    return found


def _renamed(name: str, levels: int) -> str:
    for pattern, part in PARTS:
        if match := re.match(pattern, name):
            level = str(levels - 1 - int(match[1])) if "N" in part else ""
            name = match.expand(part).replace("N", level) + name[match.end() :]
            break
    return name.replace(".nin_shortcut.", ".conv_shortcut.")


class LDMAutoencoder(SingleFile, Autoencoder):
    """The decoder in a file of latent-diffusion's form, a `Decoder` that decodes as `Autoencoder` does, and encodes so where the
    file holds an encoder.

    Raises:
        UserError: if the file holds none.
    """

    def __init__(self, path: Path):
        state = decoder_in(path)
        self._own = config_of(state, path)
        super().__init__(path, state, self._own)
        self.kind, self.latent_channels = "AutoencoderKL", self._own["latent_channels"]
        self.factor = 2 ** (len(self._own["block_out_channels"]) - 1)
        self.vae, self._encodes = None, False

    def cannot_encode(self) -> str | None:
        """Why it makes no latents of images, in a clause; None if it does."""
        state = state_in(self.folder)
        missing = next((name for name in ("encoder.conv_in.weight", "encoder.conv_out.weight") if name not in state), None)
        return missing and f"the file has no {missing}, so no whole encoder"

    def network(self, encoder: bool = False) -> nn.Module:
        """Diffusers' network with the weights, of the encoder too if it is wanted; UserError if they are not its own."""
        self._encodes = encoder
        return self.filled()

    def parts(self) -> tuple[nn.Module, State]:
        """See `SingleFile.parts`."""
        from diffusers import AutoencoderKL

        levels = len(self._own["block_out_channels"])
        state = both_in(self.folder) if self._encodes else decoder_in(self.folder)
        config = with_encoder(self._own, state)
        with torch.device("meta"):
            vae = AutoencoderKL(**config, sample_size=USUAL_SIZE)
        if not self._encodes:
            vae.encoder = nn.Identity()
        return vae, renamed(state, levels)


def decoder_in(path: Path) -> State:
    """The weights of a file that decoding needs."""
    return {name: value for name, value in state_in(path).items() if name.startswith(DECODER)}


def both_in(path: Path) -> State:
    """Those, and the weights that encoding needs."""
    return {name: value for name, value in state_in(path).items() if name.startswith((*DECODER, *ENCODER))}
