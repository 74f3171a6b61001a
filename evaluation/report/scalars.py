"""A result for TensorBoard: each number with its interval, and a sheet of samples."""

from pathlib import Path

import numpy as np

from fiducial import UserError, tensorboard
from fiducial.evaluation.results.grid import Grid
from fiducial.evaluation.results.result import Result
from fiducial.sheets import side_by_side


def scalars(result: Result) -> dict[str, float]:
    """The numbers by the keys of the JSON, such as `fid`, each with the ends of its 95 % interval as `fid/low` and `fid/high`
    where that is known."""
    found = {}
    for key, one in result.metrics.items():
        found[key] = one.value
        found |= {f"{key}/{end}": value for end, value in (("low", one.low), ("high", one.high)) if value is not None}
    return found


def sheet_of(grid: Grid) -> np.ndarray | None:
    """The pictures of a report side by side, a row a class; (height, width, 3) uint8, white where there is none. None without
    pictures."""
    rows = [[grid.kept[index] for index in indices if index in grid.kept] for _, indices in grid.rows]
    rows = [row for row in rows if row]
    return side_by_side(rows) if rows else None


def step_of(result: Result, step: int | None = None) -> int:
    """The step that a result is written at: the training step that was given, or is in the name of the run's checkpoint; else the
    number of images."""
    named = tensorboard.step_in(result.run.files.get("ckpt")) if result.run else None
    return next(one for one in (step, named, result.samples["count"]) if one is not None)


def write_tensorboard(result: Result, folder: Path, step: int | None = None) -> None:
    """Add a result to the events in `folder`, at `step_of`; on rank 0.

    Raises:
        UserError: if they cannot be written.
    """
    at = step_of(result, step)
    try:
        with tensorboard.writer(folder) as writer:
            for name, value in scalars(result).items():
                writer.add_scalar(name, value, at)
            if (sheet := sheet_of(result.grid)) is not None:
                writer.add_image("samples", sheet, at, dataformats="HWC")
    except OSError as error:
        raise UserError(f"--tensorboard {folder}: it cannot be written ({error.strerror or error})") from error
