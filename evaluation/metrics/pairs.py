"""Metrics of reconstructions beside their originals, with intervals over images: what as many other images would give.

A mean over images has the standard error of independent values. For rFID to the originals, both distributions are of the same
images: the delta method adds what an image moves the distance by as a reconstruction and as an original, and takes the error of
the sum, in which most of both cancels. To a reference of other images, that one is held fixed.

Each error is the length of a vector, the number's moves, one an image: the error of a difference between two codecs on the same
images is the length of the difference of their moves.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fiducial import Group
from fiducial.evaluation.data.references import Reference
from fiducial.evaluation.features.extraction import Features
from fiducial.evaluation.metrics.gaussians import frechet_distance, frechet_influences
from fiducial.evaluation.metrics.inputs import Once
from fiducial.evaluation.metrics.intervals import ENOUGH, ROUNDING, Measured, length, measured, moves_of, over_rows
from fiducial.evaluation.metrics.similarity import psnr_of
from fiducial.evaluation.metrics.statistics import FeatureStatistics

ERROR = "mse"  # the column of mean squared errors


@dataclass(frozen=True)
class PairInputs(Once):
    """N reconstructions beside their originals; the same on every rank.

    `columns` are values of each image (N,) by name: `ERROR`, ssim, lpips and lpips-vgg, as far as they are wanted. `own` are the
    features of the reconstructions and `originals` those of their originals, None where `reference` is of other images, and both
    where no distance is wanted.
    """

    columns: Mapping[str, np.ndarray]
    group: Group
    own: Features | None = None
    originals: Features | None = None
    reference: Reference | None = None


def psnr(inputs: PairInputs) -> Measured | None:
    """The mean over the images whose PSNR is finite; None where there is none, all being equal to their originals."""
    return _mean(psnr_values(inputs.columns[ERROR]))


def ssim(inputs: PairInputs) -> Measured:
    return _mean(inputs.columns["ssim"], -1, 1)


def lpips(inputs: PairInputs) -> Measured:
    return _mean(inputs.columns["lpips"], 0)


def lpips_vgg(inputs: PairInputs) -> Measured:
    return _mean(inputs.columns["lpips-vgg"], 0)


def psnr_values(errors: np.ndarray) -> np.ndarray:
    """(N,): the PSNR in dB of mean squared errors (N,), infinite where that is 0."""
    return np.array([psnr_of(error) for error in errors.tolist()])


def rfid(inputs: PairInputs) -> Measured:
    """The Fréchet distance of the reconstructions' features to the reference's moments, or to those of the originals."""
    own, originals, group = inputs.own, inputs.originals, inputs.group
    if originals is None:
        mu, sigma = inputs.reference.mu, inputs.reference.sigma
    else:
        mu, sigma = originals.statistics.mean, originals.statistics.covariance
    value = group.once(lambda: float(frechet_distance(own.statistics.mean, own.statistics.covariance, mu, sigma, group.device)))
    if originals is not None and own.pixels_sha256 == originals.pixels_sha256:
        return Measured(0.0)  # of which rounding leaves something else
    moves = _moves_of_rfid(own, originals, mu, sigma, group)
    if len(own.rows) < ENOUGH or (moves is not None and length(moves) <= ROUNDING * own.statistics.covariance.trace()):
        moves = None
    return measured(value, moves, 0)


def _moves_of_rfid(
    own: Features, originals: Features | None, mu: np.ndarray, sigma: np.ndarray, group: Group
) -> np.ndarray | None:
    """(N,); None where images are too few for a covariance of full rank."""
    count, dimension = own.rows.shape
    if count <= dimension:
        return None
    found = over_rows(own.rows, frechet_influences(own.statistics, mu, sigma, group), group)
    if originals is not None:
        mine: FeatureStatistics = own.statistics
        back = frechet_influences(originals.statistics, mine.mean, mine.covariance, group)
        found = found + over_rows(originals.rows, back, group)
    return moves_of(found)


def _mean(values: np.ndarray, least: float = -np.inf, most: float = np.inf) -> Measured | None:
    """The mean of the finite ones among `values` (N,), with its standard error over images."""
    is_finite = np.isfinite(values)
    count = int(is_finite.sum())
    if not count:
        return None
    moves = np.zeros(len(values))
    moves[is_finite] = moves_of(values[is_finite])
    return measured(float(values[is_finite].mean()), moves if count >= ENOUGH else None, least, most)
