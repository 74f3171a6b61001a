"""How much coverage, the share of fixed balls that samples fall into, varies from draw to draw.

Not a mean over samples, nor nearly one: it grows with them, so that what is left when a third of them is left out says how much
the coverage of two thirds varies, which is less where most balls are empty and more where few are.

Let U_r be 1 where no sample is in ball r. Of samples that come by a Poisson process, with l_r, l_s and l expected in ball r, in
ball s and in both, cov(U_r, U_s) = exp(-l_r - l_s) (e^l - 1). By Mecke's formula, the expected number of samples that are alone
in r and in s both is exp(-l_r - l_s) l e^l, that of pairs that alone are in both half of exp(-l_r - l_s) l^2 e^l, of triples a
sixth of exp(-l_r - l_s) l^3 e^l. So with g_A the number of balls whose samples are the set A, all pairs of balls are summed by

    S_k = k! sum of g_A^2 over sets A of k samples,     variance = S_1 E[(1 - e^-l) / l],

where the expectation is over l with weights exp(-l_r - l_s) l e^l, whose mean is S_2 / S_1 and whose mean square is S_3 / S_1:
a gamma distribution with these stands for it. What is smooth is averaged, where the same written as S_1 - S_2 / 2 + S_3 / 6 - ...
would alternate. A number of samples that is fixed, for all or for each class, takes away n (d coverage / d n)^2 of it.

Between two runs whose samples belong together, the same holds with l expected in ball r of the one and in s of the other at once;
in place of l e^l, which the balls of single samples add up to, is e^l - 1, the mean of l e^(u l) over u from 0 to 1. Balls of
samples that would be alone if each other one were left with probability 1 - t add up to u = t^2: so those tell how far two
runs' coverages go together.
"""

import numpy as np
from scipy.special import stdtrit

from fiducial.evaluation.metrics.intervals import Measured, moves_of, share

MARKS_SEED = 0
LARGEST_MARK = 1 << 50  # sums of three are exact in float64
LEFT = 0.25  # 1 - t: for l from 0 to 3, the mean over u is that at u = 0.5 to 0.62


def random_marks(count: int) -> np.ndarray:
    """(N,) float64 whole numbers by whose sums sets of up to three of N samples are told apart; always the same."""
    return np.random.default_rng(MARKS_SEED).integers(1, LARGEST_MARK, count).astype(np.float64)


def coverage_of(
    counts: np.ndarray,
    indices: np.ndarray,
    squares: np.ndarray,
    marks: np.ndarray,
    count: int,
    strata: np.ndarray | None = None,
) -> Measured:
    """The share of R balls that have a sample. Its interval is Wilson's, of as many independent balls as would vary as much, with
    Student's quantile: the variance is known by the few samples that have balls alone, some of which have many.

    Args:
        counts: (R,), how many samples are in each ball.
        indices: (R,), the sum of their indices, from 0 to N.
        squares: (R,), the sum of the squares of these.
        marks: (R,), the sum of their `random_marks`.
        count: N.
        strata: (N,), as `intervals.moves_of` takes them.
    """
    covered = int((counts > 0).sum())
    one, two = indices[counts == 1], (counts == 2)
    half, apart = indices[two] / 2, np.sqrt(np.maximum(2 * squares[two] - indices[two] ** 2, 0)) / 2
    alone = np.bincount(one.astype(np.int64), minlength=count).astype(np.float64)
    nearly = np.bincount(np.rint(np.concatenate([half - apart, half + apart])).astype(np.int64), minlength=count)
    variance = _variance(counts, alone, marks, strata)
    moves = moves_of(alone + LEFT * nearly, strata)
    if not (variance and moves.any()):
        return Measured(covered / len(counts))
    p, freedom = covered / len(counts), 2 * np.square(alone).sum() ** 2 / (alone**4).sum()
    if covered == len(counts):
        return Measured(p)
    found = share(covered, len(counts), p * (1 - p) / variance, float(stdtrit(freedom, 0.975)))
    return Measured(p, float(np.sqrt(variance)), found.low, found.high, moves=moves * np.sqrt(variance / np.square(moves).sum()))


def _variance(counts: np.ndarray, alone: np.ndarray, marks: np.ndarray, strata: np.ndarray | None) -> float:
    """Of the share, by how many balls each sample has `alone` (N,); 0 if none has any."""
    if not alone.any():
        return 0.0
    seen = np.square(moves_of(alone * (len(alone) / len(counts)), strata)).sum()
    sums = [factor * _squares(marks[counts == size]) for size, factor in ((1, 1), (2, 2), (3, 6))]
    kept, least = _kept(*sums)
    whole = sums[0] / len(counts) ** 2
    return float(max(seen - (1 - kept) * whole, least * whole))


def _squares(marks: np.ndarray) -> float:
    """The sum of the squares of how often each mark comes."""
    return float(np.square(np.unique(marks, return_counts=True)[1]).sum())


def _kept(first: float, second: float, third: float) -> tuple[float, float]:
    """E[(1 - e^-l) / l] by S_1, S_2 and S_3, and E[(1 - e^-l) / l - e^-l], the least that a fixed number of samples leaves."""
    mean = second / first
    if mean == 0:
        return 1.0, 0.0
    scale = max(third / first / mean - mean, 1e-3 * mean)  # variance over mean; a narrow one has the limit
    shape = mean / scale
    log, inverse = np.log1p(scale), 1 - shape
    kept = log / scale if abs(inverse) < 1e-9 else np.expm1(inverse * log) / (inverse * scale)
    return float(kept), float(kept - np.exp(-shape * log))
