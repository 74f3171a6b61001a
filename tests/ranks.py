"""What metrics give of the same features, as numbers by name: for one rank, and as a program for several.

python -m torch.distributed.run --nproc_per_node=2 tests/ranks.py FOLDER writes FOLDER/RANK.json.
"""

import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import fiducial  # noqa: E402
from fiducial.evaluation.metrics import fid_infinity, gaussians, inception_score, intervals, kid, neighbours, vendi  # noqa: E402
from fiducial.evaluation.metrics.intervals import Estimate, Measured  # noqa: E402
from fiducial.evaluation.metrics.memorisation import memorisation  # noqa: E402
from fiducial.evaluation.metrics.statistics import FeatureStatistics  # noqa: E402

SMALL = {(module, "ROWS"): 9 for module in (intervals, fid_infinity, vendi)}  # so that there are parts for every rank
SMALL |= {(neighbours, "TILE"): 7, (neighbours, "ADM_BLOCK"): 40}


def numbers(found: Estimate) -> list:
    """Value, error, interval, spread and moves."""
    moves = found.moves if isinstance(found, Measured) else None
    return [found.value, found.error, found.low, found.high, found.spread, *([] if moves is None else moves.tolist())]


def everything(group: fiducial.Group) -> dict[str, list]:
    """Every metric that ranks share out, with errors and intervals."""
    random = np.random.default_rng(0)
    x, y = (np.abs(random.normal(0.4 + shift, 0.3, size=(count, 6))).astype(np.float32) for count, shift in ((101, 0), (90, 0.1)))
    own, theirs = FeatureStatistics.empty(6), FeatureStatistics.empty(6)
    for statistics, rows in ((own, x), (theirs, y)):
        statistics.update(rows)
        statistics.flush()
    error = gaussians.frechet_error(x, own, theirs.mean, theirs.covariance, group)
    curve = fid_infinity.frechet_curve(x, theirs.mean, theirs.covariance, Estimate(1.0, error), group)
    logits = random.normal(0, 2, size=(101, 5))
    blocks = [lambda block=block: iter([block]) for block in np.array_split(logits, 7)]
    grid = random.integers(0, 3, size=(150, 3)).astype(np.float32)  # many ties
    zero = x * (np.arange(101) != 50)[:, None]
    found = {
        "frechet error": [error],
        "curve": [*curve.values, curve.slope, *numbers(curve.at_infinity)],
        "is": numbers(inception_score.inception_score(blocks, group)),
        "is within classes": numbers(inception_score.inception_score(blocks, group, None, np.arange(101) % 4)),
        "vendi": numbers(vendi.vendi_score(x, group)),
        "vendi with a row of zeros": [vendi.vendi_score(zero, group)],
        "kid": numbers(kid.kernel_distance(x, y, group, subsets=10, size=30)),
        "memorisation": numbers(memorisation(x, y, group).authentic),
    }
    for half in (False, True):
        shares = neighbours.neighbourhoods(y, x, group, half)
        found |= {f"{name} {half}": numbers(value) for name, value in vars(shares).items()}
    distances, indices = neighbours.closest(neighbours.Pairs(grid[:70], grid[70:], group, False), group)
    return {name: list(values) for name, values in found.items()} | {"closest": [*distances.tolist(), *indices.tolist()]}


if __name__ == "__main__":
    for (module, name), value in SMALL.items():
        setattr(module, name, value)
    with fiducial.init("cpu") as ranks:
        (Path(sys.argv[1]) / f"{ranks.rank}.json").write_text(json.dumps(everything(ranks)))
