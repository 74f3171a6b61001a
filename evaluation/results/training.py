"""Runs of several checkpoints, trained alike from different seeds: how numbers vary from one training, or draw, to the next.

A value is taken as the mean over all trainings, plus what is this training's own, plus what is this draw's own (a model of random
effects). What trainings differ by is seen in the means of their checkpoints, less what the draws would make those differ by.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fiducial.evaluation.metrics import METRICS
from fiducial.evaluation.metrics.intervals import NORMAL, estimate
from fiducial.evaluation.results.pairing import Pairs
from fiducial.evaluation.results.reading import Known

CHECKPOINT = "checkpoint_sha256"  # in a run's identity


@dataclass(frozen=True)
class Axes:
    """One metric over `trainings` checkpoints: the mean, and how far it is known.

    Over trainings, where they are two at least: `error`, `low` and `high` by Student's t of the checkpoints' means, whose
    standard deviation is `seen`; `spread` is that of trainings alone, without what draws make them differ by, None where that is
    not known. Over draws from the same checkpoints: `sampling_error`, `sampling_low` and `sampling_high`, by the runs' own
    intervals; `sampling_spread` is the standard deviation of a draw, seen between seeds where a checkpoint has several, else
    promised.
    """

    trainings: int
    mean: float
    error: float | None
    low: float | None
    high: float | None
    seen: float | None
    spread: float | None
    sampling_error: float | None
    sampling_low: float | None
    sampling_high: float | None
    sampling_spread: float | None


def axes_of(checkpoints: Mapping[str, Sequence[Known]], pairs: Pairs) -> dict[str, Axes]:
    """Of the runs of each checkpoint, by the keys of the numbers that all of them have."""
    runs = [one for pool in checkpoints.values() for one in pool]
    keys = [key for key in runs[0].numbers if all(key in one.numbers for one in runs)]
    paired = [_paired(pairs, *two) for two in itertools.combinations(checkpoints.values(), 2)]
    return {key: _axes(key, list(checkpoints.values()), [found.get(key) for found in paired]) for key in keys}


def _paired(pairs: Pairs, pool: Sequence[Known], others: Sequence[Known]) -> dict[str, float]:
    """The errors of a difference between two checkpoints that were drawn from alike; empty if they were not."""
    try:
        return pairs.errors(pool, others)
    except ValueError:
        return {}


def _axes(key: str, pools: list[Sequence[Known]], paired: list[float | None]) -> Axes:
    """Of one number. `paired` are the errors of the differences between two checkpoints each, as far as they are known."""
    count, bounds = len(pools), METRICS[pools[0][0].numbers[key].name].bounds
    values = [[one.numbers[key].value for one in pool] for pool in pools]
    errors = [[one.numbers[key].error for one in pool] for pool in pools]
    means = np.array([np.mean(of_one) for of_one in values])
    mean, known = float(means.mean()), all(error is not None for of_one in errors for error in of_one)
    within = [float(np.square(of_one).sum()) / len(of_one) ** 2 for of_one in errors] if known else None
    sampling = estimate(mean, float(np.sqrt(np.sum(within)) / count) if known else None, *bounds)
    seen = float(means.std(ddof=1)) if count > 1 else None
    over = estimate(mean, seen and seen / np.sqrt(count), *bounds, quantile=_quantile(count - 1))
    spread = None
    if count > 1 and known:
        apart = [np.hypot(*two) for two in itertools.combinations(np.sqrt(within), 2)]
        of_draws = np.mean([np.square(one if one is not None else other) / 2 for one, other in zip(paired, apart, strict=True)])
        spread = float(np.sqrt(max(seen**2 - of_draws, 0.0)))
    own = (sampling.error, sampling.low, sampling.high, _of_a_draw(values, errors if known else None))
    return Axes(count, mean, over.error, over.low, over.high, seen, spread, *own)


def _of_a_draw(values: list[list[float]], errors: list[list[float]] | None) -> float | None:
    """Standard deviation of a single draw's value about its checkpoint's mean."""
    freedom = sum(len(of_one) - 1 for of_one in values)
    if freedom:
        return float(np.sqrt(sum(np.square(np.subtract(one, np.mean(one))).sum() for one in values) / freedom))
    return None if errors is None else float(np.sqrt(np.mean(np.square(np.concatenate(errors)))))


def difference_of_trainings(
    key: str, ours: Mapping[str, Sequence[Known]], theirs: Mapping[str, Sequence[Known]]
) -> tuple[float | None, float]:
    """Standard error of the difference of two rows' means over trainings, and the quantile of Student's t for its interval.

    By the differences checkpoint by checkpoint where both are of the same ones, else by Welch's formula. None where either has a
    single one.
    """
    one, other = (
        {name: float(np.mean([run.numbers[key].value for run in pool])) for name, pool in side.items()} for side in (ours, theirs)
    )
    if min(len(one), len(other)) < 2:
        return None, NORMAL
    if one.keys() == other.keys():
        gaps = [one[name] - other[name] for name in one]
        return float(np.std(gaps, ddof=1) / np.sqrt(len(gaps))), _quantile(len(gaps) - 1)
    first, second = (float(np.var(list(side.values()), ddof=1)) / len(side) for side in (one, other))
    if not (both := first + second):
        return 0.0, NORMAL
    return float(np.sqrt(both)), _quantile(both**2 / (first**2 / (len(one) - 1) + second**2 / (len(other) - 1)))


def _quantile(freedom: float) -> float:
    """Student's t at 97.5 %."""
    if freedom <= 0:
        return NORMAL
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))
