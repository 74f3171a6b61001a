"""The data that metrics are computed from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from fiducial import Group
from fiducial.evaluation.data.references import Reference
from fiducial.evaluation.features.extraction import Features
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.settings import Settings

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Once:
    """Data that several metrics come from, with what was found of it."""

    _found: dict[Callable, Any] = field(default_factory=dict, repr=False)

    def once(self, function: Callable[[Any], Found]) -> Found:
        """The value of `function` for these, computed at the first call: several metrics come from one pass."""
        if function not in self._found:
            self._found[function] = function(self)
        return self._found[function]


@dataclass(frozen=True)
class Inputs(Once):
    """The samples' features `own`, the `reference` with what a metric needs of it, and the features of `training` images.

    `panel` are the same samples by the other networks of FDr6, where that is wanted. `strata` (N,) are the samples' classes
    where those are fixed and not drawn (see `intervals.strata_of`).

    Every rank has the same, and a metric, which all ranks compute together, gives all of them the same.
    """

    own: Features
    reference: Reference | None
    extractor: Extractor
    settings: Settings
    group: Group
    training: Features | None = None
    panel: tuple["Inputs", ...] = ()
    strata: np.ndarray | None = None
