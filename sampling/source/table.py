"""SOURCES: what a run can draw from, a row each."""

from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.source import from_checkpoint, generator
from fiducial.sampling.source.protocol import SourceSpec

# The first that is asked for; modules, whose functions are those of `SourceSpec`.
SOURCES: tuple[SourceSpec, ...] = (generator, from_checkpoint)


def source_of(config: SamplingConfig) -> SourceSpec:
    """The row that a configuration asks for."""
    return next(spec for spec in SOURCES if spec.is_asked_for(config))
