"""Extractors that are loaded: uint8 images -> features, each with the hash of its weights.

A number is only comparable to others from the same extractor, so each has a suffix that its metrics carry in their names.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fiducial.evaluation.features import ExtractorSpec

CUDA_CHUNK = 64  # images at once on a GPU


@dataclass(frozen=True)
class Extractor:
    """A network in evaluation mode on its device.

    `apply` takes (N, 3, H, W) uint8 and gives features (N, dimension) and, unless `spatial_dimension` is 0, spatial features
    (N, spatial_dimension), float32. `logits` takes features, on any device, and gives what the Inception score is made of; None
    where there are none.
    `image_size`, where set, is the only one that it takes. `suffix` belongs in the name of every metric made with it: a FID
    over digits is not a FID; `distance` is what a Fréchet distance over it is called. `as_published` is whether the weights are
    those that published numbers are made with, None where that is not known.
    `cpu_chunk` is how many images it takes at once on a CPU, `packages` are those that its features depend on beside torch, and
    so is `preparation`, where a row does not say all of how images are prepared and features pooled; it is recorded.
    """

    name: str
    dimension: int
    weights_sha256: str
    device: torch.device
    apply: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    logits: Callable[[Tensor], Tensor] | None
    spatial_dimension: int = 0
    dtype: str = "float32"
    suffix: str = ""
    image_size: int | None = None
    distance: str = "FID"
    as_published: bool | None = True
    cpu_chunk: int = 64
    packages: tuple[str, ...] = ()
    preparation: dict = field(default_factory=dict)

    @classmethod
    def of(cls, spec: ExtractorSpec, weights_sha256: str, device: torch.device, apply: Callable, **own: Any) -> "Extractor":
        """The extractor of a row of EXTRACTORS, which says all but what is given: the network, and in `own` its own fields."""
        own = {"logits": None, "as_published": spec.weights.are_published(weights_sha256) if spec.weights else True} | own
        told = {name: getattr(spec, name) for name in ("spatial_dimension", "suffix", "distance", "packages")}
        return cls(spec.name, spec.dimension, weights_sha256, device, apply, **told, **own)

    @property
    def mark(self) -> str:
        """Name and hash of what the features depend on."""
        return f"{self.name}-{self.weights_sha256[:12]}"

    def run(self, batch: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """`apply` on a batch as files give it, (B, H, W, 3) uint8, in chunks of one size.

        Matrix products and convolutions of another size sum in another order. So a chunk that is not full is filled up with
        its last image: the features of an image are the same to the bit, whatever batch it comes in.
        """
        size = self.cpu_chunk if self.device.type == "cpu" else CUDA_CHUNK
        parts = [self._run_chunk(batch[start : start + size], size) for start in range(0, len(batch), size)]
        features, spatial = zip(*parts, strict=True)
        return torch.cat(features), torch.cat(spatial) if self.spatial_dimension else None

    def _run_chunk(self, images: np.ndarray, size: int) -> tuple[Tensor, Tensor | None]:
        """`apply` on up to `size` images, filled up to as many; the results of those that were given."""
        count = len(images)
        if count < size:
            images = np.concatenate([images, np.repeat(images[-1:], size - count, axis=0)])
        features, spatial = self.apply(torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device))
        return features[:count], None if spatial is None else spatial[:count]
