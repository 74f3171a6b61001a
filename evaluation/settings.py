"""How to evaluate."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from fiducial import Group, UserError, default_cache, unwritable
from fiducial.evaluation.features.extraction import temporary_cache
from fiducial.evaluation.metrics import KID_SUBSET_SIZE, OPTIONS, REFUSED, named, without_reference
from fiducial.evaluation.protocols import PROTOCOLS, Protocol

PROBE = 1 << 16  # bytes that are written to a cache, to see whether that can be done


@dataclass(frozen=True)
class Settings:
    """How to evaluate.

    Args:
        protocol: whose definitions, one of `PROTOCOLS`.
        metrics: names in `METRICS`, or a text of them with commas; None for all of the protocol that the reference allows.
        fp16_compat: distances of precision and recall rounded to float16 as ADM's evaluator does.
        dtype: of the network's convolutions, float32 or bfloat16.
        batch_size: images read at once; features do not depend on it.
        kid_subset_size: images a subset of KID's.
        cache_dir: where features, published references and weights are kept; None for ~/.cache/fiducial.
        keep_features: whether features stay in the cache.
    """

    protocol: str = "adm"
    metrics: Sequence[str] | str | None = None
    fp16_compat: bool = False
    dtype: str = "float32"
    batch_size: int = 64
    kid_subset_size: int = KID_SUBSET_SIZE
    cache_dir: str | Path | None = None
    keep_features: bool = True

    def __post_init__(self):
        if self.cache_dir is not None:
            object.__setattr__(self, "cache_dir", Path(self.cache_dir))
        if self.metrics is not None:
            names = self.metrics.split(",") if isinstance(self.metrics, str) else self.metrics
            object.__setattr__(self, "metrics", tuple(names))

    @property
    def rules(self) -> Protocol:
        """The protocol."""
        return PROTOCOLS[self.protocol]

    @property
    def folder(self) -> Path:
        """Where features and what is downloaded are kept."""
        return self.cache_dir or default_cache()

    @property
    def needs_reference(self) -> bool:
        """Whether a metric needs one."""
        return self.metrics is None or not set(self.metrics) <= set(without_reference())

    def check(self) -> None:
        """Raise UserError for what cannot be meant."""
        if self.protocol not in PROTOCOLS:
            raise UserError(f"--protocol {self.protocol}: no such protocol; choose from {', '.join(PROTOCOLS)}")
        if self.batch_size < 1:
            raise UserError(f"--batch-size {self.batch_size}: must be at least 1")
        for option in OPTIONS.values():
            if getattr(self, option.name) < option.least:
                raise UserError(f"{option.typed} {getattr(self, option.name)}: must be at least {option.least}")
        if self.metrics is not None and not self.metrics:
            raise UserError(f"--metrics names none: choose from {', '.join(named())}")
        if refused := [name for name in self.metrics or () if name in REFUSED]:
            raise UserError(f"--metrics {refused[0]}: {REFUSED[refused[0]]}")
        if unknown := [name for name in self.metrics or () if name not in named()]:
            raise UserError(f"--metrics {unknown[0]}: no such metric; choose from {', '.join(named())}")
        if self.fp16_compat and not self.rules.halves:
            raise UserError(f"--fp16-compat: it rounds as ADM's evaluator does, which --protocol {self.protocol} does not follow")

    def cache(self, group: Group) -> AbstractContextManager[Path]:
        """The folder of features, for the time of an evaluation; by every rank."""
        return nullcontext(self.folder) if self.keep_features else temporary_cache(self.folder, group)

    def check_cache(self) -> None:
        """Raise UserError if features cannot be put into the cache."""
        if reason := unwritable(self.folder, PROBE):
            raise UserError(f"--cache-dir {self.folder} cannot be written ({reason}), where features are put; choose another")

    def recorded(self) -> dict[str, str | int | bool]:
        """The settings that numbers depend on, as a result records them."""
        return {
            "protocol": self.protocol,
            "precision_recall_distances": "float16 as ADM's" if self.fp16_compat else "float32",
            "dtype": self.dtype,
            **{name: getattr(self, name) for name in OPTIONS},
        }
