"""From images to a result: checks first, then one pass over the images for all metrics."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from distributed import UserError, file_sha256, progress_bar
from evaluation.features import Extractor, load_extractor
from evaluation.images import Images, open_images
from evaluation.metrics import frechet_distance, inception_score
from evaluation.references import Provenance, Reference, find_reference, holds_statistics, read_reference
from evaluation.report import Grid, Metric, Result
from evaluation.statistics import BlockEntropy, FeatureStatistics

METRICS = {"fid": "FID", "is": "IS"}
PACKAGES = ("torch", "torch-fidelity", "numpy")
GRID_ROWS, GRID_COLUMNS = 10, 10
PUBLISHED_COUNT = 50_000

PROTOCOL = {
    "inception": "adm: FID on pool3, sigma with n - 1; IS on logits without bias, blocks of 5,000 in file order",
    "digits": "digits: adm's definitions on the 64 features and 10 logits of the embedded digit classifier",
}
DEVIATIONS = {"inception": ("the Inception network is torch-fidelity's port, not the TensorFlow graph",), "digits": ()}


@dataclass(frozen=True)
class Pass:
    """What one pass over a set of images leaves."""

    images: Images
    statistics: FeatureStatistics
    entropy: BlockEntropy
    pixels_sha256: str
    grid: Grid


@contextmanager
def plain_float32() -> Iterator[None]:
    """No TF32 in here: a number must not depend on what else the process does, or on torch's defaults."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


@torch.inference_mode()
@plain_float32()
def extract(images: Images, extractor: Extractor, batch_size: int) -> Pass:
    """Runs every image through the extractor once; hashes the pixels, in order, so that an npz and its PNGs compare equal."""
    statistics, entropy = FeatureStatistics.empty(extractor.dimension), None
    digest, grid = hashlib.sha256(), Grid.choose(images.labels, images.count, GRID_ROWS, GRID_COLUMNS)
    with progress_bar(total=images.count, desc="evaluating") as bar:
        for batch in images.batches(batch_size):
            digest.update(batch)
            grid.offer(statistics.count, batch)
            pixels = torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2))).to(extractor.device)
            features, logits = (output.float().cpu().numpy() for output in extractor.apply(pixels))
            statistics.update(features)
            entropy = entropy or BlockEntropy(logits.shape[1])
            entropy.update(logits)
            bar.update(len(batch))
    return Pass(images, statistics, entropy, digest.hexdigest(), grid)


@dataclass(frozen=True)
class Evaluator:
    """A reference and an extractor that fit each other, both checked. A reference of images is extracted when it is needed."""

    reference: Reference | Images | None
    extractor: Extractor
    metrics: tuple[str, ...]
    batch_size: int

    @classmethod
    def prepare(
        cls,
        ref: str | None,
        metrics: Iterable[str] = tuple(METRICS),
        extractor: str | None = None,
        inception_weights: Path | None = None,
        device: torch.device | str = "cpu",
        batch_size: int = 64,
    ) -> "Evaluator":
        """Reads all that a result hangs on besides the samples. Without `extractor`, the reference says which it is made with.

        Raises:
            UserError: in one sentence, if something is missing or does not fit.
        """
        metrics = tuple(metrics)
        if not metrics:
            raise UserError(f"--metrics names none: choose from {', '.join(METRICS)}")
        if unknown := [name for name in metrics if name not in METRICS]:
            raise UserError(f"--metrics {unknown[0]}: no such metric; choose from {', '.join(METRICS)}")
        if ref is None and "fid" in metrics:
            raise UserError("--ref is missing: FID needs a reference npz or folder; without one, --metrics is alone can be had")
        path = find_reference(ref) if ref is not None else None
        if "fid" not in metrics:
            path = None
        reference = read_reference(path) if path and holds_statistics(path) else None
        made_with = reference.provenance.extractor if reference else None
        if extractor and made_with and extractor != made_with:
            raise UserError(f"--extractor {extractor}: {path} was made with {made_with}; numbers across extractors mean nothing")
        images = open_images(path) if path and not reference else None
        network = load_extractor(extractor or made_with or "inception", inception_weights, torch.device(device))
        if images:
            check_reference_images(images, network)
        evaluator = cls(reference or images, network, metrics, batch_size)
        if reference:
            evaluator._check_statistics()
        return evaluator

    def _check_statistics(self) -> None:
        if len(self.reference.mu) != self.extractor.dimension:
            raise UserError(
                f"{self.reference.path} has {len(self.reference.mu)} features, "
                f"but {self.extractor.name} gives {self.extractor.dimension}"
            )
        recorded = self.reference.provenance.weights_sha256
        if recorded not in (None, self.extractor.weights_sha256):
            raise UserError(
                f"{self.reference.path} was made with other weights of {self.extractor.name} (SHA-256 {recorded[:12]}, "
                f"here {self.extractor.weights_sha256[:12]})"
            )

    def evaluate(self, samples: Path) -> Result:
        """One pass over the samples.

        Raises:
            UserError: if they cannot be read or do not fit the extractor.
        """
        images = open_images(samples)
        check_size(str(samples), images.height, images.width, self.extractor)
        if images.count < 2 and "fid" in self.metrics:
            raise UserError(f"{samples} holds {images.count} image; FID needs a covariance, so at least 2")
        reference = self.reference
        if isinstance(reference, Images):
            reference = reference_from(reference, self.extractor, self.batch_size)
        seen = extract(images, self.extractor, self.batch_size)
        values = {}
        if "fid" in self.metrics:
            own = seen.statistics
            values["fid"] = (frechet_distance(own.mean, own.covariance, reference.mu, reference.sigma), None)
        if "is" in self.metrics:
            values["is"] = inception_score(seen.entropy.divergences())
        return self._result(seen, reference, values)

    def is_done(self, samples: Path, json_file: Path) -> bool:
        """Whether `json_file` is the result of these metrics on these samples, reference and extractor, byte for byte."""
        if isinstance(self.reference, Images):
            return False
        try:
            old = json.loads(json_file.read_text())
            return (
                old["samples"]["file_sha256"] == file_sha256(samples)
                and (old["reference"] or {}).get("sha256") == (self.reference and self.reference.sha256)
                and old["extractor"]["weights_sha256"] == self.extractor.weights_sha256
                and set(old["metrics"]) == {metric + self.extractor.suffix for metric in self.metrics}
            )
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _result(self, seen: Pass, reference: Reference | None, values: dict[str, tuple[float, float | None]]) -> Result:
        name, suffix = self.extractor.name, self.extractor.suffix
        metrics = {
            metric + suffix: Metric(
                METRICS[metric] + suffix, value, std, seen.images.count, PROTOCOL[name], tuple(DEVIATIONS[name])
            )
            for metric, (value, std) in values.items()
        }
        images = seen.images
        return Result(
            metrics=metrics,
            warnings=tuple(warnings(images, self.extractor, self.metrics)),
            samples={
                "path": str(images.path),
                "count": images.count,
                "image_size": [images.height, images.width],
                "labels": spread_of_labels(images.labels),
                "file_sha256": file_sha256(images.path) if images.path.is_file() else None,
                "pixels_sha256": seen.pixels_sha256,
            },
            reference=reference
            and {
                "path": str(reference.path),
                "sha256": reference.sha256,
                "extractor": reference.provenance.extractor,
                "count": reference.provenance.count,
                "source": reference.provenance.source,
            },
            extractor={"name": name, "dimension": self.extractor.dimension, "weights_sha256": self.extractor.weights_sha256},
            settings={"batch_size": self.batch_size, "dtype": "float32", "tf32": False, "device": str(self.extractor.device)},
            packages={package: version(package) for package in PACKAGES},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            grid=seen.grid,
        )


def spread_of_labels(labels: np.ndarray | None) -> str | None:
    """How the classes are represented, since random and balanced labels give different numbers."""
    if labels is None:
        return None
    counts = np.unique(labels, return_counts=True)[1]
    return f"{len(counts):,} different, {counts.min():,} to {counts.max():,} images each"


def check_size(what: str, height: int, width: int, extractor: Extractor) -> None:
    """Raises UserError if the extractor takes one image size only, and not this one."""
    size = extractor.image_size
    if size and (height, width) != (size, size):
        raise UserError(f"{what}: images of {width} x {height}, but the extractor {extractor.name} takes {size} x {size} only")


def check_reference_images(images: Images, extractor: Extractor) -> None:
    """Raises UserError if no statistics can be made of these images."""
    check_size(str(images.path), images.height, images.width, extractor)
    if images.count < 2:
        raise UserError(f"{images.path} holds {images.count} image; a reference needs a covariance, so at least 2")


def reference_from(images: Images, extractor: Extractor, batch_size: int) -> Reference:
    """Statistics of images, with their provenance.

    Raises:
        UserError: if there are too few, or one cannot be read.
    """
    check_reference_images(images, extractor)
    seen = extract(images, extractor, batch_size)
    provenance = Provenance(
        extractor.name, extractor.weights_sha256, images.count, images.height, seen.pixels_sha256, images.path.name
    )
    return Reference(images.path, seen.pixels_sha256, seen.statistics.mean, seen.statistics.covariance, provenance)


def warnings(images: Images, extractor: Extractor, metrics: tuple[str, ...]) -> list[str]:
    """What a reader has to know before comparing these numbers with others."""
    found = []
    if "fid" in metrics and images.count <= extractor.dimension:
        found.append(
            f"FID{extractor.suffix} of {images.count:,} samples in {extractor.dimension:,} dimensions: the covariance is "
            "singular, and the value is far above that of many samples."
        )
    if "fid" in metrics and not extractor.suffix and images.count != PUBLISHED_COUNT:
        found.append(f"This is not FID-50K: it was computed on {images.count:,} samples, and FID depends on their number.")
    if "is" in metrics and images.labels is not None and len(images.labels) > 1:
        ordered = bool((np.diff(images.labels) >= 0).all()) and images.labels[0] != images.labels[-1]
        if ordered:
            found.append("The file is sorted by class, so that blocks of consecutive images hold few classes: the IS is too low.")
    return found
