"""One pass over images and their reconstructions, shared out over the ranks; nothing is kept but features and a few numbers."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fiducial import Group, UserError, progress_bar
from fiducial.evaluation.data.images import Images, read_ahead
from fiducial.evaluation.features.extraction import DIGEST, FEATURES, PIXELS, SPATIAL, Features, gathered, share
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.features.lpips import Perceptual
from fiducial.evaluation.metrics.pairs import ERROR
from fiducial.evaluation.metrics.similarity import mean_squared_error, ssim
from fiducial.precision import plain_float32

# Images (B, H, W, 3) uint8 and their indices (B,) -> their reconstructions (B, H, W, 3), uint8 or float32 levels from 0 to 255.
Reconstruct = Callable[[np.ndarray, np.ndarray], np.ndarray]
Rows = tuple[np.ndarray, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Measured:
    """`columns` are values of all images (N,) by name, as `PairInputs` has them, `features` those of the reconstructions, None
    where none were wanted; `pixels_sha256` is the hash of the reconstructions' own hashes in their order, `originals_sha256` of
    their originals'. On every rank the same.
    """

    columns: dict[str, np.ndarray]
    features: Features | None
    pixels_sha256: str
    originals_sha256: str


class Measuring:
    """The measurements of this rank's images.

    Args:
        columns: to fill: `ERROR`, and as far as wanted ssim, and names of `perceptual`.
        extractor: of features; None for none.
    """

    def __init__(
        self,
        images: Images,
        reconstruct: Reconstruct,
        columns: tuple[str, ...],
        perceptual: Mapping[str, Perceptual],
        extractor: Extractor | None,
        device: torch.device,
    ):
        self._images, self._reconstruct, self._perceptual, self._extractor = images, reconstruct, perceptual, extractor
        self._device = device
        self.columns = {name: np.zeros(images.count) for name in columns}
        self.hashes = np.zeros((2, images.count, DIGEST), np.uint8)  # of the originals, and of the reconstructions

    def rows(self, group: Group, batch_size: int) -> Iterator[Rows]:
        """For each batch, its indices among all images, and hashes and features of its reconstructions, as `gathered` takes them.

        Batches are the same whatever the number of ranks, as what an autoencoder makes of an image may depend on its batch in
        the last bits.

        Raises:
            UserError: naming an image whose features are not finite.
        """
        at, stop = share(self._images.count, batch_size, group)
        made = group.counter()
        with progress_bar(self._images.count, "reconstructing") as bar:
            for batch in read_ahead(self._images.batches(batch_size, at, stop)):
                indices = np.arange(at, at + len(batch))
                found = self._reconstruct(batch, indices)
                self._compare(torch.from_numpy(found).to(self._device), torch.from_numpy(batch).to(self._device), indices)
                self.hashes[:, indices] = _hashes(batch), (own := _hashes(found))
                yield indices, {PIXELS: own} | self._features(found, at)
                at += len(batch)
                group.check()
                bar.update(made.add(len(batch)) - bar.n)
            group.wait()
            bar.update(self._images.count - bar.n)

    def _compare(self, found: Tensor, originals: Tensor, indices: np.ndarray) -> None:
        """Fill the columns of a batch (B, H, W, 3), levels from 0 to 255."""
        self.columns[ERROR][indices] = mean_squared_error(found, originals).cpu()
        if "ssim" in self.columns:
            self.columns["ssim"][indices] = ssim(found, originals).cpu()
        for name, one in self._perceptual.items():
            ours, theirs = (part.permute(0, 3, 1, 2).float() / 127.5 - 1 for part in (found, originals))
            self.columns[name][indices] = one.network(ours, theirs).cpu()

    def _features(self, found: np.ndarray, at: int) -> dict[str, np.ndarray]:
        if self._extractor is None:
            return {}
        features, spatial = (made if made is None else made.cpu().numpy() for made in self._extractor.run(found))
        if not (is_finite := np.isfinite(features).all(1)).all():
            bad = at + int(np.flatnonzero(~is_finite)[0])
            raise UserError(f"the features of the reconstruction of image {bad} are not finite; are the weights whole?")
        return {FEATURES: features} | ({} if spatial is None else {SPATIAL: spatial})


@torch.inference_mode()
@plain_float32()
def measure(
    images: Images,
    reconstruct: Reconstruct,
    columns: tuple[str, ...],
    perceptual: Mapping[str, Perceptual],
    extractor: Extractor | None,
    group: Group,
    batch_size: int,
    cache: Path,
) -> Measured:
    """Reconstruct all images and measure them, on all ranks together; the arguments are those of `Measuring`.

    Args:
        batch_size: images at once.
        cache: a folder that all ranks see, for features while they are made.

    Raises:
        UserError: if an image cannot be read, or a value is not finite.
    """
    own = Measuring(images, reconstruct, columns, perceptual, extractor, group.device)
    rows = own.rows(group, batch_size)
    features = gathered(images.count, rows, extractor, group, cache) if extractor else None
    for _ in rows:  # which nothing has gone through where there are no features
        pass
    together = group.sum(np.stack(list(own.columns.values())))
    found = dict(zip(own.columns, together, strict=True))
    for name, values in found.items():
        if not (is_finite := np.isfinite(values)).all():
            raise UserError(f"{name} of image {int(np.flatnonzero(~is_finite)[0])} is not finite; are the weights whole?")
    originals, made = (
        hashlib.sha256(group.sum(part.astype(np.float64)).astype(np.uint8).tobytes()).hexdigest() for part in own.hashes
    )
    return Measured(found, features, made, originals)


def _hashes(batch: np.ndarray) -> np.ndarray:
    """The hash of each image's pixels, (B, 32) uint8."""
    joined = b"".join(hashlib.sha256(np.ascontiguousarray(image)).digest() for image in batch)
    return np.frombuffer(joined, np.uint8).reshape(len(batch), DIGEST)
