"""RAE's and RAEv2's decoder: a ViT-MAE's, which makes pixels of a vision transformer's features, one token a latent pixel.

Of both the files look the same, and what they put out is not: RAE's are pixels as ImageNet's mean and deviation normalise them,
RAEv2's are from 0 to 1. Written from the published description and names, and not compared with their own code on their weights.
"""

import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiducial import UserError
from fiducial.models.decoders.rounding import IMAGENET, UNIT
from fiducial.models.decoders.single_file import SingleFile, State, state_in

EPSILON = 1e-12  # of its norms, ViT-MAE's
HEADS = {1152: 16, 1024: 16, 768: 12, 512: 16}  # by width, which weights do not tell; else 64 wide each
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, by which its pixels are normalised
MARK = "decoder_embed.weight"
TABLE, TOKEN, LAST = "decoder_pos_embed", "trainable_cls_token", "decoder_pred.weight"


class Layer(nn.Module):
    """A transformer's block, norms first. Parameters have the names of transformers' `ViTMAELayer`."""

    def __init__(self, width: int, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        projections = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"attention": projections, "output": nn.ModuleDict({"dense": nn.Linear(width, width)})})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, hidden)})
        self.output = nn.ModuleDict({"dense": nn.Linear(hidden, width)})
        self.layernorm_before, self.layernorm_after = (nn.LayerNorm(width, eps=EPSILON) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        normed, own = self.layernorm_before(x), self.attention["attention"]
        q, k, v = (own[name](normed).unflatten(2, (self.heads, -1)).transpose(1, 2) for name in ("query", "key", "value"))
        x = x + self.attention["output"]["dense"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.output["dense"](F.gelu(self.intermediate["dense"](self.layernorm_after(x))))


class Network(nn.Module):
    """Features (N, C, h, w) -> numbers for pixels (N, 3, h p, w p), on a scale of `rounding.OUTPUTS`."""

    def __init__(self, channels: int, tokens: int, width: int, hidden: int, depth: int, patch: int):
        super().__init__()
        self.patch = patch
        self.decoder_embed = nn.Linear(channels, width)
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1 + tokens, width))
        self.trainable_cls_token = nn.Parameter(torch.zeros(1, 1, width))
        heads = HEADS.get(width, max(width // 64, 1))
        self.decoder_layers = nn.ModuleList(Layer(width, hidden, heads) for _ in range(depth))
        self.decoder_norm, self.decoder_pred = nn.LayerNorm(width, eps=EPSILON), nn.Linear(width, patch * patch * 3)

    def forward(self, features: Tensor) -> Tensor:
        side, p = features.shape[2], self.patch
        x = self.decoder_embed(features.flatten(2).transpose(1, 2))
        x = torch.cat([self.trainable_cls_token.expand(len(x), -1, -1), x], 1) + self.decoder_pos_embed
        for layer in self.decoder_layers:
            x = layer(x)
        x = self.decoder_pred(self.decoder_norm(x[:, 1:].to(self.decoder_pred.weight.dtype)))
        x = x.view(len(x), side, side, p, p, 3)  # row, column, and within a patch row, column, colour
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), 3, side * p, side * p)


def holds(source: str) -> bool:
    """Whether `--vae` says a file with such a decoder."""
    return Path(source).is_file() and MARK in state_in(Path(source))


class ViTDecoder(SingleFile):
    """A `Decoder` of one file, whose images have one size.

    Raises:
        UserError: if what the file holds is no whole decoder.
    """

    def __init__(self, path: Path):
        state = state_in(path)
        self._sizes = sizes_in(state, path)
        super().__init__(path, state, self._sizes | {"network": "ViT-MAE decoder"})
        self.latent_channels, self.factor = self._sizes["channels"], self._sizes["patch"]
        self.only_size = self.factor * math.isqrt(self._sizes["tokens"])  # of images
        self.output_scale = IMAGENET  # of the network's numbers, which no file tells
        self.vit: Network | None = None
        self.posterior = False

    def cannot_encode(self) -> str:
        """Why it makes no latents of images, in a clause."""
        return "the file holds a ViT decoder alone, whose encoder is a pretrained vision transformer of another file"

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        raise NotImplementedError(self.cannot_encode())

    def parts(self) -> tuple[nn.Module, State]:
        """See `SingleFile.parts`."""
        with torch.device("meta"):
            return Network(**self._sizes), dict(state_in(self.folder))

    def load(
        self, device: torch.device, dtype: torch.dtype = torch.float32, slicing: bool = False, tiling: bool = False, **_: bool
    ) -> "ViTDecoder":
        if tiling:
            raise UserError("--vae-tiling: RAE's decoder looks at all of an image at once; leave it out")
        self.vit, self._slicing = self.filled().to(device, dtype), slicing
        self.vit.decoder_norm.float(), self.vit.decoder_pred.float()  # in bfloat16 a pixel's last bit is half a grey level
        return self

    def forward(self, latents: Tensor) -> Tensor:
        """Images (N, 3, H, W) of latents (N, C, h, w), as `Decoder`."""
        features = self.affine.undo(latents).to(self.vit.decoder_embed.weight.dtype)
        parts = features.split(1) if self._slicing else (features,)
        pixels = torch.cat([self.vit(part) for part in parts]).to(latents.dtype)
        if self.output_scale == UNIT:
            return 2 * pixels - 1
        mean, std = (torch.tensor(values, dtype=latents.dtype, device=latents.device).view(3, 1, 1) for values in (MEAN, STD))
        return 2 * (pixels * std + mean) - 1


def sizes_in(state: State, path: Path) -> dict[str, int]:
    """The arguments of `Network` by the weights' shapes.

    Raises:
        UserError: if they are not those of such a decoder.
    """
    numbers = {int(found[1]) for name in state if (found := re.match(r"decoder_layers\.(\d+)\.", name))}
    try:
        width, channels = state[MARK].shape
        _, places, _ = state[TABLE].shape
        hidden = state["decoder_layers.0.intermediate.dense.weight"].shape[0]
        side, patch = math.isqrt(places - 1), math.isqrt(state[LAST].shape[0] // 3)
        if side * side != places - 1 or 3 * patch * patch != state[LAST].shape[0] or numbers != set(range(len(numbers))):
            raise ValueError(f"{places} places, {state[LAST].shape[0]} values of a token, blocks {sorted(numbers)[:3]}")
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"--vae {path}: no whole ViT-MAE decoder ({error})") from error
    return {"channels": channels, "tokens": places - 1, "width": width, "hidden": hidden, "depth": len(numbers), "patch": patch}
