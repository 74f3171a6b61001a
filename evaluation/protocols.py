"""PROTOCOLS: whose definitions numbers follow, a row each, and in what they deviate from those here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fiducial.evaluation.features import EXTRACTORS, INCEPTION, spec_of
from fiducial.evaluation.metrics import FIDELITY_SEED, METRICS, SHUFFLE_SEED

FIDELITY_IS_SPLITS = 10
NEAREST = ("precision", "recall", "f-score")


@dataclass(frozen=True)
class Deviation:
    """A deviation from a protocol in some metrics, of some extractors (of all, where none is named), with some settings."""

    text: str
    metrics: tuple[str, ...]
    extractors: tuple[str, ...] = ()
    applies: Callable[[Any], bool] = lambda _: True

    def holds(self, metric: str, extractor: str, settings: Any) -> bool:
        """Whether it is there."""
        return metric in self.metrics and extractor in (self.extractors or (extractor,)) and self.applies(settings)


@dataclass(frozen=True)
class Protocol:
    """Whose evaluator is followed. `own` are the metrics that it defines; others are taken from the first that does.

    `extractor` is the one that it stands for; None where the reference says, or else Inception. `definitions` are of the metrics
    that it defines in another way than METRICS says. `of_network` are deviations in how features are made or chosen,
    `of_arithmetic` in what is computed from them. `is_splits` is of how many parts of a seeded permutation an IS is the mean;
    None for blocks in the order of the file. `halves` is whether it has distances in float16.
    """

    name: str
    own: tuple[str, ...]
    extractor: str | None = None
    definitions: Mapping[str, str] = field(default_factory=dict)
    of_network: tuple[Deviation, ...] = ()
    of_arithmetic: tuple[Deviation, ...] = ()
    is_splits: int | None = None
    halves: bool = False

    def definition(self, metric: str, extractor: str, against: str = "the reference") -> str:
        """The definition of a metric in words, over an extractor's features."""
        text, spec = self.definitions.get(metric, METRICS[metric].definition), spec_of(extractor)
        return text.format(features=spec.features, logits=spec.logits, against=against)

    def defined_by(self, metric: str) -> str | None:
        """The other protocol whose definition of a metric this one takes; None where it has one itself, or nobody has."""
        return None if metric in self.own else next((name for name, other in PROTOCOLS.items() if metric in other.own), None)

    @property
    def by_default(self) -> tuple[str, ...]:
        """The metrics that are computed where none are named."""
        return tuple(m.name for m in METRICS.values() if m.can_be_named and (m.name in self.own or m.by_default))

    @property
    def shuffle_seed(self) -> int:
        """Of the images' order for an IS."""
        return SHUFFLE_SEED if self.is_splits is None else FIDELITY_SEED


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "adm",
            ("fid", "sfid", "is", "is-shuffled", *NEAREST[:2]),
            of_arithmetic=(
                Deviation(
                    "distances are float32; ADM's are float16, which --fp16-compat gives",
                    NEAREST,
                    applies=lambda settings: not settings.fp16_compat,
                ),
                Deviation(
                    "float16 in ADM's order of operations, which was not compared with TensorFlow's kernels",
                    NEAREST,
                    applies=lambda settings: settings.fp16_compat,
                ),
            ),
            halves=True,
        ),
        Protocol(
            "torch-fidelity",
            ("fid", "is", "kid", *NEAREST),
            definitions={
                "is": f"on {{logits}}, mean over {FIDELITY_IS_SPLITS} splits after RandomState({FIDELITY_SEED}).permutation"
            },
            of_network=(
                Deviation(
                    "on Inception's pool3, where torch-fidelity's default is VGG16",
                    NEAREST,
                    tuple(name for name, spec in EXTRACTORS.items() if spec.weights is INCEPTION),
                ),
            ),
            is_splits=FIDELITY_IS_SPLITS,
        ),
        Protocol("pytorch-fid", ("fid",), "inception-pytorch-fid"),
        Protocol(
            "clean",
            ("fid", "kid"),
            "inception-clean",
            of_arithmetic=(
                Deviation(
                    "subsets are drawn with a seed; clean-fid's have none, and are smaller where there are few images", ("kid",)
                ),
            ),
        ),
        Protocol(
            "dino",
            ("fid", *NEAREST[:2]),
            "dinov2",
            of_network=(
                Deviation("the resize is EDM2's, in float32; dgm-eval's rounds to whole levels", ("fid",)),
                Deviation("EDM2 has none; dgm-eval takes the 5th neighbour, among 10,000 random images of either side", NEAREST),
            ),
        ),
    )
}
