"""Measures how often intervals hold what they promise, on draws from distributions that nothing was tuned on.

    python -m fiducial.studies.intervals --count 1000 --draws 400 --out intervals.jsonl
    python -m fiducial.studies.intervals --out intervals.jsonl --table

Ten clusters with weights from 1 to 10, each of its own shape, with tails of a t distribution of 5 degrees, in 64 dimensions; the
models' clusters are narrower than the reference's. Each draw has three models that share labels and noise by index: one; another
of the same distribution, whose samples are made of nearly the same noise; and one that is a little worse. Labels are drawn by the
weights, or every class has equally many.

The draws are in a file, a line each, so that a study that ended goes on with the same command. The table has: how often 95 %
intervals held the mean over all draws, with the mean error over the true spread; the same of differences, as paired and as
independent; how often a difference of equal models was decided, and how often that of the worse one was.
"""

import argparse
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fiducial
from fiducial import Group, Parser, say, user_errors
from fiducial.evaluation.metrics.fid_infinity import extrapolated
from fiducial.evaluation.metrics.gaussians import frechet_distance, frechet_moves
from fiducial.evaluation.metrics.inception_score import inception_score
from fiducial.evaluation.metrics.intervals import NORMAL, Measured, measured, strata_of
from fiducial.evaluation.metrics.kid import kernel_distance
from fiducial.evaluation.metrics.memorisation import in_percent, memorised
from fiducial.evaluation.metrics.neighbours import neighbourhoods
from fiducial.evaluation.metrics.statistics import FeatureStatistics
from fiducial.evaluation.metrics.vendi import vendi_score
from fiducial.evaluation.results.influences import error_of_pair

DIMENSION, CLUSTERS, DEGREES = 64, 10, 5
REFERENCE, TRAINING = 1000, 500  # images; of the reference half as many as samples, where that is more
SHARED = 0.95  # of the noise of two models' samples of an index, as a correlation
WIDTHS = {"real": 1.0, "one": 0.85, "equal": 0.85, "worse": 0.825}  # times the shapes of the clusters
MODELS = ("one", "equal", "worse")
LABELS = ("random", "balanced")
SUBSETS, SUBSET_SIZE = 10, 100  # of KID


@dataclass(frozen=True)
class World:
    """Clusters by their middles (C, D), shapes (C, D) and weights (C,), and the images that samples are compared with."""

    middles: np.ndarray
    shapes: np.ndarray
    weights: np.ndarray
    head: np.ndarray  # (D, C), whose products with features are logits

    @classmethod
    def made(cls) -> "World":
        random = np.random.default_rng(2606)
        shapes = np.exp(random.normal(0, 0.4, (CLUSTERS, DIMENSION))) * np.linspace(1.5, 0.3, DIMENSION)
        weights = np.arange(1.0, CLUSTERS + 1)
        head = random.normal(0, 0.25, (DIMENSION, CLUSTERS))
        return cls(random.normal(0, 0.7, (CLUSTERS, DIMENSION)), shapes, weights / weights.sum(), head)

    def labels(self, how: str, count: int, random: np.random.Generator) -> np.ndarray:
        if how == "random":
            return random.choice(CLUSTERS, count, p=self.weights)
        return random.permutation(np.arange(count) % CLUSTERS)

    def images(self, labels: np.ndarray, random: np.random.Generator, models: Iterable[str] = ("real",)) -> dict[str, np.ndarray]:
        """Features (N, D) float32 of samples with these labels, by model."""
        count = len(labels)
        noise, tails = random.normal(size=(count, DIMENSION)), np.sqrt(DEGREES / random.chisquare(DEGREES, (count, 1)))
        found = {}
        for model in models:
            own = noise if model == "one" else SHARED * noise + np.sqrt(1 - SHARED**2) * random.normal(size=noise.shape)
            found[model] = (self.middles[labels] + WIDTHS[model] * self.shapes[labels] * own * tails).astype(np.float32)
        return found


class Study:
    """All metrics of draws of `count` samples against one reference."""

    def __init__(self, count: int, group: Group):
        self.world, self.count, self.group = World.made(), count, group
        random = np.random.default_rng(1)
        some = self.world.images(self.world.labels("random", max(REFERENCE, count // 2) + TRAINING, random), random)["real"]
        self.reference, self.training = some[:-TRAINING], some[-TRAINING:]
        many = self.world.images(self.world.labels("random", 20_000, random), random)["real"]
        self.moments = statistics_of(many)

    def draw(self, how: str, number: int) -> dict:
        """Values, errors and intervals of each model's numbers, and the errors of their differences from the first's."""
        random = np.random.default_rng([LABELS.index(how), self.count, number])
        labels = self.world.labels(how, self.count, random)
        strata = strata_of(labels)
        found = {model: self.measure(rows, strata) for model, rows in self.world.images(labels, random, MODELS).items()}
        numbers = {
            model: {name: [one.value, one.error, one.low, one.high] for name, one in of_model.items()}
            for model, of_model in found.items()
        }
        first, *others = MODELS
        pairs = {
            other: {
                name: error_of_pair(name, one.moves, found[other][name].moves, self.count) for name, one in found[first].items()
            }
            for other in others
        }
        return {"count": self.count, "labels": how, "draw": number, "numbers": numbers, "paired": pairs}

    def measure(self, rows: np.ndarray, strata: np.ndarray | None) -> dict[str, Measured]:
        """All metrics by name, each of whose functions is the evaluation's own."""
        own, (mu, sigma), group = statistics_of(rows), (self.moments.mean, self.moments.covariance), self.group
        distance = frechet_distance(own.mean, own.covariance, mu, sigma)
        fid = measured(distance, frechet_moves(rows, own, mu, sigma, None, strata), 0)
        near = neighbourhoods(self.reference, rows, group, False, strata)
        logits = rows @ self.world.head
        return {
            "fid": fid,
            "fid-infinity": extrapolated(rows, mu, sigma, fid, group, strata)[1],
            "is": inception_score([lambda: iter([logits])], group, None, strata),
            "kid": kernel_distance(rows, self.reference, group, SUBSETS, SUBSET_SIZE, strata=strata),
            "vendi": vendi_score(rows, group, strata),
            "authpct": in_percent(memorised(rows, self.training, group, None, strata)[1]),
            **vars(near),
        }


def statistics_of(rows: np.ndarray) -> FeatureStatistics:
    statistics = FeatureStatistics.empty(rows.shape[1])
    statistics.update(rows)
    statistics.flush()
    return statistics


def draws_in(path: Path) -> list[dict]:
    """The draws in the file; a line that is not whole, as of a study that was killed, counts as absent."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def table(draws: list[dict]) -> Iterator[str]:
    """Markdown."""
    groups = sorted({(one["count"], one["labels"]) for one in draws}, key=lambda pair: (pair[0], LABELS.index(pair[1])))
    head = (
        "metric",
        "held",
        "error / spread",
        "differences held: paired",
        "as independent",
        "paired error / spread",
        "equal models decided: paired",
        "as independent",
        "worse one decided: paired",
        "as independent",
    )
    for count, how in groups:
        some = [one for one in draws if (one["count"], one["labels"]) == (count, how)]
        yield from ("", f"{len(some)} draws of N = {count:,}, {how} labels", "")
        yield f"| {' | '.join(head)} |"
        yield f"|{'---|' * len(head)}"
        for name in some[0]["numbers"]["one"]:
            yield f"| {name} | {' | '.join(columns(name, some))} |"


def columns(name: str, draws: list[dict]) -> Iterator[str]:
    """One metric's cells."""
    draws = [one for one in draws if all(one["numbers"][model][name][1] for model in MODELS)]
    if len(draws) < 2:
        return
    value, error, low, high = np.array([one["numbers"]["one"][name] for one in draws]).T
    truth = value.mean()
    yield f"{100 * np.mean((low <= truth) & (truth <= high)):.1f} %"
    yield f"{error.mean() / value.std(ddof=1):.2f}"
    gaps, paired, alone = {}, {}, {}
    for model in MODELS[1:]:
        others = np.array([one["numbers"][model][name] for one in draws]).T
        gaps[model] = others[0] - value
        alone[model] = np.hypot(error, others[1])
        paired[model] = np.array([one["paired"][model][name] for one in draws], dtype=float)
    for errors in (paired, alone):
        off = [np.abs(gaps[model] - gaps[model].mean()) <= NORMAL * errors[model] for model in MODELS[1:]]
        yield f"{100 * np.mean(off):.1f} %"
    yield f"{paired['worse'].mean() / gaps['worse'].std(ddof=1):.2f}"
    for model, errors in itertools.product(MODELS[1:], (paired, alone)):
        yield f"{100 * np.mean(np.abs(gaps[model]) > NORMAL * errors[model]):.1f} %"


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m fiducial.studies.intervals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="the draws, a line each; read first")
    parser.add_argument("--count", type=int, default=1000, help="samples a draw, at least 640 (default: %(default)s)")
    parser.add_argument("--labels", choices=LABELS, help="of these alone (default: both)")
    parser.add_argument("--draws", type=int, default=400, help="of each (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="draw nothing, and print the table of what is in the file")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    if not args.table:
        there = {(one["count"], one["labels"], one["draw"]) for one in draws_in(args.out)}
        study = Study(args.count, fiducial.init("cpu"))
        for number, how in itertools.product(range(args.draws), [args.labels] if args.labels else LABELS):
            if (args.count, how, number) not in there:
                with args.out.open("a") as file:
                    file.write(json.dumps(study.draw(how, number)) + "\n")
    say(*table(draws_in(args.out)))


if __name__ == "__main__":
    with user_errors():
        main()
