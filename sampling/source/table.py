"""SOURCES: what a run can draw from, a row each."""

from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.source import dit, generator
from fiducial.sampling.source.protocol import SourceSpec

SOURCES: tuple[SourceSpec, ...] = (
    generator,
    dit,
)  # the first that is asked for; modules, whose functions are those of `SourceSpec`


def source_of(config: SamplingConfig) -> SourceSpec:
    """The row that a configuration asks for."""
    return next(spec for spec in SOURCES if spec.is_asked_for(config))
