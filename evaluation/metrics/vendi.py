"""The Vendi score: as how many different images the samples count."""

import numpy as np

from fiducial import Group, UserError
from fiducial.evaluation.metrics import linear
from fiducial.evaluation.metrics.inputs import Inputs
from fiducial.evaluation.metrics.intervals import ROWS, Measured, measured, moves_of, over_rows


def vendi(inputs: Inputs) -> Measured:
    """The score of the samples' features.

    Raises:
        UserError: if it is not defined.
    """
    score = vendi_score(inputs.own.rows, inputs.group, inputs.strata)
    if score is None:
        raise UserError("--metrics vendi: all features of an image are 0, so that it has no direction to be compared by")
    return score


def vendi_score(rows: np.ndarray, group: Group, strata: np.ndarray | None = None) -> Measured | None:
    """Vendi score (arXiv 2210.02410) of features (N, D) with the cosine as similarity: as how many different images they count.

    exp of the entropy of the eigenvalues of X'X / N with rows of length 1, which are those of the N x N similarities over N.
    A sample x moves it by the score times -x' log(X'X / N) x - entropy. None if a row is all zeros, which has no direction.
    """
    dimension = rows.shape[1]
    moment = np.zeros((dimension, dimension))
    for number, start in enumerate(range(0, len(rows), ROWS)):
        if number % group.world_size == group.rank:
            group.check()
            part = _directions(rows[start : start + ROWS])
            moment += part.T @ part
    moment = group.sum(moment) / len(rows)
    if moment.trace() < 1 - 0.5 / len(rows):
        return None
    values, vectors = linear.eigen(moment, group.device)
    kept = values > 1e-15
    values, vectors = values[kept], vectors[:, kept]
    score = float(np.exp(-(values * np.log(values)).sum()))
    root = vectors * np.sqrt(-np.log(np.minimum(values, 1.0)))
    influences = over_rows(rows, lambda part: np.square(_directions(part) @ root).sum(1), group)
    return measured(score, moves_of(score * influences, strata), 1)


def _directions(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64; those of zeros stay as they are."""
    rows = rows.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)
