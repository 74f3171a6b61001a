"""From images to a result: checks first, then one pass over the images, then all metrics from its features."""

import json
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from distributed import Group, UserError, printable
from evaluation.checks import (
    Settings,
    check_protocol,
    check_reference,
    check_reference_images,
    check_samples,
    choose_extractor,
    choose_metrics,
    deviations,
    looks_sorted,
    spread_of_labels,
    warnings,
)
from evaluation.extraction import Features, extract, plain_float32
from evaluation.features import Extractor, load_extractor, weights_of
from evaluation.images import Images, open_images
from evaluation.metrics import frechet_distance, inception_score, kernel_distance, precision_recall
from evaluation.names import find_names
from evaluation.protocols import (
    ADM_IS_BLOCK,
    FIDELITY_IS_SPLITS,
    FIDELITY_SEED,
    FROM_FEATURES,
    KID_SUBSETS,
    LABELS,
    PROTOCOLS,
    SHUFFLE_SEED,
    called,
)
from evaluation.references import Provenance, Reference, find_reference
from evaluation.report import Grid, Metric, Result
from evaluation.statistics import FeatureStatistics, mean_divergence

PACKAGES = ("torch", "torchvision", "torch-fidelity", "numpy", "scipy", "pillow")
GRID_ROWS, GRID_COLUMNS = 10, 10
LOGITS_CHUNK = 1000  # images whose logits exist at once
PROBE = 512  # images that are evaluated in float32 as well, to show what bfloat16 does
FEATURES_SEED = 0
WEIGHTS = {True: "as published", False: "not the published file", None: "the published file's hash is not known here"}

Values = dict[str, tuple[float, float | None]]  # a metric's value and, where it has one, its standard deviation


@dataclass(frozen=True)
class Evaluator:
    """A reference and an extractor that fit each other, both checked. Images of a reference are extracted when needed.

    `metrics` can be had from this reference; `left_out` says why others of the protocol cannot. `exact` is the extractor in
    float32, where the one in use is not.
    """

    reference: Reference | None
    extractor: Extractor
    settings: Settings
    group: Group
    metrics: tuple[str, ...]
    left_out: dict[str, str]
    exact: Extractor | None = None

    @classmethod
    def prepare(
        cls,
        ref: str | None,
        group: Group,
        settings: Settings,
        extractor: str | None = None,
        inception_weights: Path | None = None,
        image_size: int | None = None,
        dinov2_weights: Path | None = None,
    ) -> "Evaluator":
        """Reads all that a result hangs on besides the samples. Without `extractor`, the reference says which it is made with.

        Args:
            image_size: of the samples, so that a published reference of another size is not fetched.

        Raises:
            UserError: in one sentence, if something is missing or does not fit.
        """
        settings.check()
        needed = settings.metrics is None or set(settings.metrics) != {"is"}
        if ref is None and needed:
            raise UserError("--ref is missing: all metrics but is need a reference; without one, --metrics is alone can be had")
        extractor = check_protocol(ref, extractor, settings)
        reference = find_reference(ref, group, settings.cache_dir, image_size) if ref is not None else None
        outputs = choose_extractor(reference, extractor, settings)
        metrics, left_out = choose_metrics(reference, outputs, settings)
        weights = weights_of(outputs.name, inception_weights, dinov2_weights)
        network = load_extractor(outputs.name, weights, group, settings.dtype, settings.cache_dir)
        if reference:
            check_reference(reference, network)
        reference = reference if needed else None
        lower = settings.dtype != "float32"
        exact = load_extractor(outputs.name, weights, group, cache_dir=settings.cache_dir) if lower else None
        return cls(reference, network, settings, group, metrics, left_out, exact)

    @torch.inference_mode()
    @plain_float32()
    def evaluate(self, samples: Path) -> Result | None:
        """One pass over the samples, shared out over the ranks. The result is rank 0's; the others get None.

        Raises:
            UserError: if they cannot be read or do not fit the extractor or the reference.
        """
        images = open_images(samples)
        too_few = check_samples(images, self.metrics, self.reference, self.extractor, self.settings)
        metrics = tuple(name for name in self.metrics if name not in too_few)
        result = None
        with self.settings.cache(self.group) as cache:
            reference, theirs = self._extracted_reference(metrics, cache)
            own = self._extract(images, cache)
            values, sorted_by_class = self._values(metrics, own, reference)
            if self.group.is_main:
                notes = warnings(images, self.reference, self.extractor, values, sorted_by_class)
                if self.exact and "fid" in metrics:
                    notes.append(self._effect_of_dtype(images, own, reference, theirs))
                result = self._result(images, own, reference, values, notes, self.left_out | too_few)
        return result

    def _extract(self, images: Images, cache: Path) -> Features:
        return extract(images, self.extractor, self.group, self.settings.batch_size, cache)

    def _extracted_reference(self, metrics: tuple[str, ...], cache: Path) -> tuple[Reference | None, Features | None]:
        """The reference with the statistics and features that `metrics` need, and what had to be extracted for that."""
        reference = self.reference
        if reference is None or reference.images is None:
            return reference, None
        without_features = reference.features is None and set(FROM_FEATURES) & set(metrics)
        if reference.mu is not None and not without_features:
            return reference, None
        theirs = self._extract(reference.images, cache)
        if reference.mu is None:
            reference = replace(reference, sha256=theirs.content_sha256, **_moments(theirs))
        return replace(reference, features=theirs.rows), theirs

    def _values(self, metrics: tuple[str, ...], own: Features, reference: Reference | None) -> tuple[Values, bool]:
        """All numbers, those of one matrix on rank 0 only; and whether the samples look sorted by class."""
        values: Values = {}
        sorted_by_class = False
        if "fid" in metrics and self.group.is_main:
            values["fid"] = _distance(own.statistics, reference.mu, reference.sigma), None
        if "sfid" in metrics and self.group.is_main:
            values["sfid"] = _distance(own.spatial, reference.mu_s, reference.sigma_s), None
        if "is" in metrics:
            scores, sorted_by_class = self._inception_scores(own)
            values |= scores
        if {"precision", "recall"} & set(metrics):
            pair = precision_recall(reference.features, own.rows, self.group, self.settings.fp16_compat)
            values |= {name: (value, None) for name, value in zip(("precision", "recall"), pair, strict=True) if name in metrics}
        if "kid" in metrics:
            size = self.settings.kid_subset_size
            values["kid"] = kernel_distance(own.rows, reference.features, self.group, KID_SUBSETS, size, FIDELITY_SEED)
        return {name: values[name] for name in LABELS if name in values}, sorted_by_class

    def _inception_scores(self, own: Features) -> tuple[Values, bool]:
        """IS in the protocol's order of images, ADM's after a shuffle as well; and whether the file looks sorted by class."""
        count = len(own.rows)
        if self.settings.protocol == "torch-fidelity":
            order = np.random.RandomState(FIDELITY_SEED).permutation(count)
            cuts = [split * count // FIDELITY_IS_SPLITS for split in range(1, FIDELITY_IS_SPLITS)]
            return {"is": self._inception_score(own, np.split(order, cuts))[0]}, False
        cuts = range(ADM_IS_BLOCK, count, ADM_IS_BLOCK)
        score, predicted = self._inception_score(own, np.split(np.arange(count), cuts))
        order = np.random.default_rng(SHUFFLE_SEED).permutation(count)
        shuffled, _ = self._inception_score(own, np.split(order, cuts))
        return {"is": score, "is-shuffled": shuffled}, looks_sorted(predicted)

    def _inception_score(self, own: Features, blocks: list[np.ndarray]) -> tuple[tuple[float, float | None], np.ndarray]:
        """The score over blocks of indices, shared out over the ranks, and each image's most likely class."""
        divergences, predicted = np.zeros(len(blocks)), np.zeros(len(own.rows))

        def logits(block: np.ndarray) -> Iterator[np.ndarray]:
            for chunk in np.split(np.sort(block), range(LOGITS_CHUNK, len(block), LOGITS_CHUNK)):
                rows = torch.from_numpy(own.rows[chunk]).to(self.extractor.device)
                found = self.extractor.logits(rows).cpu().numpy()
                predicted[chunk] = found.argmax(1)
                yield found

        for number in range(self.group.rank, len(blocks), self.group.world_size):
            divergences[number] = mean_divergence(logits(blocks[number]))
        return inception_score(self.group.sum(divergences)), self.group.sum(predicted)

    def _effect_of_dtype(self, images: Images, own: Features, reference: Reference, theirs: Features | None) -> str:
        """What the network's precision does to FID, seen on the first images of either side; statistics stay as they are."""
        count = min(PROBE, images.count)
        lower = moments_of([own.rows[:count]])
        exact = moments_of(self._exactly(images, count))
        if reference.kind == "images":
            lower += moments_of([theirs.rows[:PROBE]])
            exact += moments_of(self._exactly(reference.images, min(PROBE, reference.images.count)))
            against = f" against the first {min(PROBE, reference.images.count):,} of the reference"
        else:
            lower, exact = ((*moments, reference.mu, reference.sigma) for moments in (lower, exact))
            against = ""
        seen, wanted = frechet_distance(*lower), frechet_distance(*exact)
        return (
            f"In {self.settings.dtype}, FID of the first {count:,} samples{against} is {seen:.4f}, and {wanted:.4f} in float32: "
            f"a difference of {seen - wanted:+.4f}."
        )

    def _exactly(self, images: Images, count: int) -> Iterator[np.ndarray]:
        """Features of the first images in float32."""
        for batch in images.batches(self.settings.batch_size, 0, count):
            features, _ = self.exact.run(batch)
            yield features.cpu().numpy()

    def is_done(self, samples: Path, json_file: Path) -> bool:
        """Whether `json_file` is the result of these settings on these samples, reference and extractor, byte for byte."""
        if self.reference and self.reference.sha256 is None:
            return False
        try:
            old = json.loads(json_file.read_text())
            images = open_images(samples)
            too_few = check_samples(images, self.metrics, self.reference, self.extractor, self.settings)
            wanted = {called(name, self.extractor)[0] for name in self.metrics if name not in too_few}
            return (
                old["samples"]["content_sha256"] == images.content_sha256()
                and (old["reference"] or {}).get("sha256") == (self.reference and self.reference.sha256)
                and old["extractor"]["weights_sha256"] == self.extractor.weights_sha256
                and self.settings.recorded().items() <= old["settings"].items()
                and wanted <= set(old["metrics"])
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def _result(
        self,
        images: Images,
        own: Features,
        reference: Reference | None,
        values: Values,
        notes: list[str],
        left_out: dict[str, str],
    ) -> Result:
        extractor, settings = self.extractor, self.settings
        protocol = PROTOCOLS[settings.protocol]
        names = {name: called(name, extractor) for name in (*values, *left_out)}
        metrics = {
            names[name][0]: Metric(
                label=names[name][1],
                value=value,
                std=std,
                n=images.count,
                reference_n=reference and reference.count_for(name),
                protocol=protocol.name,
                definition=protocol.definition(name, extractor.name),
                deviations=tuple(deviations(name, self.reference, extractor, settings)),
            )
            for name, (value, std) in values.items()
        }
        grid = Grid.choose(images.labels, images.count, GRID_ROWS, GRID_COLUMNS)
        grid.fill(images.pick)
        return Result(
            metrics=metrics,
            warnings=tuple(notes),
            left_out={names[name][1]: why for name, why in left_out.items()},
            samples=_described_samples(images, own),
            reference=reference and _described_reference(reference),
            extractor={
                "name": extractor.name,
                "dimension": extractor.dimension,
                "weights_sha256": extractor.weights_sha256,
                "weights": WEIGHTS[extractor.as_published],
            },
            settings={
                **settings.recorded(),
                "tf32": False,
                "device": extractor.device.type,
                "world_size": self.group.world_size,
                "shuffle_seed": FIDELITY_SEED if settings.protocol == "torch-fidelity" else SHUFFLE_SEED,
                "kid_seed": FIDELITY_SEED,
                "features": "from the cache" if own.reused else "computed",
            },
            packages={"python": platform.python_version(), **{name: version(name) for name in (*PACKAGES, *extractor.packages)}},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            grid=grid,
            class_names=find_names(images.path, own.pixels_sha256),
        )


def make_reference(images: Images, extractor: Extractor, group: Group, settings: Settings, keep: int) -> Reference:
    """Statistics of images with their provenance, and the features of `keep` of them, drawn at random.

    Raises:
        UserError: if there are too few, or one cannot be read.
    """
    check_reference_images(images, extractor)
    with settings.cache(group) as cache:
        seen = extract(images, extractor, group, settings.batch_size, cache)
    chosen = np.random.default_rng(FEATURES_SEED).choice(images.count, min(keep, images.count), replace=False)
    provenance = Provenance(
        extractor=extractor.name,
        weights_sha256=extractor.weights_sha256,
        count=images.count,
        image_size=images.height,
        image_width=images.width if images.width != images.height else None,
        pixels_sha256=seen.pixels_sha256,
        source=printable(images.path.name),
        resize=f"RGB, ADM's centre crop to {images.crop}" if images.crop else None,
        dtype=extractor.dtype,
        features=len(chosen),
        features_seed=FEATURES_SEED if len(chosen) < images.count else None,
    )
    features = seen.rows[np.sort(chosen)] if keep else None
    return Reference(images.path, None, "Fiducial's statistics", **_moments(seen), features=features, provenance=provenance)


def moments_of(batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of features (B, D) in batches."""
    statistics = None
    for features in batches:
        statistics = statistics or FeatureStatistics.empty(features.shape[1])
        statistics.update(features)
    statistics.flush()
    return statistics.mean, statistics.covariance


def _moments(seen: Features) -> dict[str, np.ndarray | None]:
    """What a `Reference` holds of extracted images."""
    spatial = seen.spatial
    return {
        "mu": seen.statistics.mean,
        "sigma": seen.statistics.covariance,
        "mu_s": spatial.mean if spatial else None,
        "sigma_s": spatial.covariance if spatial else None,
    }


def _distance(own: FeatureStatistics, mu: np.ndarray, sigma: np.ndarray) -> float:
    return frechet_distance(own.mean, own.covariance, mu, sigma)


def _described_samples(images: Images, own: Features) -> dict:
    """Samples as the result records them."""
    return {
        "path": printable(str(images.path)),
        "count": images.count,
        "image_size": [images.height, images.width],
        "labels": spread_of_labels(images.labels),
        "content_sha256": own.content_sha256,
        "pixels_sha256": own.pixels_sha256,
    }


def _described_reference(reference: Reference) -> dict:
    """A reference as the result records it."""
    provenance = reference.provenance
    images = reference.images
    return {
        "path": printable(str(reference.path)),
        "url": reference.url,
        "kind": reference.kind,
        "sha256": reference.sha256,
        "pixels_sha256": provenance.pixels_sha256,
        "image_size": reference.image_size and list(reference.image_size),
        "weights_sha256": provenance.weights_sha256,
        "extractor": provenance.extractor,
        "dtype": provenance.dtype,
        "resize": provenance.resize,
        "count": provenance.count,
        "images": images.count if images else None,
        "features": provenance.features,
        "source": provenance.source,
    }
