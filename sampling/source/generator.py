"""Images that a user's own Python draws, under this package's plan, labels, noise, files and evaluation.

`--generator package.module:function` names a function `function(labels, noise, device, **options)`; see docs/generators.md.
"""

import importlib
import inspect
import operator
import random
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fiducial import Group, Stopped, UserError, file_sha256
from fiducial.classes import ClassNames, names_alone
from fiducial.models.decoders.rounding import NONE
from fiducial.sampling import plan
from fiducial.sampling.identity import Identity
from fiducial.sampling.noise import NOISE_VERSION, standard_normal
from fiducial.sampling.options import class_names as classes
from fiducial.sampling.options.config import SamplingConfig, generator_settings
from fiducial.sampling.plan import Plan, philox
from fiducial.sampling.source import numerics
from fiducial.sampling.source.numerics import REFERENCE
from fiducial.sampling.source.protocol import ResolvedRun

OF_EVERY_RUN = ("generator", "image_size", "num_classes", "labels", "global_seed", "exact")  # options in its identity
SEED_STREAM = 2  # second key word of what seeds a block's global generators


class Noise:
    """Standard normal noise of one block, each image's a pure function of seed, index and step."""

    def __init__(self, seed: int, indices: range, device: torch.device, check: Callable[[], object]):
        self.indices = indices
        self._seed, self._device, self._check = seed, device, check

    def __call__(self, shape: tuple[int, ...], step: int = 0) -> Tensor:
        """(n, *shape) float32 on the device. Equal arguments give equal noise; in another shape a step has the same numbers.

        Raises:
            ValueError: if `step` is no whole number of at least 0, such as the time of a sampler.
        """
        self._check()
        rows = [standard_normal(self._seed, index, counted(step), tuple(shape)) for index in self.indices]
        return torch.from_numpy(np.stack(rows)).to(self._device)


def counted(step: object) -> int:
    """The same step, a whole number of at least 0, or ValueError."""
    try:
        number = operator.index(step)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"noise(shape, step={step!r}): a step must be a whole number of at least 0; count those of the loop")
    return number


class Generator:
    """A source that calls a user's function once for each block."""

    ready = "a generator of yours"
    loading = "importing it"

    def __init__(self, config: SamplingConfig, identity: Identity, device: torch.device):
        self._config, self._plan, self._device = config, Plan.of(identity, config.num_fid_samples), device
        self._size, self._options = identity.image_size, options_of(config)

    def try_out(self, _: int) -> None:
        """Import the function; its images are looked at when they are drawn."""
        self.load()

    def switched(self) -> AbstractContextManager:
        return numerics.applied(REFERENCE, self._config, self._device)

    def begin(self, _: Callable[..., object]) -> None:
        """Nothing is noted."""

    def load(self) -> None:
        self._function = find_function(self._config.generator)

    def release(self) -> None:
        """Nothing: a function keeps what it wants."""

    def told(self, group: Group) -> None:
        group.wait()

    def lines(self, _: dict | None, evaluations: int) -> list[str]:
        calls = f": {evaluations:,} signs of life in a block" if evaluations else ""
        given = ", ".join(f"{name}={value!r}" for name, value in self._options.items())
        return [f"generator {self._config.generator}{f', {given}' if given else ''}{calls}"]

    def blocks(self, starts: Iterable[int], count: int, check: Callable[[], object]) -> Iterator[tuple[int, np.ndarray]]:
        for start in map(int, starts):
            yield start, self._block(range(start, start + self._plan.block_size), count, check)

    def _block(self, indices: range, count: int, check: Callable[[], object]) -> np.ndarray:
        check()
        own, seed = self._plan, self._plan.seed
        labels = plan.labels(own.spec, own.num_classes, seed, indices.start, indices.stop)
        seed_everything(seed, indices.start)
        noise = Noise(seed, indices, self._device, check)
        try:
            with torch.inference_mode():
                given = self._function(torch.from_numpy(labels).to(self._device), noise, self._device, **self._options)
        except Stopped:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(
                f"--generator {self._config.generator}: for images {indices.start} to {indices.stop - 1} it raised "
                f"{raised(error)} ({place_in(error, module_file(self._config.generator))})"
            ) from error
        try:
            return as_pixels(given, indices, self._size, count, rounded=self._config.rounding != NONE)
        except ValueError as error:
            raise UserError(f"--generator {self._config.generator}: {error}") from error


def raised(error: BaseException) -> str:
    """An exception's type, and what it says, as the end of a sentence."""
    if isinstance(error, SystemExit):
        return f"SystemExit, which would have ended the program with {error.code!r}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def place_in(error: BaseException, file: Path) -> str:
    """The last line of `file` that an exception came through, else the line where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if Path(frame.filename) == file), frames[-1])
    return f"{last.filename}, line {last.lineno}"


def as_pixels(given: object, indices: range, size: int, count: int, rounded: bool = True) -> np.ndarray:
    """(n, size, size, 3) uint8 of what a generator gave: uint8, or floats in [0, 1], as (n, H, W, 3) or (n, 3, H, W).

    Floats become round(255 x), half to even; not `rounded`, float32 levels 255 x, and uint8 is refused. Images from index `count`
    on, which only fill up a block, may hold anything.

    Raises:
        ValueError: in one sentence, if it is anything else.
    """
    if not isinstance(given, Tensor | np.ndarray):
        raise ValueError(f"gave {type(given).__name__}, not an array or tensor of images")
    images = given.detach().float() if isinstance(given, Tensor) and given.is_floating_point() else given
    images = images.cpu().numpy() if isinstance(images, Tensor) else images
    whole, turned = (len(indices), size, size, 3), (len(indices), 3, size, size)
    if images.shape not in (whole, turned):
        raise ValueError(
            f"gave shape {tuple(images.shape)} for {len(indices)} labels, not {whole} or {turned}; --image-size is {size}"
        )
    images = images.transpose(0, 2, 3, 1) if images.shape == turned else images
    if images.dtype == np.uint8 and not rounded:
        raise ValueError("gave uint8, of which --rounding none has no floats; give floats in [0, 1], or leave it out")
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    if images.dtype.kind != "f":
        raise ValueError(f"gave {images.dtype}; give uint8, or floats in [0, 1]")
    images = np.where((np.arange(indices.start, indices.stop) < count)[:, None, None, None], images, 0)
    if not (finite := np.isfinite(images).reshape(len(images), -1).all(axis=1)).all():
        raise ValueError(f"gave NaN or infinity for image {indices[int(np.argmin(finite))]}")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        remedy = (
            "; (x + 1) / 2 makes them so of [-1, 1]" if -1 <= low < 0 and high <= 1 else "; x.clip(0, 1) cuts off what is beyond"
        )
        raise ValueError(f"gave values from {low:.4g} to {high:.4g}; give floats in [0, 1], or uint8{remedy}")
    levels = 255 * images.astype(np.float32)
    return np.rint(levels).astype(np.uint8) if rounded else np.ascontiguousarray(levels)


def seed_everything(seed: int, start: int) -> None:
    """Seeds the global generators of Python, numpy and torch by the block, for code that draws from them by itself."""
    word = int(philox(seed, SEED_STREAM, [start, 0, 0, 0]).random_raw(1)[0])
    random.seed(word)
    np.random.seed(word % (1 << 32))
    torch.manual_seed(word % (1 << 63))


def find_function(name: str) -> Callable[..., object]:
    """The function that `package.module:function` names; modules of the current directory are found, too.

    Raises:
        UserError: if the module cannot be imported, or has no such function.
    """
    module, _, attribute = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (Exception, SystemExit) as error:  # whatever a module of somebody's raises
        raise UserError(f"--generator {name}: {module} cannot be imported ({raised(error).splitlines()[0]})") from error
    if not callable(found):
        what = "has no function" if found is None else "has, but not as a function,"
        raise UserError(f"--generator {name}: {module} {what} {attribute}")
    return found


def require_arguments(function: Callable[..., object], config: SamplingConfig) -> None:
    """Raise UserError if a function cannot be called with (labels, noise, device) and the options that are given."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # as of functions that are not written in Python
        return
    try:
        signature.bind("labels", "noise", "device", **options_of(config))
    except TypeError as error:
        given = f" and --generator-options {config.generator_options}" if config.generator_options else ""
        raise UserError(
            f"--generator {config.generator}: cannot be called with (labels, noise, device){given} ({error})"
        ) from error


def module_file(name: str) -> Path:
    """The file of the module that `package.module:function` names, once it is imported."""
    module = name.partition(":")[0]
    if not (file := getattr(sys.modules[module], "__file__", None)):
        raise UserError(f"--generator {name}: {module} has no file, whose hash would tell this run from others; give a .py file")
    return Path(file)


def options_of(config: SamplingConfig) -> dict[str, int | float | str]:
    """Keyword arguments of the function, from `--generator-options`: numbers where they are some, else text."""
    options: dict[str, int | float | str] = {}
    for name, text in generator_settings(config).items():
        for kind in (int, float, str):
            try:
                options[name] = kind(text)
                break
            except ValueError:
                continue
    return options


def is_asked_for(config: SamplingConfig) -> bool:
    return config.generator is not None


def check_given(config: SamplingConfig, _: Group) -> None:
    config.validate()
    require_arguments(find_function(config.generator), config)


def require_here(_: SamplingConfig) -> None:
    """It takes no published files."""


def fetch(config: SamplingConfig, _: Group) -> SamplingConfig:
    """Nothing is downloaded for it."""
    config.validate()
    return config


def resolve(config: SamplingConfig, group: Group) -> ResolvedRun:
    """The run of a generator: its module's hash, its options, and what every run has."""
    find_function(config.generator)
    file = module_file(config.generator)
    names: ClassNames | None = names_alone(config.class_names, config.num_classes)
    numbered = replace(config, labels=classes.numbered(config.labels, names))
    numbered.validate()
    identity = {
        **{name: getattr(numbered, name) for name in OF_EVERY_RUN},
        "generator_sha256": file_sha256(file),
        "generator_options": ",".join(sorted("=".join(pair) for pair in generator_settings(config).items())),
        "per_proc_batch_size": config.per_proc_batch_size,
        "noise": NOISE_VERSION,
        **({"rounding": NONE} if config.rounding == NONE else {}),
        **({"device_type": group.device.type} if config.exact else {}),
    }
    return ResolvedRun(numbered, Identity(identity), names, {}, {"generator": str(file)})


def open_source(config: SamplingConfig, identity: Identity, _: Mapping[str, object], group: Group) -> Generator:
    """On every rank; on all but rank 0, the module is made sure of."""
    if not group.is_main:
        find_function(config.generator)
        file = module_file(config.generator)
        if file_sha256(file) != identity.values["generator_sha256"]:
            raise UserError(f"{file} on rank {group.rank} is another file than on rank 0")
    return Generator(config, identity, group.device)
