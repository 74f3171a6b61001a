"""The rows of a checkpoint's label table: one a class and, after them, the null label's, unless it was trained without one.

Shapes alone do not tell 17 classes without a null label from 16 with one; what a file says of its training does.
"""

from pathlib import Path

from fiducial import UserError
from fiducial.models.checkpoints.checkpoint import Checkpoint
from fiducial.models.checkpoints.shapes import describe, takes_any_size
from fiducial.models.networks.table import NETWORKS, USUAL

TABLE = "y_embedder.embedding_table.weight"


def classes_of(found: Checkpoint) -> tuple[int, bool]:
    """How many classes a described checkpoint was trained on, and whether it has a null label."""
    rows = len(found.state[TABLE])
    has_null = rows > 1 and rows != found.trained_classes
    return rows - has_null, has_null


def contradictions(found: Checkpoint, path: Path, image_size: int) -> list[str]:
    """Contradictions, in words, between what a described checkpoint says of its training and its weights, which draw such
    images."""
    shape = describe(found.state, path, found.family if found.family in NETWORKS else USUAL)
    sizes = found.said.image_sizes if takes_any_size(shape["model"]) else (image_size, shape["latent"].size)
    return found.said.contradictions(len(found.state[TABLE]), shape["model"], sizes)


def has_null_label(found: Checkpoint, path: Path, num_classes: int, unguided: bool) -> bool:
    """Whether the last row of a described checkpoint is the null label's, for a run of so many classes.

    Args:
        unguided: the run needs no null label.

    Raises:
        UserError: if the file says otherwise of itself, or there is no null label and the run needs one.
    """
    rows, (own, has_null) = len(found.state[TABLE]), classes_of(found)
    if num_classes not in (rows, rows - 1) or (has_null and num_classes == own):
        return True  # and `check_shape` says if that is not so
    if not has_null:
        if num_classes == rows and unguided:
            return False
        of = f"{rows} rows for {rows} classes" if rows > 1 else "one row"
        raise UserError(
            f"{path} was trained without a null label, as its label table of {of} says, so it can neither be guided nor drawn "
            f"without a class; give --num-classes {rows} --cfg-scale 1.0"
        )
    return not unguided or found.trained_classes == own
