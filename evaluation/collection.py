"""Images that a rank is given batch by batch: their features, hashes and numbers, and pictures of a few."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from fiducial import UserError, quoted
from fiducial.classes import from_mapping
from fiducial.evaluation.data import levels
from fiducial.evaluation.data.advice import on_array, on_values
from fiducial.evaluation.data.image_files import MAX_PIXELS
from fiducial.evaluation.features.extraction import DIGEST, FEATURES, PIXELS, SPATIAL
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.pictures import COLUMNS, ROWS
from fiducial.evaluation.results.grid import thumbnail

KEPT_CLASSES = 100  # whose first images a rank keeps for the report
NONE = -1  # as an index or a label: none was given
LAYOUTS, RANGES = ("NCHW", "NHWC"), ((0, 1), (-1, 1))  # of images that are given
MOST = 2**53  # of an index or label, which ranks add up in float64


class Collection:
    """Features, hashes, indices and labels of images, in parts as they came.

    `size` is the images' height and width, None before there are any; `levels` those of all pixels, as long as they are those of
    a cast; of states that were added they are unknown, so all. `thumbnails` are by the order in which images came. `rounded` is
    whether pixels are uint8, and not float32 levels of 0 to 255.
    """

    def __init__(self, extractor: Extractor, rounded: bool = True):
        self.extractor, self.rounded = extractor, rounded
        self.size: tuple[int, int] | None = None
        self.levels: set[int] = set()
        self.parts: dict[str, list[np.ndarray]] = {"features": [], "spatial": [], "pixels": [], "indices": [], "labels": []}
        self.thumbnails: dict[int, np.ndarray] = {}
        self._kept: dict[int, int] = {}  # thumbnails by label

    @property
    def count(self) -> int:
        """How many images there are."""
        return sum(map(len, self.parts["indices"]))

    @property
    def _made_by(self) -> str:
        """Name and hash of the extractor, and of what, in a state."""
        return f"{self.extractor.name} {self.extractor.weights_sha256}{'' if self.rounded else ' of floats'}"

    def array(self, name: str) -> np.ndarray:
        """All parts of that name as one."""
        return np.concatenate([*self.parts[name], self._empty(name)])

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError if images before were of another size."""
        if self.size not in (None, (height, width)):
            raise ValueError(f"images of {width} x {height} after others of {self.size[1]} x {self.size[0]}")

    def check_kind(self, indices: np.ndarray, labels: np.ndarray) -> None:
        """Raise ValueError if only some of all images have an index, or a label."""
        for what, numbers in (("indices", indices), ("labels", labels)):
            before = self.parts[what]
            if before and len(numbers) and (before[0][0] == NONE) != (numbers[0] == NONE):
                raise ValueError(f"{what} are given for some images and not for others")

    def add(self, pixels: np.ndarray, indices: np.ndarray, labels: np.ndarray, shown: np.ndarray | None) -> None:
        """Add what the extractor makes of a batch (N, H, W, 3); of which images the report has pictures, `shown` (N,) says.

        Raises:
            UserError: if features are not finite, or all levels so far, of images enough, are those of a cast.
        """
        levels = pixels if self.rounded else np.rint(pixels).astype(np.uint8)
        self._look_at(levels)
        features, spatial = self.extractor.run(pixels)
        if not (features.isfinite().all() and (spatial is None or spatial.isfinite().all())):
            raise UserError("the features of an image are not finite; are the extractor's weights whole?")
        self._keep_some(levels, labels, shown)
        self.size = pixels.shape[1:3]
        hashes = b"".join(sha256(image).digest() for image in pixels)
        parts = {
            "features": features.cpu().numpy(),
            "spatial": np.empty((len(pixels), 0), np.float32) if spatial is None else spatial.cpu().numpy(),
            "pixels": np.frombuffer(hashes, np.uint8).reshape(len(pixels), DIGEST),
            "indices": indices,
            "labels": labels,
        }
        for name, rows in parts.items():
            self.parts[name].append(rows)

    def _look_at(self, pixels: np.ndarray) -> None:
        """Raise UserError if all levels so far, of images enough, are those of a cast."""
        if self.levels <= levels.CASTS:
            self.levels = self.levels.union(*map(levels.levels_in, pixels))
        if self.count + len(pixels) >= levels.LOOKED_AT:
            levels.require(self.levels, "the images")

    def _keep_some(self, pixels: np.ndarray, labels: np.ndarray, shown: np.ndarray | None) -> None:
        """Keep pictures of a batch: those that are `shown` (N,), or the first of the first classes."""
        start = self.count
        for row, label in enumerate(labels.tolist()):
            most = COLUMNS * (ROWS if label == NONE else 1)
            has_room = self._kept.get(label, 0) < most and (label in self._kept or len(self._kept) < KEPT_CLASSES)
            if has_room if shown is None else shown[row]:
                self._keep(start + row, label, thumbnail(pixels[row]))

    def _keep(self, place: int, label: int, picture: np.ndarray) -> None:
        self.thumbnails[place], self._kept[label] = picture, self._kept.get(label, 0) + 1

    def rows(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """The parts as `gathered` takes them, with the places of their images among all."""
        start = 0
        for features, spatial, pixels in zip(*(self.parts[name] for name in ("features", "spatial", "pixels")), strict=True):
            rows = {FEATURES: features, PIXELS: pixels} | ({SPATIAL: spatial} if spatial.shape[1] else {})
            yield positions[start : start + len(features)], rows
            start += len(features)

    def state(self) -> dict[str, Tensor | str]:
        """Everything, for `torch.save`."""
        pictures = list(self.thumbnails.values())
        return {
            **{name: torch.from_numpy(self.array(name)) for name in self.parts},
            "size": torch.tensor(self.size or (0, 0)),
            "kept": torch.tensor(list(self.thumbnails), dtype=torch.int64),
            "thumbnails": torch.from_numpy(np.stack(pictures)) if pictures else torch.empty(0, 0, 0, 3, dtype=torch.uint8),
            "extractor": self._made_by,
        }

    def add_state(self, state: dict[str, Tensor | str]) -> None:
        """Add a state.

        Raises:
            ValueError: if it is not a whole one, of another extractor, or of images of another size; then all is as it was.
        """
        arrays = self._read(state)
        if not len(arrays["indices"]):
            return
        height, width = arrays["size"].tolist()
        self.check_size(height, width)
        self.check_kind(arrays["indices"], arrays["labels"])
        start, self.size, self.levels = self.count, (height, width), set(range(256))
        for name, parts in self.parts.items():
            parts.append(arrays[name])
        for place, image in zip(arrays["kept"].tolist(), arrays["thumbnails"], strict=True):
            self._keep(start + place, int(arrays["labels"][place]), image)

    def _read(self, state: dict[str, Tensor | str]) -> dict[str, np.ndarray]:
        """The arrays of a state."""
        try:
            arrays = {name: np.asarray(state[name]) for name in (*self.parts, "size", "kept", "thumbnails")}
            theirs, (height, width) = str(state["extractor"]), (int(side) for side in arrays["size"])
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"this is no state of an evaluator ({error})") from error
        if theirs != self._made_by:
            raise ValueError(f"the state was made with the extractor {theirs}, and this is {self._made_by}")
        check_state(arrays, {name: self._empty(name) for name in self.parts}, height, width)
        return arrays

    def _empty(self, name: str) -> np.ndarray:
        """No images' part of that name."""
        shape, dtype = {
            "features": ((0, self.extractor.dimension), np.float32),
            "spatial": ((0, self.extractor.spatial_dimension), np.float32),
            "pixels": ((0, DIGEST), np.uint8),
        }.get(name, ((0,), np.int64))
        return np.empty(shape, dtype)


def bytes_of_image(extractor: Extractor) -> int:
    """The fields that are kept of an image."""
    return 4 * (extractor.dimension + extractor.spatial_dimension) + DIGEST + 16


def check_state(arrays: dict[str, np.ndarray], empty: dict[str, np.ndarray], height: int, width: int) -> None:
    """Raise ValueError if arrays of a state do not fit each other, or parts of it are not as `empty` ones."""

    def require(holds: bool, but: str) -> None:
        if not holds:
            raise ValueError(f"this is no whole state of an evaluator: its {but}")

    for name, wanted in {"size": (1, "iu"), "indices": (1, "iu"), "kept": (1, "iu"), "thumbnails": (4, "u")}.items():
        fits = (arrays[name].ndim, arrays[name].dtype.kind in wanted[1]) == (wanted[0], True)
        require(fits, f"{name} is {arrays[name].dtype} {arrays[name].shape}")
    count, kept, thumbnails = len(arrays["indices"]), arrays["kept"], arrays["thumbnails"]
    for name, part in empty.items():
        array = arrays[name]
        fits = array.dtype == part.dtype and array.shape == (count, *part.shape[1:])
        require(fits, f"{name} are {array.dtype} {array.shape}")
    require(all(np.isfinite(arrays[name]).all() for name in ("features", "spatial")), "features hold NaN or infinity")
    require(not count or (min(height, width) > 0 and height * width <= MAX_PIXELS), f"images are {width} x {height}")
    for name in ("indices", "labels"):
        require((arrays[name] == NONE).all() or (arrays[name] >= 0).all(), f"{name} are not those of all images")
    fits = len(kept) == len(thumbnails) and all(0 <= place < count for place in kept.tolist())
    require(fits, "thumbnails are of other images")
    if count:
        shape = thumbnail(np.zeros((height, width, 3), np.uint8)).shape
        require(not len(kept) or thumbnails.shape[1:] == shape, "thumbnails are of another size")


def names_by_label(given: Sequence[str] | Mapping[str, int]) -> tuple[str, ...]:
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


@dataclass(frozen=True)
class Form:
    """How batches are given: `layout` is NCHW or NHWC, None for tensors in the first and arrays in the second; `value_range` is
    of floats, (0, 1) or (-1, 1), None for uint8, or for levels of 0 to 255 where they are not `rounded`.

    Raises:
        UserError: if it is another.
    """

    layout: str | None = None
    value_range: tuple[float, float] | None = None
    rounded: bool = True

    def __post_init__(self):
        if self.layout not in (None, *LAYOUTS):
            raise UserError(f"layout={self.layout!r}: must be {' or '.join(LAYOUTS)}")
        if self.value_range is not None and tuple(self.value_range) not in RANGES:
            raise UserError(f"value_range={self.value_range!r}: must be {' or '.join(map(str, RANGES))}")

    def pixels(self, images: Tensor | np.ndarray) -> np.ndarray:
        """(N, H, W, 3) in C order: uint8, rounded half to even, or float32 levels where they are not rounded.

        Raises:
            ValueError: if they are of another layout, dtype or range.
        """
        images = self._laid_out(images)
        if self.value_range is not None and _is_float(images):
            images = self._levels(images)
            return np.rint(images).astype(np.uint8) if self.rounded else as_levels(images)
        return as_pixels(images) if self.rounded else as_levels(images)

    def _laid_out(self, images: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """A tensor as NCHW, an array as NHWC."""
        if self.layout is None or not isinstance(images, Tensor | np.ndarray):
            return images
        if images.ndim != 4 or images.shape[self.layout.index("C")] != 3:
            expected = "(N, 3, H, W)" if self.layout == "NCHW" else "(N, H, W, 3)"
            raise ValueError(f"images expected as {self.layout}, {expected}; got {tuple(images.shape)}")
        if isinstance(images, Tensor):
            return images if self.layout == "NCHW" else images.permute(0, 3, 1, 2)
        return images if self.layout == "NHWC" else images.transpose(0, 2, 3, 1)

    def _levels(self, images: Tensor | np.ndarray) -> np.ndarray:
        """Floats of `value_range` as levels of 0 to 255, (N, H, W, 3) float32."""
        array = images.detach().float().cpu().numpy() if isinstance(images, Tensor) else images.astype(np.float32)
        axis = 1 if isinstance(images, Tensor) else 3
        if array.ndim != 4 or array.shape[axis] != 3:
            raise ValueError(f"images expected as a tensor (N, 3, H, W) or array (N, H, W, 3); got {tuple(array.shape)}")
        low, high = self.value_range
        if array.size and not (array.min() >= low and array.max() <= high):  # nor is NaN
            found = f"{array.min():.4g} to {array.max():.4g}"
            raise ValueError(f"values expected from {low} to {high}, as value_range says; got {found}; clip them if they may be")
        array = np.moveaxis(array, axis, 3)
        return np.ascontiguousarray((array - np.float32(low)) * np.float32(255 / (high - low))).clip(0, 255)


def _is_float(images: Tensor | np.ndarray) -> bool:
    if isinstance(images, Tensor):
        return images.is_floating_point()
    return isinstance(images, np.ndarray) and images.dtype.kind == "f"


def as_pixels(images: Tensor | np.ndarray) -> np.ndarray:
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


def as_levels(images: Tensor | np.ndarray) -> np.ndarray:
    """(N, H, W, 3) float32 in C order, of a tensor (N, 3, H, W) or an array (N, H, W, 3) of floats from 0 to 255."""
    array = images
    if isinstance(images, Tensor) and images.ndim == 4 and images.is_floating_point():
        array = images.detach().float().cpu().permute(0, 2, 3, 1).numpy()
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.ndim != 4 or array.shape[3] != 3:
        what = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor | np.ndarray) else type(images).__name__
        raise ValueError(f"images expected as a tensor (N, 3, H, W) or array (N, H, W, 3) of floats; got {what}")
    if array.size and not (array.min() >= 0 and array.max() <= 255):  # nor is NaN
        raise ValueError(f"levels expected from 0 to 255; got {array.min():.4g} to {array.max():.4g}")
    return np.ascontiguousarray(array, np.float32)


def as_numbers(numbers: Tensor | np.ndarray | None, count: int, what: str) -> np.ndarray:
    """(count,) int64 from 0 to MOST; `NONE` where None is given."""
    if numbers is None:
        return np.full(count, NONE, dtype=np.int64)
    found = np.asarray(numbers.cpu() if isinstance(numbers, Tensor) else numbers)
    if found.shape != (count,) or (count and found.dtype.kind not in "iu") or (found < 0).any():
        raise ValueError(f"{what} expected as {count} integers from 0 on; got {found.dtype} {found.shape}")
    if count and found.max() > MOST:
        raise ValueError(f"{what} expected as integers up to {MOST:,}; got {found.max():,}")
    return found.astype(np.int64)
