"""METRICS: every metric, a row each. A new one is a file beside this one and a row here.

The rows need neither torch nor numpy, so that commands can list them; a metric's file is imported when it is computed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from math import inf
from typing import Any

from fiducial.evaluation.features import FDR6

ADM_IS_BLOCK = 5000  # images of which ADM's evaluator takes an IS
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
FIDELITY_SEED, SHUFFLE_SEED = 2020, 0
MIND_DIRECTIONS = 1000
PUBLISHED_COUNT = 50_000  # samples that published values of FID are of
NEIGHBOURS = 3  # k of precision and recall; an image is its own nearest neighbour, so the radius is the 4th smallest distance
DENSITY_NEIGHBOURS = 5  # k of density and coverage
PER_DIMENSION = 10  # samples for FID-infinity; with fewer, the line misses what Gaussians are known to have


class Need(Enum):
    """The data that a metric is computed from, beside the samples' features."""

    MOMENTS = "the reference's mu and sigma"
    SPATIAL = "the reference's mu_s and sigma_s, and spatial features"
    FEATURES = "features of the reference's images"
    LOGITS = "the extractor's logits"
    TRAINING = "features of training images"
    PANEL = "statistics of the reference over six networks"
    PAIRS = "images that are reconstructions, beside their originals"


@dataclass(frozen=True)
class Option:
    """A number that a metric is computed with: a field of `Settings`, and an option of `calc` under the same name.

    Results record it under that name too, and only those that share it are compared. `help` says what it is.
    """

    name: str
    default: int
    least: int
    help: str

    @property
    def typed(self) -> str:
        """The option as it is typed."""
        return f"--{self.name.replace('_', '-')}"


OF_REFERENCE = {Need.MOMENTS, Need.SPATIAL, Need.FEATURES, Need.PANEL}


@dataclass(frozen=True)
class Metric:
    """A metric. `name` is what --metrics and results call it, `label` what tables do; `needs` is what it is computed from.

    `compute` takes `evaluation.metrics.inputs.Inputs` and gives an `Estimate`, or None where it has no value; "file.function" of
    this package, as `caveat` and `curve`. With `Need.PAIRS` it takes `pairs.PairInputs` and gives a `Measured`.
    `definition` is a sentence in which {features} and {logits} stand for the extractor's
    outputs. `least` is how few samples (with `Need.FEATURES` also reference images) there may be: a number, or a function of
    dimension and settings; `fewer` says what makes do with fewer. `bounds` are the least and the largest value that it can have,
    `unit` is written behind values. Where no metrics are named, it is computed `by_default` or if the protocol defines it; one
    that `follows` another comes with that. Of fewer than 50 samples it has an interval only if it is `counted`, a share of them.
    `deviation` says of settings how they differ from the definition. `option` is a number that a user may choose.

    `uses` gives, of how many samples and reference images (None if unknown) there are, how many it is computed on; it is recorded
    with `seed`, by which it draws some of them. `published_count` is set where values of another number of samples do not
    compare with published ones, which are of so many. `caveat` takes the `Inputs` and the samples' labels, and gives a sentence
    that a reader has to know, or None; `curve` takes the `Inputs` and gives a `Curve` for the page. A page plots it `against`
    another metric.
    """

    name: str
    label: str
    needs: Need | None
    compute: str
    definition: str
    least: int | Callable[..., int] = 2
    fewer: str = ""
    bounds: tuple[float, float] = (0, inf)
    unit: str = ""
    by_default: bool = False
    follows: str | None = None
    counted: bool = False
    deviation: Callable[[Any], str | None] = lambda _: None
    uses: Callable[[int, int | None], tuple[int, int | None]] = lambda samples, others: (samples, others)
    seed: int | None = None
    published_count: int | None = None
    caveat: str = ""
    curve: str = ""
    against: str | None = None
    option: Option | None = None
    distance: bool = False

    @property
    def less_is_better(self) -> bool:
        """Whether a smaller value is a better one."""
        return self.distance or self.of_distributions

    @property
    def of_distributions(self) -> bool:
        """Whether it is a Fréchet distance, or a mean of several, so to moments of the reference."""
        return self.needs in (Need.MOMENTS, Need.SPATIAL, Need.PANEL)

    @property
    def can_be_named(self) -> bool:
        """Whether --metrics of calc takes it; others come with another metric, with training images, or are `reconstruct`'s."""
        return self.follows is None and self.needs not in (Need.TRAINING, Need.PAIRS)

    def at_least(self, dimension: int, settings: Any) -> int:
        """How few images there may be, with features of `dimension`."""
        return self.least if isinstance(self.least, int) else self.least(dimension=dimension, settings=settings)

    def of(self, inputs: Any) -> Any:
        """Its `Estimate` of these `Inputs`, computed once; by all ranks."""
        return inputs.once(function_of(self.compute))


def function_of(where: str) -> Callable[..., Any]:
    """The function that "file.function" of this package names."""
    module, function = where.split(".")
    return getattr(import_module(f"{__name__}.{module}"), function)


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "fid",
            "FID",
            Need.MOMENTS,
            "frechet.fid",
            "Fréchet distance on {features}, covariance with n - 1",
            published_count=PUBLISHED_COUNT,
        ),
        Metric(
            "fdr6",
            "FDr6",
            Need.PANEL,
            "fdr.fdr6",
            "arithmetic mean over six networks of the Fréchet distance over that of ImageNet's validation images, as published: "
            f"{', '.join(f'{name} / {divisor:g}' for name, divisor in FDR6.items())} (arXiv 2604.28190)",
            published_count=PUBLISHED_COUNT,
        ),
        Metric(
            "sfid",
            "sFID",
            Need.SPATIAL,
            "frechet.sfid",
            "Fréchet distance on 7 channels of Mixed_6d's first branch, 17 x 17, flattened as height, width, channel (2,023)",
        ),
        Metric(
            "is",
            "IS",
            Need.LOGITS,
            "inception_score.inception",
            f"on {{logits}}, mean over blocks of {ADM_IS_BLOCK:,} in file order, a short last one counting like the others",
            least=lambda settings, **_: settings.rules.is_splits or 1,
            bounds=(1, inf),
        ),
        Metric(
            "is-shuffled",
            "shuffled IS",
            Need.LOGITS,
            "inception_score.shuffled",
            f"on {{logits}}, blocks of {ADM_IS_BLOCK:,} after a seeded shuffle",
            least=1,
            bounds=(1, inf),
            follows="is",
            caveat="inception_score.caveat",
        ),
        Metric(
            "precision",
            "precision",
            Need.FEATURES,
            "neighbours.precision",
            "share of samples within a reference image's distance to its 3rd neighbour, on {features}",
            least=NEIGHBOURS + 1,
            bounds=(0, 1),
            counted=True,
            against="recall",
        ),
        Metric(
            "recall",
            "recall",
            Need.FEATURES,
            "neighbours.recall",
            "share of reference images within a sample's distance to its 3rd neighbour, on {features}",
            least=NEIGHBOURS + 1,
            bounds=(0, 1),
        ),
        Metric(
            "f-score",
            "F-score",
            Need.FEATURES,
            "neighbours.f_score",
            "harmonic mean of precision and recall, with the 3rd neighbours on {features}",
            least=NEIGHBOURS + 1,
            bounds=(0, 1),
        ),
        Metric(
            "kid",
            "KID",
            Need.FEATURES,
            "kid.kid",
            f"unbiased squared MMD on {{features}}, kernel (x.y / D + 1)^3, {KID_SUBSETS} subsets by "
            f"RandomState({FIDELITY_SEED})",
            least=lambda settings, **_: settings.kid_subset_size,
            fewer="--kid-subset-size makes do with fewer",
            option=Option("kid_subset_size", KID_SUBSET_SIZE, 2, "images a subset of KID's"),
            bounds=(-inf, inf),
            seed=FIDELITY_SEED,
            distance=True,
            deviation=lambda settings: (
                None
                if settings.kid_subset_size == KID_SUBSET_SIZE
                else f"subsets of {settings.kid_subset_size:,} instead of {KID_SUBSET_SIZE:,}"
            ),
        ),
        Metric(
            "mind",
            "MIND",
            Need.FEATURES,
            "mind.mind",
            f"3 D times the mean squared gap between sorted projections of {{features}} on {MIND_DIRECTIONS:,} directions by "
            f"manual_seed({FIDELITY_SEED}), of as many images of either side as the smaller has (arXiv 2605.06797)",
            uses=lambda samples, others: (samples if others is None else min(samples, others),) * 2,
            seed=FIDELITY_SEED,
        ),
        Metric(
            "density",
            "density",
            Need.FEATURES,
            "neighbours.density",
            "mean number, over 5, of reference images with the sample nearer than their 5th neighbour, on {features} "
            "(arXiv 2002.09797)",
            least=DENSITY_NEIGHBOURS + 1,
            by_default=True,
            against="coverage",
        ),
        Metric(
            "coverage",
            "coverage",
            Need.FEATURES,
            "neighbours.coverage",
            "share of reference images with a sample nearer than their 5th neighbour, on {features} (arXiv 2002.09797)",
            least=DENSITY_NEIGHBOURS + 1,
            bounds=(0, 1),
            by_default=True,
        ),
        Metric(
            "fid-infinity",
            "FID-infinity",
            Need.MOMENTS,
            "fid_infinity.fid_infinity",
            "Fréchet distance on {features} at infinitely many samples, by a line in 1 / N through those of all samples, "
            "of halves and of thirds (arXiv 1911.07023, which draws random subsets)",
            least=lambda dimension, **_: PER_DIMENSION * dimension,
            bounds=(-inf, inf),
            by_default=True,
            curve="fid_infinity.curve",
        ),
        Metric(
            "vendi",
            "Vendi score",
            None,
            "vendi.vendi",
            "exp of the entropy of the eigenvalues of cosine similarities, on {features} (arXiv 2210.02410)",
            bounds=(1, inf),
        ),
        Metric(
            "authpct",
            "AuthPct",
            Need.TRAINING,
            "memorisation.authentic",
            "share of samples that are farther from their nearest training image than that one is from its nearest fellow, "
            "on {features} (arXiv 2102.08921)",
            least=1,
            bounds=(0, 100),
            unit="%",
            counted=True,
        ),
        Metric(
            "rfid",
            "rFID",
            Need.PAIRS,
            "pairs.rfid",
            "Fréchet distance on {features} between the reconstructions and {against}, covariance with n - 1",
            published_count=PUBLISHED_COUNT,
            distance=True,
        ),
        Metric(
            "psnr",
            "PSNR",
            Need.PAIRS,
            "pairs.psnr",
            "mean over images of 10 log10(255^2 / MSE) over all pixels and channels, levels from 0 to 255 after rounding",
            least=1,
            unit="dB",
        ),
        Metric(
            "ssim",
            "SSIM",
            Need.PAIRS,
            "pairs.ssim",
            "mean over images of Wang et al.'s structural similarity (2004) of each colour channel, Gaussian window with sigma "
            "1.5 of 11 x 11, K 0.01 and 0.03, biased covariances, data range 255, mean over the places whose window is whole",
            least=1,
            bounds=(-1, 1),
        ),
        Metric(
            "lpips",
            "LPIPS",
            Need.PAIRS,
            "pairs.lpips",
            "mean over images of LPIPS with AlexNet, linear layers of version 0.1, pixels from -1 to 1 at full size "
            "(arXiv 1801.03924)",
            least=1,
            distance=True,
        ),
        Metric(
            "lpips-vgg",
            "LPIPS-VGG",
            Need.PAIRS,
            "pairs.lpips_vgg",
            "mean over images of LPIPS with VGG16, linear layers of version 0.1, pixels from -1 to 1 at full size "
            "(arXiv 1801.03924)",
            least=1,
            distance=True,
        ),
    )
}
OPTIONS = {metric.option.name: metric.option for metric in METRICS.values() if metric.option}
# Metrics that people ask for and that are not offered, and what to take instead.
REFUSED = {
    "cmmd": "CMMD depends on CLIP's weights and a bandwidth chosen for them, and tables of class-conditional models lack it; kid "
    "with --protocol dino is an unbiased MMD over another network than Inception as well",
}


def called(metric: str, extractor: Any) -> tuple[str, str]:
    """The key and the label of a metric in a result: FID over other features than Inception's never goes by that name alone."""
    key = metric.replace("fid", extractor.distance.lower())
    label = METRICS[metric].label.replace("FID", extractor.distance)
    return key + extractor.suffix.lower(), label + extractor.suffix


def named() -> tuple[str, ...]:
    """The metrics that --metrics takes."""
    return tuple(metric.name for metric in METRICS.values() if metric.can_be_named)


def of_pairs() -> tuple[str, ...]:
    """The metrics that `fiducial reconstruct` computes."""
    return tuple(name for name, metric in METRICS.items() if metric.needs is Need.PAIRS)


def without_reference() -> tuple[str, ...]:
    """Those of them that need no reference."""
    return tuple(name for name in named() if METRICS[name].needs not in OF_REFERENCE)
