"""From values to levels: the one place that knows how a codec's images become uint8."""

import torch
from torch import Tensor

# Pixels in [-1, 1] to levels before truncation: factor and offset. `repa` is half a level darker, as ADM's own sampler is.
ROUNDING = {"dit": (127.5, 128.0), "repa": (127.5, 127.5)}


def to_uint8(images: Tensor, rounding: str = "dit") -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] -> (N, H, W, 3) uint8: truncate(clamp(scale x + offset, 0, 255))."""
    scale, offset = ROUNDING[rounding]
    return (scale * images + offset).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)
