"""Which configurations a round drops: those whose paired interval says that they are worse than the best so far.

The chance that the configuration that is best in truth is dropped in any round is at most `LEVEL`: it can only be dropped for
another one, of which there are K - 1, in a round that drops, of which there are R, so that each comparison is made one-sidedly at
LEVEL / (R (K - 1)) (Bonferroni). That the best so far is chosen by the same numbers is covered, as every one it might be is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from fiducial import UserError
from fiducial.evaluation.metrics import METRICS
from fiducial.evaluation.metrics.intervals import ROUNDING
from fiducial.evaluation.results.compare import Cell, pooled
from fiducial.evaluation.results.pairing import Pairs
from fiducial.evaluation.results.reading import Known

LEVEL = 0.05
Pools = Mapping[str, Sequence[Known]]  # results of each configuration, one a seed, by its key


@dataclass(frozen=True)
class Gap:
    """A configuration less the best so far, as a mean over the seeds; an interval of `quantile` standard errors to both sides.

    `paired` is whether it was found sample by sample. Without a known error there is no interval, and nothing is decided.
    """

    difference: float
    error: float | None
    low: float | None
    high: float | None
    paired: bool
    worse: bool


@dataclass(frozen=True)
class Decision:
    """Of a round: the best so far, and the others' gaps from it, by their keys."""

    best: str
    gaps: dict[str, Gap]

    @property
    def dropped(self) -> list[str]:
        """Keys of those that are decided to be worse."""
        return [key for key, gap in self.gaps.items() if gap.worse]


def quantile_of(configurations: int, rounds: int) -> float:
    """Standard errors by which a configuration has to be worse, where `rounds` drop some of so many configurations."""
    return NormalDist().inv_cdf(1 - LEVEL / max(1, rounds * (configurations - 1)))


def cells_of(pools: Pools) -> dict[str, dict[str, Cell]]:
    """The mean over the seeds of each metric of each configuration, by its key and the metric's."""
    return {key: pooled(list(pool)) for key, pool in pools.items()}


def key_of(cells: Mapping[str, Cell], metric: str) -> str:
    """The key of a metric's number, such as fid-digits for fid.

    Raises:
        UserError: if there is none.
    """
    found = next((key for key, cell in cells.items() if cell.name == metric), None)
    if found is None:
        raise UserError(f"--metric {metric}: the results have none; they have {', '.join(one.name for one in cells.values())}")
    return found


def decide(pools: Pools, metric: str, quantile: float) -> Decision:
    """Compare each configuration with the best.

    Args:
        quantile: see `quantile_of`.

    Raises:
        UserError: if a result has no such metric.
    """
    cells, pairs, sign = cells_of(pools), Pairs(), 1 if METRICS[metric].less_is_better else -1
    keys = {name: key_of(found, metric) for name, found in cells.items()}
    best = min(pools, key=lambda name: sign * cells[name][keys[name]].value)
    theirs, gaps = cells[best][keys[best]], {}
    for name, pool in pools.items():
        if name == best:
            continue
        ours = cells[name][keys[name]]
        try:
            paired = pairs.errors(pool, pools[best]).get(keys[name])
        except ValueError:
            paired = None
        apart = None if None in (ours.error, theirs.error) else math.hypot(ours.error, theirs.error)
        gaps[name] = _gap(ours.value - theirs.value, apart if paired is None else paired, paired is not None, quantile, sign)
    return Decision(best, gaps)


def _gap(difference: float, error: float | None, paired: bool, quantile: float, sign: int) -> Gap:
    if error is None or error <= ROUNDING * abs(difference):
        return Gap(difference, None, None, None, paired, worse=False)
    low, high = difference - quantile * error, difference + quantile * error
    return Gap(difference, error, low, high, paired, worse=low > 0 if sign > 0 else high < 0)
