"""Scoring images as they are made: in a sampler, or in a training loop, without files of images.

from fiducial.evaluation import Evaluator

evaluator = Evaluator("digits", metrics=("fid", "precision"))
for images, labels in batches:                   # (N, 3, H, W) uint8
    evaluator.update(images, labels=labels)
result = evaluator.compute()                     # on rank 0; None on the others
print(result["fid"].value)
evaluator.reset()
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import fiducial
from fiducial import Group, UserError
from fiducial.evaluation.collection import NONE, Collection, Form, as_numbers, bytes_of_image, names_by_label
from fiducial.evaluation.data.images import Seen
from fiducial.evaluation.evaluate import Evaluation
from fiducial.evaluation.features.extraction import gathered, temporary_cache
from fiducial.evaluation.features.modules import of_module
from fiducial.evaluation.fit import check_size
from fiducial.evaluation.metrics import METRICS, Need
from fiducial.evaluation.pictures import COLUMNS, ROWS
from fiducial.evaluation.results.grid import Grid
from fiducial.evaluation.results.result import Result
from fiducial.evaluation.settings import Settings
from fiducial.evaluation.syncing import Syncing
from fiducial.evaluation.together import grid_of_all, numbered, require_levels, size_of_all, turns
from fiducial.precision import plain_float32


class Evaluator(Syncing):
    """Metrics of images that are given batch by batch, on any number of ranks; the same numbers as from an npz of them.

    Each rank gives its own images to `update`; `compute`, called by all, gathers their features (for Inception 16 kB an image).

    Args:
        ref: as `--ref` of `python -m evaluation calc`; None if no metric needs one.
        group: the ranks, from `fiducial.init()`, which is called if it is left out; several evaluators can share one.
        settings: protocol, metrics and the cache, which all ranks see; see `fiducial.evaluation.Settings`.
        metrics: in the place of those of `settings`, such as ("fid", "precision").
        device: auto, cuda or cpu, where `group` is left out.
        rounded: images are uint8, or made so; if not, `update` takes floats, and the result says that no file held them.
        value_range: of floats, (0, 1) or (-1, 1), which become levels of 0 to 255; None for uint8, or levels where not rounded.
        layout: "NCHW" or "NHWC"; None for tensors in the first and arrays in the second.
        extractor: a name in `EXTRACTORS`, timm:NAME, or a torch.nn.Module in evaluation mode, which takes (N, 3, H, W) uint8 and
            gives features (N, D); None for the protocol's, or the one that the reference was made with.
        weights: files by the name of whose weights they are, such as {"inception": "FILE"}; published ones are downloaded.
        name: what the result calls the samples.
        train: training images, to tell memorised samples; there will be no pictures of those.
        image_size: to which files of training images are cropped; the extractor's, if it takes only one.
        class_names: of the images' classes, by label, or each name's label as `class_to_idx` has them, for FID by class.
        evaluation: in the place of all these, where it is prepared already.

    Raises:
        UserError: if something is missing or does not fit.
    """

    def __init__(
        self,
        ref: str | Path | None = None,
        group: Group | None = None,
        settings: Settings | None = None,
        extractor: str | nn.Module | None = None,
        weights: Mapping[str, str | Path] | None = None,
        name: str = "online",
        train: str | Path | None = None,
        image_size: int | None = None,
        evaluation: Evaluation | None = None,
        class_names: Sequence[str] | Mapping[str, int] = (),
        metrics: Sequence[str] | str | None = None,
        device: str = "auto",
        rounded: bool = True,
        value_range: tuple[float, float] | None = None,
        layout: str | None = None,
    ):
        self._form = Form(layout, value_range, rounded)
        if evaluation is None:
            _require_kinds(settings=(settings, Settings), weights=(weights, Mapping))
            _require_one_network(_with(settings or Settings(), metrics))
            group, settings = group or fiducial.init(device), _with(settings or Settings(), metrics)
            if isinstance(extractor, nn.Module):
                extractor = of_module(extractor, group.device, image_size)
            evaluation = Evaluation.prepare(ref, group, settings, extractor, weights, image_size, train)
        if evaluation.exact:
            raise UserError(f"--dtype {evaluation.settings.dtype}: online, its effect cannot be shown, so it is float32 only")
        evaluation.settings.check_cache()
        self.evaluation, self.name, self.class_names = evaluation, name, names_by_label(class_names)
        self.rounded, self._shown = rounded, None
        self.reset()

    @property
    def extractor(self) -> str:
        """Name and hash of what the features depend on."""
        return self.evaluation.extractor.mark

    @property
    def bytes_of_image(self) -> int:
        """The fields that are kept of an image."""
        return bytes_of_image(self.evaluation.extractor)

    def expect(self, labels: np.ndarray) -> None:
        """Tell the classes (N,) of all images that will come, so that only those that the report shows are kept of them."""
        rows = Grid.choose(labels, len(labels), ROWS, COLUMNS).rows
        self._shown: frozenset[int] | None = frozenset(index for _, row in rows for index in row)

    def fresh(self) -> "Evaluator":
        """Another one with the same reference and extractor, which has seen nothing."""
        other = copy.copy(self)
        other.reset()
        return other

    def reset(self) -> None:
        """Forget all images, other ranks' too where it is synced."""
        self._own = None
        self._seen = Collection(self.evaluation.extractor, self.rounded)

    @property
    def count(self) -> int:
        """How many images this rank has seen."""
        return self._seen.count

    @torch.inference_mode()
    @plain_float32()
    def update(
        self,
        images: Tensor | np.ndarray,
        indices: Tensor | np.ndarray | None = None,
        labels: Tensor | np.ndarray | None = None,
    ) -> "Evaluator":
        """Take a batch: (N, 3, H, W) as a tensor or (N, H, W, 3) as an array, or as `layout` says; uint8, or floats where the
        evaluator has a `value_range` or does not round.

        Args:
            indices: each image's place among those of all ranks, which IS and hashes depend on; without any, the ranks' images
                take turns. No index may come twice.
            labels: each image's class, for the report and FID by class; of all images or of none.

        Raises:
            ValueError: if images, indices or labels are not that, or of another size than before.
            UserError: if the extractor does not take this size, gives what is not finite, or levels look cast from 0 to 1.
        """
        self._require_unsynced("update")
        seen, evaluation = self._seen, self.evaluation
        pixels = self._form.pixels(images)
        count, (height, width) = len(pixels), pixels.shape[1:3]
        seen.check_size(height, width)
        indices, labels = as_numbers(indices, count, "indices"), as_numbers(labels, count, "labels")
        check_size("images", height, width, evaluation.extractor, evaluation.reference)
        evaluation.check_training(height, width)
        seen.check_kind(indices, labels)
        if not count:
            return self
        places = turns(evaluation.group, seen.count, seen.count + count) if (indices == NONE).all() else indices
        seen.add(pixels, indices, labels, None if self._shown is None else np.isin(places, list(self._shown)))
        return self

    def compute(self) -> Result | None:
        """The result of all ranks' images, on rank 0; to be called by all of them. More images may follow.

        Raises:
            UserError: if they are too few, two have one index, only some ranks gave indices, or labels, or levels look cast.
        """
        evaluation, seen = self._evaluation, self._seen
        group = evaluation.group
        images, own, indices, labels = _images_of_all(self, seen, group)
        evaluation.check(images)
        grid = grid_of_all(group, seen, own, indices, labels, (images.height, images.width))
        with temporary_cache(evaluation.settings.folder, group) as cache:
            found = gathered(len(indices), seen.rows(np.searchsorted(indices, own)), evaluation.extractor, group, cache)
            return evaluation.result_of(images, found, cache, grid)


def _images_of_all(evaluator: Evaluator, seen: Collection, group: Group) -> tuple[Seen, np.ndarray, np.ndarray, np.ndarray]:
    """The images of all ranks; the indices of this rank's; the indices and labels of all."""
    own, indices, labels = numbered(group, seen)
    require_levels(group, seen)
    size, classes = size_of_all(group, seen.size), None if labels[0] == NONE else labels
    name, names = Path(evaluator.name), tuple(evaluator.class_names)
    return Seen(name, len(indices), *size, classes, names, rounded=seen.rounded), own, indices, labels


def _require_kinds(**arguments: tuple[object, type]) -> None:
    for name, (value, kind) in arguments.items():
        if not isinstance(value, kind | None):
            raise UserError(f"Evaluator({name}={value!r}): must be {kind.__name__} or None")


def _require_one_network(settings: Settings) -> None:
    """Raise UserError, before any is loaded, for a metric of several networks."""
    settings.check()
    if several := [name for name in settings.metrics or () if METRICS[name].needs is Need.PANEL]:
        raise UserError(f"--metrics {several[0]}: takes six networks, and online there is one; evaluate files of images")


def _with(settings: Settings, metrics: Sequence[str] | str | None) -> Settings:
    """The settings with these metrics, where any are given."""
    return settings if metrics is None else replace(settings, metrics=metrics)
