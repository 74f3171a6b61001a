"""Protocol of a source of images: how a run finds out that it can be drawn from, and draws."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from fiducial import Group, UserError
from fiducial.classes import ClassNames
from fiducial.sampling.identity import Identity
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.plan import Plan


@dataclass(frozen=True)
class ResolvedRun:
    """A run as options and files give it, once they are known to go together; nothing is written by then."""

    config: SamplingConfig  # nothing untold in it, and no names among its labels
    identity: Identity
    names: ClassNames | None  # of the classes, if anybody knows them
    facts: Mapping[str, object]  # for the source on every rank, as JSON
    paths: dict[str, str]  # for the manifest
    settled: Mapping[str, object] = field(default_factory=dict)  # options that it records otherwise than they stand in `config`
    weights: str | None = None  # the key of the weights, where its file holds others that would be taken by themselves
    others: tuple[Identity, ...] = ()  # that the same options come to where the source by those before is unfit
    uncompiled: tuple[Identity, ...] = ()  # that they come to where torch.compile works, as it does not here

    def choices(self) -> "list[ResolvedRun]":
        """This run and what stands in for it, in the order in which they are tried."""
        every = (self.identity, *self.others)
        return [replace(self, identity=identity, others=every[place:]) for place, identity in enumerate(every, start=1)]

    def begun_elsewhere(self) -> "list[ResolvedRun]":
        """The same of what cannot be drawn here."""
        return [replace(self, identity=identity, others=()) for identity in self.uncompiled]

    @property
    def plan(self) -> Plan:
        return Plan.of(self.identity, self.config.num_fid_samples)


class Unfit(UserError):
    """Raised where a source does not draw on this device what it should; `event` holds the figures for the run's records."""

    def __init__(self, message: str, event: Mapping[str, object]):
        super().__init__(message)
        self.event = event


class Source(Protocol):
    """Draws blocks of images; a pure function of their indices."""

    ready: str  # what is said of it once it is loaded, such as its precision
    loading: str  # what loading it takes, such as "weights and compiling"

    def try_out(self, missing: int) -> None:
        """Raise UserError if it cannot be drawn from, and Unfit if it should not be, to draw so many images. On rank 0, before
        anything is written and before the others know of the run; what is loaded for it stays, and is drawn with."""

    def switched(self) -> AbstractContextManager:
        """Torch's switches as all else here wants them, in there; as before afterwards."""

    def begin(self, note: Callable[..., object]) -> None:
        """Begin a session on this rank; `note` is called with what is out of the ordinary. Nothing is loaded yet."""

    def load(self) -> None:
        """Make ready to draw on this rank, which has blocks to draw, once; on rank 0, with what `try_out` has loaded.

        Raises:
            UserError: if it cannot be drawn from.
        """

    def release(self) -> None:
        """Give back what `load` has taken, once all is drawn: an evaluation may follow. To draw more, it is loaded again."""

    def told(self, group: Group) -> dict | None:
        """Wait for all ranks to have come here; on rank 0 what loading has told of it, for the manifest's `probe`."""

    def lines(self, told: dict | None, evaluations: int) -> list[str]:
        """Lines on the source for a dry run; `told` is what loading has told, `evaluations` how often a block called `check`, 0
        if none was drawn."""

    def blocks(self, starts: Iterable[int], count: int, check: Callable[[], object]) -> Iterator[tuple[int, np.ndarray]]:
        """The blocks that begin at `starts`: first index, and pixels (block_size, H, W, 3) uint8.

        Args:
            count: indices from here on only fill up the last block; it does not matter what becomes of them.
            check: called often, as a sign of life; what it raises ends the drawing.

        Raises:
            UserError: if an image cannot be drawn.
        """


class SourceSpec(Protocol):
    """One row in SOURCES: the steps from a configuration to a source."""

    def is_asked_for(self, config: SamplingConfig) -> bool: ...

    def check_given(self, config: SamplingConfig, group: Group) -> None:
        """Raise UserError for what can be told to be wrong before anything is downloaded. On all ranks."""

    def require_here(self, config: SamplingConfig) -> None:
        """Say of published files of a run whether they are here, for a dry run, which downloads none; on rank 0 only.

        Raises:
            UserError: if one of them is not.
        """

    def fetch(self, config: SamplingConfig, group: Group) -> SamplingConfig:
        """The configuration with local files, downloaded if need be, and what these say where nothing was given. On all ranks."""

    def resolve(self, config: SamplingConfig, group: Group) -> ResolvedRun:
        """The resolved run; on rank 0 only.

        Raises:
            UserError: if options and files do not go together.
        """

    def open_source(self, config: SamplingConfig, identity: Identity, facts: Mapping[str, object], group: Group) -> Source:
        """The source on this rank, for a run as rank 0 has resolved it; nothing is loaded.

        Args:
            config: as `fetch` has left it; labels and the like are taken from the identity.
            facts: of the `ResolvedRun`.
        """
