"""The Fréchet distance between two files of statistics, without images."""

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fiducial import Group, UserError, about
from fiducial.evaluation.data.published import PUBLISHED
from fiducial.evaluation.data.references import Reference, find_reference, holds_statistics
from fiducial.evaluation.features import DEFAULT, spec_of
from fiducial.evaluation.fit import check_protocol, choose_extractor
from fiducial.evaluation.metrics import called
from fiducial.evaluation.metrics.gaussians import frechet_distance
from fiducial.evaluation.record import described_reference
from fiducial.evaluation.settings import Settings

FORMAT = "fiducial-distance-1"


@dataclass(frozen=True)
class Distance:
    """A distance, what it is called and how it is defined, and both sides as results record a reference."""

    label: str
    value: float
    protocol: str
    extractor: str
    definition: str
    sides: tuple[dict, dict]
    notes: tuple[str, ...]
    created: str
    fiducial: dict[str, str | None] = field(default_factory=about)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"


def are_statistics(samples: Path, ref: str | None) -> bool:
    """Whether both are statistics: files of them, or names of published ones; whether the second is there is not looked at."""
    return ref is not None and all(
        (not Path(one).exists() and str(one) in (*PUBLISHED, "digits")) or (Path(one).is_file() and holds_statistics(Path(one)))
        for one in (samples, ref)
    )


def between(samples: str, ref: str, group: Group, settings: Settings, extractor: str | None) -> Distance:
    """The Fréchet distance between two files, or published names.

    Raises:
        UserError: if other metrics are asked for, one has no statistics, or they are not over the same features.
    """
    if settings.metrics not in (None, ("fid",)):
        raise UserError(f"--metrics {','.join(settings.metrics)}: between two files of statistics there is fid alone")
    for one in (samples, ref):
        check_protocol(one, extractor, settings)
    wanted = settings.rules.extractor or extractor
    one, other = (find_reference(name, group, settings.cache_dir, extractor=wanted) for name in (samples, ref))
    made_with = [side.provenance.extractor for side in (one, other) if side.provenance.extractor]
    _check_weights(one, other)
    label, name, definition = f"FD of {len(one.mu):,} features", "unknown", "Fréchet distance on features that neither file names"
    if wanted or made_with or len(one.mu) == spec_of(DEFAULT).dimension:
        for side in (one, other):
            spec = choose_extractor(side, wanted or next(iter(made_with), None), settings)
        label, name, definition = called("fid", spec)[1], spec.name, settings.rules.definition("fid", spec.name)
    value = group.once(lambda: frechet_distance(one.mu, one.sigma, other.mu, other.sigma, group.device))
    notes = [f"{side.path.name} does not say how it was made" for side in (one, other) if not side.provenance.extractor]
    sizes = [side.image_size for side in (one, other)]
    if None not in sizes and sizes[0] != sizes[1]:
        notes.append(f"the one is of images of {sizes[0][1]} x {sizes[0][0]}, the other of {sizes[1][1]} x {sizes[1][0]}")
    return Distance(
        label,
        value,
        settings.protocol,
        name,
        definition,
        (described_reference(one), described_reference(other)),
        tuple(notes),
        datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _check_weights(one: Reference, other: Reference) -> None:
    """Raise UserError if the two are known to be of other weights, or have not as many features."""
    hashes = [side.provenance.weights_sha256 for side in (one, other)]
    if None not in hashes and hashes[0] != hashes[1]:
        raise UserError(f"{one.path} and {other.path} were made with different weights ({hashes[0][:12]}, {hashes[1][:12]})")
    if len(one.mu) != len(other.mu):
        raise UserError(f"{one.path} has {len(one.mu):,} features, and {other.path} {len(other.mu):,}")
