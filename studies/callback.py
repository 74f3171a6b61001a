"""FID in a training loop: every so many steps some images of the same noise and labels are drawn and evaluated.

    from fiducial.studies.callback import FidCallback

    fid = FidCallback(sample, (4, 32, 32), "adm-imagenet-256", count=5000, every=10_000, num_classes=1000, log=wandb.log)
    for step, batch in enumerate(loader, start=1):
        ...
        fid(step, ema)                           # on every rank

FID falls with the number of images, so that of 5,000 is no FID-50K: its name says how many there were, `fid_5k`. Because noise
and labels are the same each time, two values of one run differ by what was learned, and less by chance than their intervals say,
which are those of a single value.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import fiducial
from fiducial import Group, UserError
from fiducial.evaluation import Evaluator, Settings
from fiducial.evaluation.report.scalars import scalars, sheet_of
from fiducial.evaluation.results.result import Result
from fiducial.sampling import plan
from fiducial.sampling.noise import standard_normal

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Log = Callable[[dict[str, float], int], object]


class Sample(Protocol):
    """Images of a model: (n, 3, H, W) as a tensor or (n, H, W, 3) as an array, uint8, or floats where there is a `value_range`.

    Args:
        noise: (n, *shape) float32, standard normal, on the device.
        labels: (n,) int64, on the device; None where there are no classes.
    """

    def __call__(self, model: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor | np.ndarray: ...


class FidCallback:
    """FID of `count` images every so many steps of a training, with its 95 % interval; to be made and called by all ranks.

    The images are drawn in blocks of `batch_size`, in which the ranks take turns: each image's noise and label, and torch's
    random numbers while its block is drawn, depend on its index alone, so not on the step or the number of ranks. All ranks draw
    equally many blocks. The model is in evaluation mode meanwhile; modes, random states and gradients are afterwards as they
    were. Between two calls nothing is kept but the reference and the extractor.

    Args:
        sample: draws images, see `Sample`; `NetworkSampler` is one, for a network of `fiducial.models`.
        shape: of the noise of one image, such as (4, 32, 32).
        ref: as `--ref` of `python -m evaluation calc`.
        count: images, at least 2; FID has a bias that depends on it.
        every: steps; a call at another step does nothing.
        num_classes: None for a model without classes.
        labels: as `--labels`: balanced, random, null, or a list such as 7,7,3-5.
        seed: of noise and labels.
        batch_size: images that are drawn at once on a rank.
        metrics: names, as of `--metrics`.
        log: called on rank 0 with the values by name and the step, as `wandb.log` can be; or a TensorBoard `SummaryWriter`,
            which gets a sheet of images as well; or several of them.
        value_range: of floats that `sample` gives, (0, 1) or (-1, 1); what lies beyond is cut off.
        more: `group`, `settings`, `extractor`, `weights` and `device` as `Evaluator` takes them.

    Raises:
        UserError: if something given cannot be used, before anything is drawn.
    """

    def __init__(
        self,
        sample: Sample,
        shape: Sequence[int],
        ref: str | Path,
        *,
        count: int = 5000,
        every: int = 1,
        num_classes: int | None = None,
        labels: str = "balanced",
        seed: int = 0,
        batch_size: int = 64,
        metrics: Sequence[str] | str = ("fid",),
        log: Log | object | Sequence = (),
        value_range: tuple[float, float] | None = None,
        group: Group | None = None,
        device: str = "auto",
        settings: Settings | None = None,
        **more: object,
    ):
        for name, value, least in (("count", count, 2), ("every", every, 1), ("batch_size", batch_size, 1)):
            if type(value) is not int or value < least:
                raise UserError(f"FidCallback({name}={value!r}): must be a whole number of at least {least}")
        self._sample, self._shape, self.count, self.every = sample, tuple(shape), count, every
        self._labels = _labels(labels, num_classes, seed, count, batch_size)
        self._seed, self._batch, self._value_range = seed, batch_size, value_range
        self._logs = [_log_of(one) for one in (log if isinstance(log, list | tuple) else [log])]
        self.group = group or fiducial.init(device)
        _require_all_ranks(self.group)
        self._evaluator = Evaluator(
            ref, self.group, settings, metrics=metrics, value_range=value_range, name=f"{count:,} images in training", **more
        )

    def __call__(self, step: int, model: nn.Module) -> dict[str, float] | None:
        """The values by name, `fid_5k`, `fid_5k/low` and `fid_5k/high`, on rank 0, if `step` is one of those; else None.

        Args:
            model: whose images are drawn, often the average of the weights; a DistributedDataParallel is unwrapped.

        Raises:
            UserError: as `Evaluator.update` and `compute`.
        """
        return None if step % self.every else self.evaluate(step, model)

    def evaluate(self, step: int, model: nn.Module) -> dict[str, float] | None:
        """The same at any step."""
        network = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        try:
            with as_before(network), torch.no_grad():
                for start, is_own in self._starts():
                    self._draw(network, start, is_own)
            with torch.autocast(self.group.device.type, enabled=False):
                result = self._evaluator.compute()
        finally:
            self._evaluator.reset()
        if result is None:
            return None
        values = named(result, self.count)
        for log in self._logs:
            log(values, step, sheet_of(result.grid))
        return values

    def _starts(self) -> Iterator[tuple[int, bool]]:
        """Where this rank's blocks begin; False beside one that is drawn only because others draw one."""
        rank, world_size, size = self.group.rank, self.group.world_size, self._batch
        blocks = -(-self.count // size)
        for turn in range(-(-blocks // world_size)):
            number = turn * world_size + rank
            yield (number * size, True) if number < blocks else (0, False)

    def _draw(self, network: nn.Module, start: int, is_own: bool) -> None:
        """Draw the block that begins with image `start`, whole, and have what is wanted of it evaluated."""
        indices, device = np.arange(start, start + self._batch), self.group.device
        noise = np.stack([standard_normal(self._seed, index, 0, self._shape) for index in indices.tolist()])
        labels = None if self._labels is None else self._labels[indices]
        seed_everything(self._seed, start)
        given = None if labels is None else torch.from_numpy(labels).to(device)
        images = self._sample(network, torch.from_numpy(noise).to(device), given)
        if len(images) != self._batch:
            raise UserError(f"FidCallback: sample gave {len(images)} images for the noise of {self._batch}")
        if not is_own:
            return
        wanted = min(self._batch, self.count - start)
        if self._value_range is not None:
            images = images.clip(*self._value_range)
        with torch.autocast(device.type, enabled=False):
            self._evaluator.update(images[:wanted], indices[:wanted], None if labels is None else labels[:wanted])


def _labels(spec: str, num_classes: int | None, seed: int, count: int, batch_size: int) -> np.ndarray | None:
    """The labels of all blocks, the last one whole."""
    if num_classes is None:
        return None
    try:
        plan.parse_labels(spec, num_classes)
    except ValueError as error:
        raise UserError(f"FidCallback(labels={spec!r}): {error}") from error
    return plan.labels(spec, num_classes, seed, 0, -(-count // batch_size) * batch_size)


def _require_all_ranks(group: Group) -> None:
    """Raise UserError if torch.distributed has more ranks than were found by the launcher's environment."""
    if dist.is_initialized() and dist.get_world_size() != group.world_size:
        raise UserError(
            f"FidCallback: torch.distributed has {dist.get_world_size()} ranks, and the environment tells of {group.world_size}; "
            "start with torchrun, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT"
        )


def _log_of(log: object) -> Callable[[dict[str, float], int, np.ndarray | None], object]:
    """A function of values, step and sheet, for any kind of log."""
    if hasattr(log, "add_scalar"):
        return lambda *given: _write(log, *given)
    if not callable(log):
        raise UserError(f"FidCallback(log={log!r}): must be a function of values and step, a SummaryWriter, or a list of those")
    return lambda values, step, _: log(values, step)


def _write(writer: "SummaryWriter", values: dict[str, float], step: int, sheet: np.ndarray | None) -> None:
    """Add values and sheet to TensorBoard's events."""
    for name, value in values.items():
        writer.add_scalar(name, value, step)
    if sheet is not None:
        writer.add_image("samples", sheet, step, dataformats="HWC")
    writer.flush()


def short(count: int) -> str:
    """A number of images in a name: 5k for 5,000, and others as they are."""
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)


def named(result: Result, count: int) -> dict[str, float]:
    """The numbers of a result and the ends of their intervals, by names that say of how many images: `fid_5k`, `fid_5k/low`."""
    plain = {key: one.name for key, one in result.metrics.items()}
    found = {}
    for name, value in scalars(result).items():
        key, slash, end = name.partition("/")
        first = plain[key] if key.startswith(plain[key]) else key.partition("-")[0]  # fd of fd-dinov2
        found[f"{first}_{short(count)}{key.removeprefix(first)}{slash}{end}"] = value
    return found


def seed_everything(seed: int, start: int) -> None:
    """Set the random numbers of torch, numpy and Python by the block that is drawn."""
    words = np.random.SeedSequence([seed, start]).generate_state(2)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[1]))


@contextmanager
def as_before(model: nn.Module) -> Iterator[None]:
    """Evaluation mode in here; afterwards each module's mode and all random states are as they were."""
    modes: Mapping[nn.Module, bool] = {module: module.training for module in model.modules()} if model is not None else {}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        if model is not None:
            model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
