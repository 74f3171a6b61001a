"""Pairs: runs whose samples belong together index by index, so that what moves both alike does not move their difference."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fiducial.evaluation.results.influences import error_of_pair, read
from fiducial.evaluation.results.reading import Known

SEED = "global_seed"  # in a run's identity
SHARED = (SEED, "labels", "num_classes", "noise")  # what the samples of an index have in common; N, the results do


class Pairs:
    """Errors of differences between runs, sample by sample. The file of a run's influences is read once."""

    def __init__(self) -> None:
        self._read: dict[Path, dict[str, np.ndarray]] = {}

    def errors(self, pool: Sequence[Known], others: Sequence[Known]) -> dict[str, float]:
        """Standard errors, by the numbers' keys, of the difference between the means of two pools of runs, one of each a seed.

        Raises:
            ValueError: with the reason, if they do not belong together.
        """
        theirs = {_seed(one): one for one in others}
        if len(pool) != len(others) or {_seed(one) for one in pool} != theirs.keys():
            raise ValueError("they have not the same seeds")
        pairs = [(one, theirs[_seed(one)]) for one in pool]
        for one, other in pairs:
            if why := unpaired(one, other):
                raise ValueError(why)
        found = [self._of_pair(one, other) for one, other in pairs]
        keys = [key for key in found[0] if all(found_here.get(key) is not None for found_here in found)]
        return {key: float(np.sqrt(sum(one[key] ** 2 for one in found)) / len(found)) for key in keys}

    def _of_pair(self, one: Known, other: Known) -> dict[str, float | None]:
        ours, theirs, count = self._moves(one), self._moves(other), int(one.basis["N"])
        return {
            key: error_of_pair(one.numbers[key].name, ours[key], theirs.get(key), count) for key in ours if key in one.numbers
        }

    def _moves(self, result: Known) -> dict[str, np.ndarray]:
        if result.path not in self._read:
            self._read[result.path] = read(result.path, result.influences)
        return self._read[result.path]


def unpaired(one: Known, other: Known) -> str | None:
    """Why the samples of two runs do not belong together by their manifests; None if they do, as reconstructions of the same
    originals always."""
    if one.of_reconstruction and other.of_reconstruction:
        return None
    for result in (one, other):
        if not result.identity:
            return f"nothing says how the samples of {result.path.name} were drawn"
        if missing := [field for field in SHARED if result.identity.get(field) is None]:
            return f"{result.path.name} does not say its {missing[0]}"
    for field in SHARED:
        ours, theirs = one.identity[field], other.identity[field]
        if ours != theirs:
            return f"{field} is {json.dumps(ours)[:60]} in the one and {json.dumps(theirs)[:60]} in the other"
    return None


def _seed(result: Known) -> str:
    return json.dumps((result.identity or {}).get(SEED))
