"""TensorBoard's files of events, where its package is installed; no number depends on them."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fiducial.console import UserError
from fiducial.folders import unwritable

if TYPE_CHECKING:
    import argparse

    from torch.utils.tensorboard import SummaryWriter

# A checkpoint's name is a number alone, such as 0400000.pt, or has one after a word that says that it is a step.
STEP = re.compile(r"(?:\A|[^a-z])(?:steps?|iters?|iterations?|ckpt|checkpoint)[-_=. ]?(\d+)(?!\d)", re.IGNORECASE)
MOST = (1 << 63) - 1  # of a step, in the files


def require(folder: Path, step: int | None = None) -> None:
    """Check `--tensorboard DIR` and `--step` before anything expensive begins.

    Raises:
        UserError: if the package is not installed, the folder cannot be written, or the step is none.
    """
    if find_spec("tensorboard") is None:
        raise UserError(f"--tensorboard {folder}: needs the package tensorboard; pip install tensorboard brings it")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--tensorboard {folder}: it is a file, not a folder")
    if reason := unwritable(folder):
        raise UserError(f"--tensorboard {folder}: it cannot be written ({reason})")
    require_step(step)


def add_options(where: "argparse._ActionsContainer", written: str) -> None:
    """The options `--tensorboard DIR`, whose help says what is written, and `--step N`."""
    where.add_argument(
        "--tensorboard",
        type=Path,
        metavar="DIR",
        help=f"write {written} there, for TensorBoard (docs/watching.md)",
    )
    where.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="the training step that --tensorboard writes numbers at (default: that in the checkpoint's name, as in 0400000.pt, "
        "or the number of images)",
    )


def check(folder: Path | None, step: int | None) -> None:
    """Check what was given for both options; UserError as `require`, and for a step without a folder."""
    if folder is not None:
        require(folder, step)
    elif step is not None:
        raise UserError("--step: only used with --tensorboard, which is missing")


def require_step(step: int | None) -> None:
    """Raise UserError for a `--step` that cannot be one."""
    if step is not None and not 0 <= step <= MOST:
        raise UserError(f"--step {step}: must be a training step, from 0 on")


def writer(folder: Path) -> "SummaryWriter":
    """A writer of events into `folder`; UserError if it cannot be written."""
    from torch.utils.tensorboard import SummaryWriter

    try:
        return SummaryWriter(str(folder))
    except OSError as error:
        raise UserError(f"--tensorboard {folder}: it cannot be written ({error.strerror})") from error


def step_in(name: str | None) -> int | None:
    """The training step in the name of a checkpoint's file, such as 400000 in `0400000.pt` or `ema-step=400000.safetensors`; None
    where it has none."""
    stem = Path(name or "").name.partition(".")[0]
    if stem.isascii() and stem.isdecimal():
        return int(stem) if int(stem) <= MOST else None
    found = STEP.findall(Path(name or "").stem)
    return int(found[-1]) if found and int(found[-1]) <= MOST else None
