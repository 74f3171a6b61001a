"""MeanFlow (Geng et al., arXiv 2505.13447): SiT's network, fed a second time, which predicts the mean velocity between the two.

u(x, t, r) is the mean of noise - image over the path from r to t; its clock is 1 at noise, and of one step r is 0. The embedding
of t - r is added to that of t. Guidance is in its training. Names and arithmetic are those of the port to torch of zhuyu-cs
(commit 04d183c), whose sizes are DiT's; no published weights have been read by this one.
"""

from collections.abc import Callable, Iterable
from functools import partial

from torch import Tensor

from fiducial.models.networks import parts, repa
from fiducial.models.networks.dit import DIT_SIZES, PATCH_SIZES, TimestepEmbedder

OWN = "r_embedder.mlp.0.weight"


class MeanFlow(repa.REPA):
    """Args as of `REPA`."""

    def __init__(self, *shape: int, hidden_size: int = 1152, **options: object):
        super().__init__(*shape, hidden_size=hidden_size, **options)
        self.r_embedder = TimestepEmbedder(hidden_size, frequency_shift=0)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, r: Tensor | None = None) -> Tensor:
        """x (N, C, H, W), labels (N,) int64, times t and r (N,), or (1,) for all, 1 noise -> (N, out_channels, H, W), the mean
        velocity from r to t towards noise; where no r is given, it is t, and so the velocity at t."""
        gap = t - r if r is not None else t - t
        c = self.t_embedder(t) + self.r_embedder(gap) + self.y_embedder(y)
        x = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            x = block(x, c)
        return self.unpatchify(self.final_layer(x, c))


MeanFlow_models: dict[str, Callable[..., MeanFlow]] = {
    f"MeanFlow-{size}/{patch}": partial(repa.build, size, patch, MeanFlow)
    for size in reversed(DIT_SIZES)
    for patch in PATCH_SIZES
}


def is_told_by(keys: Iterable[str]) -> bool:
    """Whether names of weights are of a MeanFlow of DiT's kind."""
    return {OWN, "x_embedder.proj.weight"} <= set(keys)


def build_any(found: parts.Shape) -> MeanFlow:
    """A network of whatever size, for its names."""
    options = {"hidden_size": found.width, "depth": found.depth, "num_heads": 1, "num_classes": found.rows, "has_null": False}
    return MeanFlow(found.side, found.patch, found.channels, **options, **found.options)


LAYOUT = parts.Layout(is_told_by, repa.shape, unused=(repa.PROJECTORS,), build=build_any)
