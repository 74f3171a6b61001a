"""Scoring images as they are made: in a sampler, or in a training loop, without files of images.

from fiducial.evaluation import Evaluator

evaluator = Evaluator("digits")
for images, labels in batches:                   # (N, 3, H, W) uint8
    evaluator.update(images, labels=labels)
result = evaluator.compute()                     # on rank 0; None on the others
print(result.metrics["fid-digits"].value)
evaluator.reset()
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fiducial
from fiducial import Group, UserError, default_cache, quoted
from fiducial.classes import from_mapping
from fiducial.evaluation import levels
from fiducial.evaluation.advice import on_array, on_values
from fiducial.evaluation.calc import GRID_COLUMNS, GRID_ROWS, Evaluation
from fiducial.evaluation.checks import Settings, check_size
from fiducial.evaluation.extraction import DIGEST, FEATURES, PIXELS, SPATIAL, gathered, plain_float32, temporary_cache
from fiducial.evaluation.images import MAX_PIXELS
from fiducial.evaluation.page import picture
from fiducial.evaluation.report import Grid, Result

KEPT_CLASSES = 100  # whose first images a rank keeps for the report
NONE = -1  # as an index or a label: none was given


@dataclass(frozen=True)
class Seen:
    """Images that are gone, as far as a result speaks of them, like `fiducial.evaluation.images.Images`."""

    path: Path
    count: int
    height: int
    width: int
    labels: np.ndarray | None
    class_names: tuple[str, ...] = ()
    resize: str | None = None
    not_read: str | None = None
    no_labels: str | None = None

    def content_sha256(self) -> None:
        """There was no file."""


class Evaluator:
    """Metrics of images that are given batch by batch, on any number of ranks; the same numbers as from an npz of them.

    Each rank gives its own images to `update`; `compute`, called by all, gathers what was made of them. Features are kept, not
    images: some 16 kB an image for Inception.

    Args:
        ref: as `--ref` of `python -m evaluation calc`; None if no metric needs one.
        group: the ranks, from `fiducial.init()`, which is called if it is left out; several evaluators can share one.
        settings: protocol, metrics and the cache, which all ranks see.
        extractor, inception_weights, dinov2_weights: as the options of these names.
        name: what the result calls the samples.
        train: training images, to tell memorised samples; there will be no pictures of those.
        image_size: to which files of training images are cropped; the one that the extractor takes, if it takes only one.
        class_names: what the classes of the images are called, by label, or each name's label, as `class_to_idx` has them: for
            the report, and to tell which class of the reference is which.
        evaluation: in the place of all these, where it is prepared already.

    Raises:
        UserError: if something is missing or does not fit.
    """

    def __init__(
        self,
        ref: str | None = None,
        group: Group | None = None,
        settings: Settings | None = None,
        extractor: str | None = None,
        inception_weights: Path | None = None,
        dinov2_weights: Path | None = None,
        name: str = "online",
        train: Path | None = None,
        image_size: int | None = None,
        evaluation: Evaluation | None = None,
        class_names: Sequence[str] | Mapping[str, int] = (),
    ):
        if evaluation is None:
            settings, group = settings or Settings(), group or fiducial.init()
            files = inception_weights, image_size, dinov2_weights, train
            evaluation = Evaluation.prepare(ref, group, settings, extractor, *files)
        if evaluation.exact:
            raise UserError(f"--dtype {evaluation.settings.dtype}: online, its effect cannot be shown, so it is float32 only")
        evaluation.settings.check_cache()
        self.evaluation, self.name = evaluation, name
        self.class_names = _names(class_names)
        self._shown: frozenset[int] | None = None
        self.reset()

    @property
    def extractor(self) -> str:
        """Name and hash of what the features hang on."""
        extractor = self.evaluation.extractor
        return f"{extractor.name}-{extractor.weights_sha256[:12]}"

    @property
    def bytes_of_image(self) -> int:
        """What is kept of an image."""
        extractor = self.evaluation.extractor
        return 4 * (extractor.dimension + extractor.spatial_dimension) + DIGEST + 16

    def expect(self, labels: np.ndarray) -> None:
        """Tells the classes (N,) of all images that will come, so that only those that the report shows are kept of them."""
        grid = Grid.choose(labels, len(labels), GRID_ROWS, GRID_COLUMNS)
        self._shown = frozenset(index for _, row in grid.rows for index in row)

    def fresh(self) -> "Evaluator":
        """Another one with the same reference and extractor, which has seen nothing."""
        other = copy.copy(self)
        other.reset()
        return other

    def reset(self) -> None:
        """Forgets all images."""
        self._size: tuple[int, int] | None = None
        self._levels: set[int] = set()  # of all pixels, as long as they are those of a cast; of merged states unknown, so all
        self._parts: dict[str, list[np.ndarray]] = {"features": [], "spatial": [], "pixels": [], "indices": [], "labels": []}
        self._thumbnails: dict[int, np.ndarray] = {}  # by the order in which images came
        self._kept: dict[int, int] = {}  # thumbnails by label

    @property
    def count(self) -> int:
        """How many images this rank has seen."""
        return sum(map(len, self._parts["indices"]))

    @torch.inference_mode()
    @plain_float32()
    def update(
        self,
        images: Tensor | np.ndarray,
        indices: Tensor | np.ndarray | None = None,
        labels: Tensor | np.ndarray | None = None,
    ) -> "Evaluator":
        """Takes a batch: (N, 3, H, W) uint8 as a tensor, or (N, H, W, 3) uint8 as an array.

        Args:
            indices: each image's place among those of all ranks, which IS and hashes hang on; without any, the ranks' images
                take turns. No index may come twice.
            labels: each image's class, for the report and FID by class; of all images or of none.

        Raises:
            ValueError: if images, indices or labels are not that, or of another size than before.
            UserError: if the extractor does not take images of this size, gives what is not finite, or the first images have
                levels that values of 0 to 1 or -1 to 1 become.
        """
        pixels = _as_pixels(images)
        count, (height, width) = len(pixels), pixels.shape[1:3]
        self._check_size(height, width)
        indices, labels = _as_numbers(indices, count, "indices"), _as_numbers(labels, count, "labels")
        check_size("images", height, width, self.evaluation.extractor, self.evaluation.reference)
        self.evaluation.check_training(height, width)
        self._check_kind(indices, labels)
        if not count:
            return self
        if self._levels <= levels.CASTS:
            self._levels = self._levels.union(*map(levels.levels_in, pixels))
        if self.count + count >= levels.LOOKED_AT:
            levels.require(self._levels, "the images")
        features, spatial = self.evaluation.extractor.run(pixels)
        if not (features.isfinite().all() and (spatial is None or spatial.isfinite().all())):
            raise UserError("the features of an image are not finite; are the extractor's weights whole?")
        hashes = b"".join(sha256(image).digest() for image in pixels)
        self._keep_thumbnails(pixels, indices, labels)
        self._size = height, width
        self._parts["features"].append(features.cpu().numpy())
        self._parts["spatial"].append(np.empty((count, 0), np.float32) if spatial is None else spatial.cpu().numpy())
        self._parts["pixels"].append(np.frombuffer(hashes, np.uint8).reshape(count, DIGEST))
        self._parts["indices"].append(indices)
        self._parts["labels"].append(labels)
        return self

    def _check_size(self, height: int, width: int) -> None:
        if self._size not in (None, (height, width)):
            raise ValueError(f"images of {width} x {height} after others of {self._size[1]} x {self._size[0]}")

    def _check_kind(self, indices: np.ndarray, labels: np.ndarray) -> None:
        """Raises ValueError if only some of all images have an index, or a label."""
        for what, numbers in (("indices", indices), ("labels", labels)):
            before = self._parts[what]
            if before and len(numbers) and (before[0][0] == NONE) != (numbers[0] == NONE):
                raise ValueError(f"{what} are given for some images and not for others")

    def _keep_thumbnails(self, pixels: np.ndarray, indices: np.ndarray, labels: np.ndarray) -> None:
        """Keeps those that the report shows, or else the first images of each of the first classes."""
        start = self.count
        if self._shown is not None:
            places = self._turns(start, start + len(indices)) if (indices == NONE).all() else indices
            for row in np.flatnonzero(np.isin(places, list(self._shown))).tolist():
                self._thumbnails[start + row] = np.array(picture(pixels[row]))
                self._kept[int(labels[row])] = self._kept.get(int(labels[row]), 0) + 1
            return
        for row, label in enumerate(labels.tolist()):
            most = GRID_COLUMNS * (GRID_ROWS if label == NONE else 1)
            if self._kept.get(label, 0) < most and (label in self._kept or len(self._kept) < KEPT_CLASSES):
                self._kept[label] = self._kept.get(label, 0) + 1
                self._thumbnails[start + row] = np.array(picture(pixels[row]))

    def state_dict(self) -> dict[str, Tensor | str]:
        """What this rank has seen, for `torch.save`; it can be read with `weights_only=True`."""
        extractor = self.evaluation.extractor
        pictures = list(self._thumbnails.values())
        return {
            **{name: torch.from_numpy(np.concatenate([*parts, self._empty(name)])) for name, parts in self._parts.items()},
            "size": torch.tensor(self._size or (0, 0)),
            "kept": torch.tensor(list(self._thumbnails), dtype=torch.int64),
            "thumbnails": torch.from_numpy(np.stack(pictures)) if pictures else torch.empty(0, 0, 0, 3, dtype=torch.uint8),
            "extractor": f"{extractor.name} {extractor.weights_sha256}",
        }

    def load_state_dict(self, state: dict[str, Tensor | str]) -> None:
        """Takes the place of all that this rank has seen.

        Raises:
            ValueError: if it is not a state, or of another extractor; then all is as it was.
        """
        loaded = self.fresh()
        loaded._add(state)
        vars(self).update(vars(loaded))

    def merge(self, other: "Evaluator | dict[str, Tensor | str]") -> "Evaluator":
        """Adds what another has seen, given as it is or as its state, and leaves that alone.

        Images without indices follow on those that are here.

        Raises:
            ValueError: if it is no state, has another extractor, or its images are of another size; then all is as it was.
        """
        self._add(other.state_dict() if isinstance(other, Evaluator) else other)
        return self

    def _add(self, state: dict[str, Tensor | str]) -> None:
        arrays = self._read(state)
        if not len(arrays["indices"]):
            return
        height, width = arrays["size"].tolist()
        self._check_size(height, width)
        self._check_kind(arrays["indices"], arrays["labels"])
        start, self._size, self._levels = self.count, (height, width), set(range(256))
        for name, parts in self._parts.items():
            parts.append(arrays[name])
        for place, image in zip(arrays["kept"].tolist(), arrays["thumbnails"], strict=True):
            label = int(arrays["labels"][place])
            self._thumbnails[start + place], self._kept[label] = image, self._kept.get(label, 0) + 1

    def _read(self, state: dict[str, Tensor | str]) -> dict[str, np.ndarray]:
        """The arrays of a state; raises ValueError if it is not a whole one, or of another extractor."""
        extractor = self.evaluation.extractor
        try:
            arrays = {name: np.asarray(state[name]) for name in (*self._parts, "size", "kept", "thumbnails")}
            theirs, (height, width) = str(state["extractor"]), (int(side) for side in arrays["size"])
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"this is no state of an evaluator ({error})") from error
        if theirs != f"{extractor.name} {extractor.weights_sha256}":
            raise ValueError(f"the state was made with the extractor {theirs}, and this is {extractor.name}")

        def require(holds: bool, but: str) -> None:
            if not holds:
                raise ValueError(f"this is no whole state of an evaluator: its {but}")

        for name, wanted in {"size": (1, "iu"), "indices": (1, "iu"), "kept": (1, "iu"), "thumbnails": (4, "u")}.items():
            fits = (arrays[name].ndim, arrays[name].dtype.kind in wanted[1]) == (wanted[0], True)
            require(fits, f"{name} is {arrays[name].dtype} {arrays[name].shape}")
        count, kept, thumbnails = len(arrays["indices"]), arrays["kept"], arrays["thumbnails"]
        for name in self._parts:
            empty, array = self._empty(name), arrays[name]
            fits = array.dtype == empty.dtype and array.shape == (count, *empty.shape[1:])
            require(fits, f"{name} are {array.dtype} {array.shape}")
        require(all(np.isfinite(arrays[name]).all() for name in ("features", "spatial")), "features hold NaN or infinity")
        require(not count or (min(height, width) > 0 and height * width <= MAX_PIXELS), f"images are {width} x {height}")
        for name in ("indices", "labels"):
            require((arrays[name] == NONE).all() or (arrays[name] >= 0).all(), f"{name} are not those of all images")
        fits = len(kept) == len(thumbnails) and all(0 <= place < count for place in kept.tolist())
        require(fits, "thumbnails are of other images")
        if count:
            shape = np.array(picture(np.zeros((height, width, 3), np.uint8))).shape
            require(not len(kept) or thumbnails.shape[1:] == shape, "thumbnails are of another size")
        return arrays

    def _empty(self, name: str) -> np.ndarray:
        """No images' part of that name."""
        extractor = self.evaluation.extractor
        shape, dtype = {
            "features": ((0, extractor.dimension), np.float32),
            "spatial": ((0, extractor.spatial_dimension), np.float32),
            "pixels": ((0, DIGEST), np.uint8),
        }.get(name, ((0,), np.int64))
        return np.empty(shape, dtype)

    def compute(self) -> Result | None:
        """The result of all ranks' images, on rank 0; to be called by all of them. More images may follow.

        Raises:
            UserError: if they are too few, two have the same index, only some ranks gave indices, or labels, or no pixel is above
                level 1.
        """
        group, settings = self.evaluation.group, self.evaluation.settings
        own, theirs = (np.concatenate([*self._parts[name], self._empty(name)]) for name in ("indices", "labels"))
        for what, numbers in (("indices", own), ("labels", theirs)):
            missing, count = group.sum(np.array([(numbers == NONE).sum(), len(numbers)], dtype=float))
            if 0 < missing < count:
                raise UserError(f"{what} are given for some images and not for others, by other ranks")
        if (own == NONE).all():  # the ranks' images take turns
            own = self._turns(0, len(own))
        indices, labels = self._of_all_ranks(own), self._of_all_ranks(theirs)
        order = np.argsort(indices, kind="stable")
        indices, labels = indices[order], labels[order]
        if len(twice := indices[1:][np.diff(indices) == 0]):
            raise UserError(f"image {twice[0]} was given twice; every image of every rank needs an index of its own")
        if not len(indices):
            raise UserError("no image was given to be evaluated")
        everywhere = group.sum(np.array([float(level in self._levels) for level in range(256)]))
        levels.require(set(np.flatnonzero(everywhere).tolist()), "the images")
        known = None if labels[0] == NONE else labels
        seen = Seen(Path(self.name), len(indices), *self._size_of_all(), known, tuple(self.class_names))
        self.evaluation.check(seen)
        grid = self._grid(indices, labels, own)
        with temporary_cache(settings.cache_dir or default_cache(), group) as cache:
            found = gathered(len(indices), self._rows(np.searchsorted(indices, own)), self.evaluation.extractor, group, cache)
            return self.evaluation.result_of(seen, found, cache, grid)

    def _turns(self, start: int, stop: int) -> np.ndarray:
        """The indices of this rank's images of these numbers, where the ranks' images take turns."""
        group = self.evaluation.group
        return np.arange(start, stop) * group.world_size + group.rank

    def _rows(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """This rank's parts, as they came, with the places of their images among all."""
        start = 0
        for features, spatial, pixels in zip(*(self._parts[name] for name in ("features", "spatial", "pixels")), strict=True):
            rows = {FEATURES: features, PIXELS: pixels} | ({SPATIAL: spatial} if spatial.shape[1] else {})
            yield positions[start : start + len(features)], rows
            start += len(features)

    def _of_all_ranks(self, numbers: np.ndarray) -> np.ndarray:
        """The ranks' integers (n,), one rank's after the other's."""
        group = self.evaluation.group
        counts = np.zeros(group.world_size)
        counts[group.rank] = len(numbers)
        ends = group.sum(counts).cumsum().astype(np.int64)
        everyone = np.zeros(ends[-1])
        everyone[ends[group.rank] - len(numbers) : ends[group.rank]] = numbers
        return group.sum(everyone).astype(np.int64)

    def _size_of_all(self) -> tuple[int, int]:
        """Height and width of all images; raises UserError if ranks had different ones."""
        sizes = {tuple(size) for size in self._of_all_ranks(np.array(self._size or (0, 0))).reshape(-1, 2).tolist()} - {(0, 0)}
        if len(sizes) > 1:
            raise UserError(f"the ranks gave images of different sizes: {', '.join(f'{w} x {h}' for h, w in sorted(sizes))}")
        return sizes.pop()

    def _grid(self, indices: np.ndarray, labels: np.ndarray, own: np.ndarray) -> Grid:
        """The report's pictures, out of those that the ranks have kept; `own` are the indices of this rank's images."""
        group = self.evaluation.group
        ours = {int(own[place]): image for place, image in self._thumbnails.items()}
        kept = np.sort(self._of_all_ranks(np.array(list(ours), dtype=np.int64)))
        theirs = labels[np.searchsorted(indices, kept)]
        grid = Grid.choose(None if (theirs == NONE).any() else theirs, len(kept), GRID_ROWS, GRID_COLUMNS)
        grid = Grid([(label, kept[row].tolist()) for label, row in grid.rows])
        shape = np.array(picture(np.zeros((*self._size_of_all(), 3), np.uint8))).shape

        def pick(wanted: list[int]) -> dict[int, np.ndarray]:
            pictures = np.zeros((len(wanted), *shape))
            for place, index in enumerate(wanted):
                if index in ours:
                    pictures[place] = ours[index]
            return dict(zip(wanted, group.sum(pictures).astype(np.uint8), strict=True))

        grid.fill(pick)
        return grid


def _names(given: Sequence[str] | Mapping[str, int]) -> tuple[str, ...]:
    """The names by label; raises UserError if they are none."""
    if isinstance(given, str | bytes) or not isinstance(given, Sequence | Mapping | np.ndarray):
        raise UserError(f"class_names: expected a list of names, or a mapping of names to labels; got {quoted(given)}")
    plain = {np.integer: int, np.str_: str}

    def as_plain(one: object) -> object:
        return next((kind(one) for numpys, kind in plain.items() if isinstance(one, numpys)), one)

    if isinstance(given, Mapping):
        known = {as_plain(key): as_plain(value) for key, value in given.items()}
        known = {str(key) if type(key) is int else key: value for key, value in known.items()}
    else:
        known = [as_plain(one) for one in given]
    return from_mapping(known, "class_names").names if known else ()


def _as_pixels(images: Tensor | np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 in C order, of a tensor (N, 3, H, W) or an array (N, H, W, 3)."""
    if isinstance(images, Tensor):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            floats = images.is_floating_point() and images.numel()
            remedy = on_values("f", float(images.min()), float(images.max()), cast="byte()") if floats else ""
            what = f"{images.dtype} {tuple(images.shape)}{remedy.replace('save', 'give')}"
            raise ValueError(f"images expected as uint8 (N, 3, H, W), values 0 to 255; got {what}")
        return np.ascontiguousarray(images.detach().cpu().permute(0, 2, 3, 1).numpy())
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        what = type(images).__name__
        if isinstance(images, np.ndarray):
            what = f"{images.dtype} {images.shape}{on_array(images.shape, images).replace('save', 'give')}"
        raise ValueError(f"images expected as a uint8 tensor (N, 3, H, W) or array (N, H, W, 3); got {what}")
    return np.ascontiguousarray(images)


def _as_numbers(numbers: Tensor | np.ndarray | None, count: int, what: str) -> np.ndarray:
    """(count,) int64, not negative; `NONE` where None is given."""
    if numbers is None:
        return np.full(count, NONE, dtype=np.int64)
    found = np.asarray(numbers.cpu() if isinstance(numbers, Tensor) else numbers)
    if found.shape != (count,) or (count and found.dtype.kind not in "iu") or (found < 0).any():
        raise ValueError(f"{what} expected as {count} integers from 0 on; got {found.dtype} {found.shape}")
    return found.astype(np.int64)
