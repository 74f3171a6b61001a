"""REPA (Yu et al., arXiv 2410.06940) and REPA-E (arXiv 2504.10483): SiT's network on a clock that is 1 at noise.

It predicts noise - image on the straight path. Its files also hold `projectors`, which only its training asks, and may have
normalised queries and keys (LayerNorm, as in timm). REPA-E's hold the running statistics of its latents too, `bn`.
Names and arithmetic are those of the published code (commit 67f7145); no published weights have been read by this one.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from fiducial.models.latent import LatentStatistics
from fiducial.models.networks import parts
from fiducial.models.networks.dit import DIT_SIZES, DiT

PATCH_SIZES = (1, 2, 4, 8)
PROJECTORS, STATISTICS = "projectors.", "bn."
LEGACY = "decoder_blocks."  # the blocks after those whose last is projected, in older files
NORM = "blocks.0.attn.q_norm.weight"
TRAINED = {"path_type": {"linear": "linear", "cosine": "gvp"}}  # as `sit.TRAINED`
PREDICTION = ("prediction", "v")  # as that of no SiT is called


class REPA(DiT):
    """SiT's network; the time that it is fed is 0 at the image.

    Args:
        qk_norm: queries and keys are normalised.
    """

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        num_classes: int = 1000,
        has_null: bool = True,
        qk_norm: bool = False,
        learn_sigma: bool = False,
    ):
        shape = input_size, patch_size, in_channels, hidden_size, depth, num_heads, num_classes
        super().__init__(*shape, learn_sigma=learn_sigma, has_null=has_null)
        for block in self.blocks if qk_norm else ():
            block.attn = parts.Attention(hidden_size, num_heads, nn.LayerNorm)

    def to_half(self, dtype: torch.dtype) -> "REPA":
        """See `DiT.to_half`; norms of queries and keys stay float32."""
        super().to_half(dtype)
        for block in self.blocks:
            if isinstance(block.attn, parts.Attention):
                block.attn.q_norm.float()
                block.attn.k_norm.float()
        return self


def build(size: str, patch_size: int, network: Callable[..., DiT] = REPA, **options: object) -> DiT:
    """A network of DiT's sizes."""
    hidden_size, depth, num_heads = DIT_SIZES[size]
    return network(patch_size=patch_size, hidden_size=hidden_size, depth=depth, num_heads=num_heads, **options)


REPA_models: dict[str, Callable[..., REPA]] = {
    f"REPA-{size}/{patch}": partial(build, size, patch) for size in reversed(DIT_SIZES) for patch in PATCH_SIZES
}


def clock(t: float) -> float:
    """The timestep that it is fed at a time from 0, the image, to 1, noise."""
    return t


def is_told_by(keys: Iterable[str]) -> bool:
    """Whether names of weights are of a REPA and no SiT; those of one without projectors, norms and statistics tell nothing."""
    return any(key.startswith((PROJECTORS, STATISTICS, LEGACY)) or key == NORM for key in keys)


def recognise(said: Iterable[tuple[str, str]]) -> str | None:
    """`REPA`, or that with what was trained otherwise and cannot be drawn; None where no argument says that it is one."""
    said = list(said)
    if PREDICTION not in said:
        return None
    odd = next((f"{name} {value}" for name, value in said if value not in TRAINED.get(name, (value,))), None)
    return f"REPA with {odd}" if odd else "REPA"


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with all blocks in one list, where an older file has those of a decoder apart."""
    encoder = parts.depth_of(state)

    def name(key: str) -> str:
        number, _, rest = key.removeprefix(LEGACY).partition(".")
        is_legacy = key.startswith(LEGACY) and number.isdecimal()
        return f"{parts.BLOCKS}{int(number) + encoder}.{rest}" if is_legacy else key

    return {name(key): value for key, value in state.items()}


def shape(state: parts.State) -> parts.Shape:
    """See `parts.Layout.shape`."""
    outputs, patch = len(state["final_layer.linear.bias"]), state["x_embedder.proj.weight"][0].numel()
    return parts.dit_shape(state, DIT_SIZES, qk_norm=NORM in state, learn_sigma=outputs == 2 * patch)


LAYOUT = parts.Layout(is_told_by, shape, renamed=renamed, unused=(PROJECTORS, STATISTICS))


def statistics(state: parts.State) -> LatentStatistics | None:
    """REPA-E's statistics of its latents as its own sampling takes them: the scale is 1 / sqrt(variance) without BatchNorm's
    epsilon of 1e-4, which its training adds."""
    mean, variance = (state.get(f"{STATISTICS}running_{name}") for name in ("mean", "var"))
    if mean is None or variance is None:
        return None
    return LatentStatistics(variance.float().rsqrt().view(1, -1, 1, 1), mean.float().view(1, -1, 1, 1))
