"""From images to a result: checks first, then one pass over the images, then all metrics from its features."""

import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fiducial import Group, UserError, printable, read_json
from fiducial.classes import names_sha256
from fiducial.classes import read as read_names
from fiducial.evaluation.checks import (
    Settings,
    check_class_names,
    check_protocol,
    check_reference,
    check_reference_images,
    check_samples,
    check_size,
    check_size_of_reference,
    choose_extractor,
    choose_metrics,
    deviations,
    making_reference,
    spread_of_labels,
    warnings,
    warnings_of_classes,
)
from fiducial.evaluation.extraction import Features, extract, plain_float32
from fiducial.evaluation.features import Extractor, load_extractor, weights_of
from fiducial.evaluation.image_files import NeedsCrop
from fiducial.evaluation.images import Images, open_images
from fiducial.evaluation.memorisation import Memorisation, memorisation
from fiducial.evaluation.metrics import frechet_distance
from fiducial.evaluation.numbering import within_one_folder
from fiducial.evaluation.protocols import (
    FIDELITY_SEED,
    FROM_FEATURES,
    PROTOCOLS,
    SHUFFLE_SEED,
    WITHOUT_REFERENCE,
    called,
)
from fiducial.evaluation.references import Provenance, Reference, find_reference
from fiducial.evaluation.remarks import (
    REFERENCE,
    SAMPLES,
    look_at,
    missing,
    open_samples,
    repeats,
    require_levels,
    tell,
    weights_unlike_published,
)
from fiducial.evaluation.report import Grid, Metric, Result
from fiducial.evaluation.results import LARGEST
from fiducial.evaluation.runs import ClassNames, find_names, find_run
from fiducial.evaluation.scores import Scorer, Scores
from fiducial.evaluation.statistics import FeatureStatistics

if TYPE_CHECKING:
    from fiducial.evaluation.online import Seen

PACKAGES = ("torch", "torchvision", "torch-fidelity", "numpy", "scipy", "pillow")
GRID_ROWS, GRID_COLUMNS = 10, 10
PROBE = 512  # images that are evaluated in float32 as well, to show what bfloat16 does
FEATURES_SEED = 0
WEIGHTS = {True: "as published", False: "not the published file", None: "the published file's hash is not known here"}


@dataclass(frozen=True)
class Evaluation:
    """A reference and an extractor that fit each other, both checked. Images of a reference are extracted when needed.

    `metrics` can be had from this reference; `left_out` says why others of the protocol cannot. `exact` is the extractor in
    float32, where the one in use is not. `training` are the images that samples may be copies of, `class_names` what the
    samples' classes are called, where that was given, `weights_unlike_published` a sentence, where there is one to say, and
    `said` those that were said already on this rank's terminal.
    """

    reference: Reference | None
    extractor: Extractor
    settings: Settings
    group: Group
    metrics: tuple[str, ...]
    left_out: dict[str, str]
    exact: Extractor | None = None
    training: Images | None = None
    class_names: ClassNames | None = None
    weights_unlike_published: str | None = None
    said: tuple[str, ...] = ()

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
        training: Path | None = None,
        crop: int | None = None,
        class_names: Path | None = None,
    ) -> "Evaluation":
        """Reads all that a result hangs on besides the samples. Without `extractor`, the reference says which it is made with.

        Args:
            image_size: of the samples, so that a published reference of another size is not fetched, and training images are
                cropped to it.
            crop: to which a reference's files of images are cropped, as the samples' are.
            class_names: of the samples, as `fiducial.classes.read` takes them; without, those of the run that drew them.

        Raises:
            UserError: in one sentence, if something is missing or does not fit.
        """
        settings.check()
        needed = settings.metrics is None or not set(settings.metrics) <= set(WITHOUT_REFERENCE)
        if ref is None and needed:
            can = ",".join(WITHOUT_REFERENCE)
            raise UserError(f"--ref is missing: all metrics but these need a reference; without one, --metrics {can} can be had")
        names = read_names(class_names, f"--class-names {class_names}") if class_names else None
        extractor = check_protocol(ref, extractor, settings)
        with naming_the_crop(ref, image_size, extractor):
            reference = find_reference(ref, group, settings.cache_dir, image_size, crop) if ref is not None else None
            outputs = choose_extractor(reference, extractor, settings)
            metrics, left_out = choose_metrics(reference, outputs, settings)
            if reference and reference.images and needed and image_size:
                check_size_of_reference("the samples", image_size, image_size, reference, outputs.name)
            said = look_at(reference.images if reference and needed else None, REFERENCE, group)
        require_levels(reference.images if reference and needed else None, REFERENCE, group)
        weights = weights_of(outputs.name, inception_weights, dinov2_weights)
        network = load_extractor(outputs.name, weights, group, settings.dtype, settings.cache_dir)
        if (unlike := weights_unlike_published(network, weights)) and group.is_main:
            said += tell(unlike)
        if reference:
            check_reference(reference, network)
        reference = reference if needed else None
        training = open_training(training, network, image_size or network.image_size) if training else None
        said += look_at(training, "training images", group)
        require_levels(training, "training images", group)
        lower = settings.dtype != "float32"
        exact = load_extractor(outputs.name, weights, group, cache_dir=settings.cache_dir) if lower else None
        names = names and ClassNames(names.names, names.sha256)
        return cls(reference, network, settings, group, metrics, left_out, exact, training, names, unlike, said)

    def evaluate(self, samples: Path | Images) -> Result | None:
        """One pass over the samples, shared out over the ranks. The result is rank 0's; the others get None.

        Args:
            samples: opened, or where they are.

        Raises:
            UserError: if they cannot be read or do not fit the extractor or the reference.
        """
        images = samples if isinstance(samples, Images) else open_samples(samples)
        self.check(images)
        require_levels(images, SAMPLES, self.group)
        with self.settings.cache(self.group) as cache:
            return self.result_of(images, self._extract(images, cache), cache)

    def check(self, images: "Images | Seen") -> dict[str, str]:
        """Which metrics cannot be had of so many samples, and why; raises UserError if the samples fit nothing."""
        self.check_training(images.height, images.width)
        if self.class_names:
            check_class_names(images, self.class_names)
        return check_samples(images, self.metrics, self.reference, self.extractor, self.settings)

    def check_training(self, height: int, width: int) -> None:
        """Raises UserError if training images are of another size than samples of this one."""
        if self.training and (self.training.height, self.training.width) != (height, width):
            size = f"{self.training.width} x {self.training.height}"
            raise UserError(f"--train {self.training.path}: images of {size}, but the samples are of {width} x {height}")

    @torch.inference_mode()
    @plain_float32()
    def result_of(self, images: "Images | Seen", own: Features, cache: Path, grid: Grid | None = None) -> Result | None:
        """The result of samples with these features, on rank 0; to be called by all ranks.

        Args:
            grid: the report's pictures, of images that are not in files.
        """
        too_few = self.check(images)
        metrics = tuple(name for name in self.metrics if name not in too_few)
        reference, theirs = self._extracted_reference(metrics, cache)
        names = self._names(images, own)
        scorer = Scorer(metrics, own, images.labels, reference, self.extractor, self.settings, self.group, names.names)
        scores, memorised = scorer.scores(), self._memorised(images, own, cache)
        if not self.group.is_main:
            return None
        notes = [self.weights_unlike_published] if self.weights_unlike_published else []
        notes += warnings(images, self.reference, self.extractor, scores.values, scores.sorted_by_class)
        notes += warnings_of_classes(scores, called("fid", self.extractor)[1])
        if self.training:
            notes += missing(self.training, "training images")
            if lossy := sorted(self.training.headers.lossy):
                notes.append(f"Training images are {' and '.join(lossy)} files; what copies one lies a little away from it.")
        notes += repeats(own, theirs, reference)
        if self.exact and "fid" in metrics:
            notes.append(self._effect_of_dtype(images, own, reference, theirs))
        left_out = {called(name, self.extractor)[1]: why for name, why in (self.left_out | too_few).items()}
        if images.no_labels and {"fid", "fid-infinity"} & set(metrics):
            left_out[f"{called('fid', self.extractor)[1]} by class"] = f"{images.path.name}: {images.no_labels}"
        elif scores.pairing.why:
            left_out[f"{called('fid', self.extractor)[1]} by class"] = scores.pairing.why
        found = self._result(images, own, reference, scores, notes, left_out, memorised, grid or _grid_of(images))
        return replace(found, class_names=names if names.names else None)

    def _names(self, images: "Images | Seen", own: Features) -> ClassNames:
        """What the samples' classes are called, empty where nobody knows; as rank 0 finds it, for other hosts may see less."""
        if self.class_names:
            return self.class_names
        own_names = ClassNames(images.class_names, names_sha256(images.class_names))
        found = self.group.once(lambda: asdict(find_names(images.path, own.pixels_sha256) or own_names))
        return ClassNames(tuple(found["names"]), found["sha256"])

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
        classes = {"labels": reference.images.classes, "numbering": reference.images.numbering}
        return replace(reference, features=theirs.rows, **classes), theirs

    def _memorised(self, images: "Images | Seen", own: Features, cache: Path) -> Memorisation | None:
        """What the samples have of the training images, if those were given; on rank 0 with the pictures, if there are any."""
        if self.training is None:
            return None
        theirs = self._extract(self.training, cache)
        found = memorisation(own.rows, theirs.rows, self.group, theirs.first_of_each())
        found = replace(found, training_sha256=theirs.pixels_sha256)
        if self.group.is_main and isinstance(images, Images):
            ours = images.pick([pair.sample for pair in found.pairs])
            training = self.training.pick([pair.training for pair in found.pairs])
            found.pictures.extend((ours[pair.sample], training[pair.training]) for pair in found.pairs)
        return found

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
            f"a difference of {seen - wanted:+.2g}."
        )

    def _exactly(self, images: Images, count: int) -> Iterator[np.ndarray]:
        """Features of the first images in float32."""
        for batch in images.batches(self.settings.batch_size, 0, count):
            features, _ = self.exact.run(batch)
            yield features.cpu().numpy()

    def is_done(self, samples: Path, json_file: Path) -> bool:
        """Whether `json_file` is the result of these settings on these samples, reference and extractor, byte for byte.

        With a reference or training images that would have to be read first to be told from others, no.
        """
        if self.training or (self.reference and self.reference.sha256 is None):
            return False
        try:
            old = read_json(json_file, LARGEST)
            images = open_samples(samples)
            too_few = check_samples(images, self.metrics, self.reference, self.extractor, self.settings)
            wanted = {called(name, self.extractor)[0] for name in self.metrics if name not in too_few}
            return (
                old["samples"]["content_sha256"] == images.content_sha256()
                and (old["reference"] or {}).get("sha256") == (self.reference and self.reference.sha256)
                and old["extractor"]["weights_sha256"] == self.extractor.weights_sha256
                and self.settings.recorded().items() <= old["settings"].items()
                and wanted <= set(old["metrics"])
                and old["training"] is None
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def _result(
        self,
        images: "Images | Seen",
        own: Features,
        reference: Reference | None,
        scores: Scores,
        notes: list[str],
        left_out: dict[str, str],
        memorised: Memorisation | None,
        grid: Grid,
    ) -> Result:
        extractor, settings = self.extractor, self.settings
        return Result(
            metrics=self._metrics(images.count, reference, scores) | (self._authenticity(memorised) if memorised else {}),
            warnings=tuple(notes),
            left_out=left_out,
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
                "features": own.origin,
            },
            packages={"python": platform.python_version(), **{name: version(name) for name in (*PACKAGES, *extractor.packages)}},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            grid=grid,
            curve=scores.curve,
            classes=scores.classes,
            memorisation=memorised,
            run=find_run(images.path, own.pixels_sha256),
            training=self.training and memorised and _described_training(self.training, memorised),
        )

    def _metrics(self, count: int, reference: Reference | None, scores: Scores) -> dict[str, Metric]:
        """All numbers but AuthPct by their keys, with what they are."""
        protocol, found = PROTOCOLS[self.settings.protocol], {}
        for name, estimate in scores.values.items():
            key, label = called(name, self.extractor)
            found[key] = Metric(
                name=name,
                label=label,
                **asdict(estimate),
                n=count,
                reference_n=reference and reference.count_for(name),
                protocol=protocol.name,
                definition=protocol.definition(name, self.extractor.name),
                deviations=tuple(deviations(name, self.reference, self.extractor, self.settings)),
            )
        return found

    def _authenticity(self, memorised: Memorisation) -> dict[str, Metric]:
        """AuthPct by its key, in percent as its name says."""
        key, label = called("authpct", self.extractor)
        protocol = PROTOCOLS[self.settings.protocol]
        return {
            key: Metric(
                name="authpct",
                label=label,
                **{name: value and 100 * value for name, value in asdict(memorised.authentic).items()},
                n=memorised.n,
                reference_n=memorised.training_n,
                protocol=protocol.name,
                definition=protocol.definition("authpct", self.extractor.name),
                deviations=tuple(deviations("authpct", None, self.extractor, self.settings)),
            )
        }


@contextmanager
def naming_the_crop(ref: str | None, image_size: int | None, extractor: str | None) -> Iterator[None]:
    """In here a refusal of images that a crop would make fit names the command that makes a reference of them.

    Args:
        image_size: of the samples, where it is known.
        extractor: to make it with; None for Inception.
    """
    try:
        yield
    except NeedsCrop as error:
        if image_size is None:
            raise
        raise UserError(f"{error.fact}; {making_reference(ref, image_size, extractor or 'inception')}") from error


def _grid_of(images: Images) -> Grid:
    """The report's pictures."""
    grid = Grid.choose(images.labels, images.count, GRID_ROWS, GRID_COLUMNS)
    grid.fill(images.pick)
    return grid


def open_training(path: Path, extractor: Extractor, image_size: int | None) -> Images:
    """The images that samples may be copies of, cropped to the samples' size where they are files of any size.

    Raises:
        UserError: if no two of them differ, or they cannot be read or extracted.
    """
    images = open_images(path, None if path.suffix == ".npz" else image_size)
    check_size(f"--train {path}", images.height, images.width, extractor)
    if images.count < 2:
        raise UserError(f"--train {path}: holds {images.count} image, and at least 2 are needed")
    first = images.pick([0])[0]
    if all((batch == first).all() for batch in images.batches(16)):  # ends at the first that differs
        raise UserError(f"--train {path}: its {images.count} images are all the same, and at least 2 different ones are needed")
    return images


def make_reference(images: Images, extractor: Extractor, group: Group, settings: Settings, keep: int) -> Reference:
    """Statistics of images with their provenance, and the features of `keep` of them, drawn at random.

    Raises:
        UserError: if there are too few, or one cannot be read.
    """
    check_reference_images(images, extractor)
    with settings.cache(group) as cache:
        seen = extract(images, extractor, group, settings.batch_size, cache)
        different = len(seen.first_of_each())
    chosen = np.random.default_rng(FEATURES_SEED).choice(images.count, min(keep, images.count), replace=False)
    provenance = Provenance(
        extractor=extractor.name,
        weights_sha256=extractor.weights_sha256,
        count=images.count,
        image_size=images.height,
        image_width=images.width if images.width != images.height else None,
        pixels_sha256=seen.pixels_sha256,
        source=printable(images.path.name),
        resize=images.resize,
        not_read=images.not_read,
        dtype=extractor.dtype,
        features=len(chosen),
        features_seed=FEATURES_SEED if len(chosen) < images.count else None,
        different=different if different < images.count else None,
        no_classes=_why_no_classes(images),
    )
    chosen = np.sort(chosen)
    features = seen.rows[chosen] if keep else None
    labels = images.classes[chosen] if keep and images.classes is not None else None
    found = {"features": features, "labels": labels, "numbering": images.numbering, "provenance": provenance}
    return Reference(images.path, None, "Fiducial's statistics", **_moments(seen), **found)


def _why_no_classes(images: Images) -> str | None:
    """Why images that one may expect to have classes have none, in a clause."""
    if images.no_labels or images.classes is not None:
        return images.no_labels
    return within_one_folder(images.names, printable(images.path.name)).why or None


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


def _described_samples(images: "Images | Seen", own: Features) -> dict:
    """Samples as the result records them."""
    return {
        "path": printable(str(images.path)),
        "count": images.count,
        "image_size": [images.height, images.width],
        "resize": images.resize,
        "not_read": images.not_read,
        "labels": spread_of_labels(images.labels),
        "content_sha256": own.content_sha256,
        "pixels_sha256": own.pixels_sha256,
    }


def _described_training(images: Images, memorised: Memorisation) -> dict:
    """The training images as the result records them."""
    return {"path": printable(str(images.path)), "count": images.count, "pixels_sha256": memorised.training_sha256}


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
        "resize": images.resize if images else provenance.resize,
        "not_read": images.not_read if images else provenance.not_read,
        "count": provenance.count,
        "images": images.count if images else None,
        "features": provenance.features,
        "source": provenance.source,
    }
