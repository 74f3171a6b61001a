"""From images to a result: checks first, then one pass over the images, then all metrics from its features."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from fiducial import Group, UserError, read_json
from fiducial.classes import names_sha256
from fiducial.classes import read as read_names
from fiducial.evaluation.caveats import warnings, warnings_of_classes, warnings_of_training
from fiducial.evaluation.data.image_files import NeedsCrop
from fiducial.evaluation.data.images import Images, Seen
from fiducial.evaluation.data.opening import open_images
from fiducial.evaluation.data.references import Reference, find_reference
from fiducial.evaluation.data.remarks import (
    REFERENCE,
    SAMPLES,
    look_at,
    open_samples,
    repeats,
    require_levels,
    tell,
    weights_unlike_published,
)
from fiducial.evaluation.data.runs import ClassNames, find_names
from fiducial.evaluation.features import DEFAULT, ExtractorSpec
from fiducial.evaluation.features.extraction import Features, extract_each
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.features.load import given_for, load_extractor, require_taken
from fiducial.evaluation.fit import (
    check_class_names,
    check_protocol,
    check_reference,
    check_samples,
    check_size,
    check_size_of_reference,
    choose_extractor,
    choose_metrics,
    making_reference,
)
from fiducial.evaluation.lower import effect_of_dtype
from fiducial.evaluation.making import moments_of_features
from fiducial.evaluation.metrics import METRICS, Need, called, without_reference
from fiducial.evaluation.metrics.inputs import Inputs
from fiducial.evaluation.metrics.intervals import strata_of
from fiducial.evaluation.panel import Member, find_panel, load_panel
from fiducial.evaluation.record import record
from fiducial.evaluation.results.grid import Grid
from fiducial.evaluation.results.reading import LARGEST
from fiducial.evaluation.results.result import Result
from fiducial.evaluation.score import Scorer, Scores
from fiducial.evaluation.settings import Settings
from fiducial.precision import plain_float32
from fiducial.ranks.cores import bounded_threads


@dataclass(frozen=True)
class Evaluation:
    """A reference and an extractor that fit each other, both checked. Images of a reference are extracted when needed.

    `metrics` can be had from this reference; `left_out` says why others of the protocol cannot. `exact` is the extractor in
    float32, where the one in use is not. `training` are the images that samples may be copies of, `class_names` what the
    samples' classes are called, where that was given, `weights_unlike_published` sentences, where there are some to say, `panel`
    the other networks of FDr6, where that is wanted, and `said` the sentences that were said already on this rank's terminal.
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
    weights_unlike_published: tuple[str, ...] = ()
    panel: tuple[Member, ...] = ()
    said: tuple[str, ...] = ()

    @classmethod
    def prepare(
        cls,
        ref: str | Path | None,
        group: Group,
        settings: Settings,
        extractor: str | Extractor | None = None,
        weights: Mapping[str, str | Path] | None = None,
        image_size: int | None = None,
        training: str | Path | None = None,
        crop: int | None = None,
        class_names: str | Path | None = None,
    ) -> "Evaluation":
        """Read all that a result depends on besides the samples. Without `extractor`, the reference says which it is made with.

        Args:
            ref: as `--ref` of `python -m evaluation calc`; None if no metric needs one.
            extractor: a name in `EXTRACTORS`, timm:NAME, or one that is loaded.
            weights: files by the name of whose weights they are, as `--weights` takes them.
            image_size: of the samples, so that a published reference of another size is not fetched, and training images are
                cropped to it.
            training: images that samples may be copies of.
            crop: to which a reference's files of images are cropped, as the samples' are.
            class_names: of the samples, as `fiducial.classes.read` takes them; without, those of the run that drew them.

        Raises:
            UserError: in one sentence, if something is missing or does not fit.
        """
        settings.check()
        group = group.scope()
        ref = None if ref is None else str(ref)
        needed = settings.needs_reference
        if ref is None and needed:
            can = ",".join(without_reference())
            raise UserError(f"--ref is missing: all metrics but these need a reference; without one, --metrics {can} can be had")
        names = read_names(Path(class_names), f"--class-names {class_names}") if class_names else None
        own = extractor if isinstance(extractor, Extractor) else None
        name = own.name if own else extractor
        reference, spec, metrics, left_out, said = choose(ref, group, settings, name, image_size, crop)
        with_panel = any(METRICS[name].needs is Need.PANEL for name in metrics)
        others = find_panel(ref, reference, spec.name, settings, group, image_size) if with_panel else {}
        require_taken((spec.name, *others), weights or {})
        network = own or load_extractor(spec.name, weights, group, settings.dtype, settings.cache_dir)
        if reference:
            check_reference(reference, network)
        panel = load_panel(others, weights, settings, group)
        loaded = (network, *(member.extractor for member in panel))
        unlike = [weights_unlike_published(one, given_for(one.name, weights or {})) for one in loaded]
        unlike = tuple(sentence for sentence in unlike if sentence)
        if group.is_main:
            said += tell(*unlike)
        training = open_training(Path(training), network, image_size or network.image_size) if training else None
        said += look_at(training, "training images", group)
        require_levels(training, "training images", group)
        lower = settings.dtype != "float32"
        exact = load_extractor(spec.name, weights, group, cache_dir=settings.cache_dir) if lower else None
        names = names and ClassNames(names.names, names.sha256)
        reference = reference if needed else None
        return cls(reference, network, settings, group, metrics, left_out, exact, training, names, unlike, panel, said)

    def evaluate(self, samples: str | Path | Images) -> Result | None:
        """One pass over the samples, shared out over the ranks. The result is rank 0's; the others get None.

        Args:
            samples: opened, or where they are.

        Raises:
            UserError: if they cannot be read or do not fit the extractor or the reference.
        """
        images = samples if isinstance(samples, Images) else open_samples(Path(samples))
        self.check(images)
        require_levels(images, SAMPLES, self.group)
        with self.settings.cache(self.group) as cache:
            own, *others = extracted(self, images, cache, with_panel=True)
            return self.result_of(images, own, cache, others=others)

    def check(self, images: Images | Seen) -> dict[str, str]:
        """Which metrics cannot be had of so many samples, and why; raises UserError if the samples fit nothing."""
        self.check_training(images.height, images.width)
        if self.class_names:
            check_class_names(images, self.class_names)
        return check_samples(images, self.metrics, self.reference, self.extractor, self.settings)

    def check_training(self, height: int, width: int) -> None:
        """Raise UserError if training images are of another size than samples of this one."""
        if self.training and (self.training.height, self.training.width) != (height, width):
            size = f"{self.training.width} x {self.training.height}"
            raise UserError(f"--train {self.training.path}: images of {size}, but the samples are of {width} x {height}")

    @torch.inference_mode()
    @plain_float32()
    def result_of(
        self, images: Images | Seen, own: Features, cache: Path, grid: Grid | None = None, others: Sequence[Features] = ()
    ) -> Result | None:
        """The result of samples with these features, on rank 0; to be called by all ranks.

        Args:
            grid: the report's pictures, of images that are not in files.
            others: the features by the networks of the panel.
        """
        too_few = self.check(images)
        metrics = tuple(name for name in self.metrics if name not in too_few)
        (reference, theirs), *members = extracted_references(self, metrics, cache)
        names = self.class_names or names_of(images, own, self.group)
        training = extracted(self, self.training, cache)[0] if self.training else None
        inputs = Inputs(own, reference, self.extractor, self.settings, self.group, training, strata=strata_of(images.labels))
        inputs = replace(inputs, panel=inputs_of_panel(inputs, self.panel, others, [found for found, _ in members]))
        with bounded_threads(self.group):
            scores = Scorer(metrics, inputs, images.labels, names.names).scores()
        if not self.group.is_main:
            return None
        notes = [*self.weights_unlike_published, *warnings(images, reference, self.extractor, scores.values), *scores.caveats]
        notes += warnings_of_classes(scores, called("fid", self.extractor)[1])
        notes += warnings_of_training(self.training)
        notes += repeats(own, theirs, reference)
        if self.exact and "fid" in metrics:
            notes.append(effect_of_dtype(images, inputs, theirs, self.exact))
        left_out = {called(name, self.extractor)[1]: why for name, why in (self.left_out | too_few).items()}
        if why := why_not_by_class(images, metrics, scores):
            left_out[f"{called('fid', self.extractor)[1]} by class"] = why
        return record(images, inputs, scores, notes, left_out, self.training, names, grid)


def extracted(evaluation: Evaluation, images: Images, cache: Path, with_panel: bool = False) -> list[Features]:
    """The features of images by the extractor and, in the same pass, by the panel's where they are wanted."""
    extractors = [evaluation.extractor, *(member.extractor for member in evaluation.panel if with_panel)]
    return extract_each(images, extractors, evaluation.group, evaluation.settings.batch_size, cache)


def inputs_of_panel(
    inputs: Inputs, panel: Sequence[Member], own: Sequence[Features], references: Sequence[Reference]
) -> tuple[Inputs, ...]:
    """The data that each of the panel's networks gives of the samples of `inputs`, with its reference."""
    extractors = [member.extractor for member in panel]
    each = zip(own, references, extractors, strict=True)
    return tuple(Inputs(*one, inputs.settings, inputs.group, strata=inputs.strata) for one in each)


def why_not_by_class(images: Images | Seen, metrics: tuple[str, ...], scores: Scores) -> str | None:
    """Why there is no FID by class, if there is something to say."""
    if images.no_labels and any(METRICS[name].needs is Need.MOMENTS for name in metrics):
        return f"{images.path.name}: {images.no_labels}"
    return scores.pairing.why or None


def extracted_references(
    evaluation: Evaluation, metrics: tuple[str, ...], cache: Path
) -> list[tuple[Reference | None, Features | None]]:
    """The references of the extractor and of the panel's, with the statistics and features that `metrics` need, and what had to
    be extracted for that, in one pass where several are of the same images."""
    reference, panel = evaluation.reference, evaluation.panel
    references = [reference, *(member.reference for member in panel)]
    if not _is_to_be_extracted(reference, any(METRICS[name].needs is Need.FEATURES for name in metrics)):
        return [(one, None) for one in references]
    of_all = reference.kind == "images"  # else the panel's have statistics
    found = extracted(evaluation, reference.images, cache, with_panel=of_all)
    found += [None] * (len(references) - len(found))
    return [(_completed(one, theirs), theirs) for one, theirs in zip(references, found, strict=True)]


def _is_to_be_extracted(reference: Reference | None, wants_features: bool) -> bool:
    """Whether a reference lacks what its images give."""
    if reference is None or reference.images is None:
        return False
    return reference.mu is None or (wants_features and reference.features is None)


def _completed(reference: Reference, theirs: Features | None) -> Reference:
    """A reference with the features of its images, where those were extracted, and their statistics if it has none."""
    if theirs is None:
        return reference
    if reference.mu is None:
        reference = replace(reference, sha256=theirs.content_sha256, **moments_of_features(theirs))
    return replace(reference, features=theirs.rows, labels=reference.images.classes, numbering=reference.images.numbering)


def names_of(images: Images | Seen, own: Features, group: Group) -> ClassNames:
    """Names of the samples' classes, empty where nobody knows; as rank 0 finds them, for other hosts may see less."""
    own_names = ClassNames(images.class_names, names_sha256(images.class_names))
    found = group.once(lambda: asdict(find_names(images.path, own.pixels_sha256) or own_names))
    return ClassNames(tuple(found["names"]), found["sha256"])


def choose(
    ref: str | None, group: Group, settings: Settings, extractor: str | None, image_size: int | None, crop: int | None
) -> tuple[Reference | None, ExtractorSpec, tuple[str, ...], dict[str, str], tuple[str, ...]]:
    """The reference, the extractor that fits it, the metrics and why others cannot be had, and what was said on the terminal.

    Raises:
        UserError: before weights are loaded, if they or the metrics do not fit.
    """
    extractor, needed = check_protocol(ref, extractor, settings), settings.needs_reference
    with naming_the_crop(ref, image_size, extractor):
        reference = find_reference(ref, group, settings.cache_dir, image_size, crop, extractor) if ref is not None else None
        spec = choose_extractor(reference, extractor, settings)
        metrics, left_out = choose_metrics(reference, spec, settings)
        images = reference.images if reference and needed else None
        if images and image_size:
            check_size_of_reference("the samples", image_size, image_size, reference, spec.name)
        said = look_at(images, REFERENCE, group)
    require_levels(images, REFERENCE, group)
    return reference, spec, metrics, left_out, said


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
        raise UserError(f"{error.fact}; {making_reference(ref, image_size, extractor or DEFAULT)}") from error


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


def is_done(evaluation: Evaluation, samples: Path, json_file: Path) -> bool:
    """Whether `json_file` is the result of these settings on these samples, reference and extractor, byte for byte.

    With a reference or training images that would have to be read first to be told from others, no.
    """
    if evaluation.training or evaluation.panel or (evaluation.reference and evaluation.reference.sha256 is None):
        return False
    try:
        old = read_json(json_file, LARGEST)
        images = open_samples(samples)
        known = images.known_pixels()
        too_few = check_samples(images, evaluation.metrics, evaluation.reference, evaluation.extractor, evaluation.settings)
        wanted = {called(name, evaluation.extractor)[0] for name in evaluation.metrics if name not in too_few}
        return (
            (old["samples"]["pixels_sha256"] == known if known else old["samples"]["content_sha256"] == images.content_sha256())
            and (old["reference"] or {}).get("sha256") == (evaluation.reference and evaluation.reference.sha256)
            and old["extractor"]["weights_sha256"] == evaluation.extractor.weights_sha256
            and evaluation.settings.recorded().items() <= old["settings"].items()
            and wanted <= set(old["metrics"])
            and old["training"] is None
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
