"""The command that draws images and evaluates them: `sample_ddp.py` in a checkout, `fiducial sample` anywhere."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import fiducial
from fiducial import Group
from fiducial.evaluators import ALIASES
from fiducial.models.decoders.rounding import NONE
from fiducial.sampling.commands import draw
from fiducial.sampling.options.config import SamplingConfig

if TYPE_CHECKING:
    from fiducial.evaluation import Evaluator
    from fiducial.evaluation.evaluate import Evaluation
    from fiducial.evaluation.results.result import Result
    from fiducial.studies.events import Events


def main() -> None:
    def prepare(config: SamplingConfig, options: argparse.Namespace, group: Group) -> AfterDrawing:
        evaluation = prepare_evaluation(config, options, group)
        return AfterDrawing(evaluation, config.rounding != NONE, options.tensorboard, options.step)

    draw.main(prepare, listen)


def listen(folder: Path) -> "Events":
    """The writer of a run's events for TensorBoard."""
    from fiducial.studies.events import Events

    return Events(folder)


class AfterDrawing:
    """The evaluation of what was drawn, as `draw.Evaluating` says.

    Args:
        tensorboard: folder of events, to which results are added as well, at `step`.
    """

    def __init__(self, evaluation: "Evaluation", rounded: bool = True, tensorboard: Path | None = None, step: int | None = None):
        self._evaluation, self._rounded, self._tensorboard, self._step = evaluation, rounded, tensorboard, step

    def of_images(self, npz: Path) -> None:
        if result := evaluate(self._evaluation, npz):
            self._add(result)

    def _add(self, result: "Result") -> None:
        """Add the result to the events, if they are asked for; on rank 0."""
        if self._tensorboard is not None:
            from fiducial.evaluation.report.scalars import write_tensorboard

            write_tensorboard(result, self._tensorboard, self._step)

    def evaluator(self) -> "Evaluator":
        from fiducial.evaluation import Evaluator

        self._evaluator = Evaluator(evaluation=self._evaluation, rounded=self._rounded)
        return self._evaluator

    def of_features(self, folder: Path, about: dict) -> None:
        """On all ranks: writes the result beside the folder of features."""
        from fiducial.evaluation import report
        from fiducial.evaluation.data.runs import as_run, names_in

        names, evaluator = names_in(about), self._evaluator
        evaluator.name, evaluator.class_names = str(folder), names.names if names else ()
        if result := evaluator.compute():
            result = result.drawn_by(as_run(about))
            beside = (folder.with_name(folder.name + ending) for ending in (".json", ".html"))
            report.write(result, *beside, self._evaluation.said)
            self._add(result)


def prepare_evaluation(config: SamplingConfig, options: argparse.Namespace, group: Group) -> "Evaluation":
    """All that an evaluation needs besides the samples, before any is drawn."""
    from fiducial.evaluation.evaluate import Evaluation
    from fiducial.evaluation.features import parse_weights
    from fiducial.evaluation.fit import check_size
    from fiducial.evaluation.settings import Settings

    settings, size = Settings(protocol=options.protocol, cache_dir=config.cache_dir), config.image_size
    settings.check_cache()
    weights = parse_weights(options.weights, **{name: getattr(options, f"{name}_weights") for name in ALIASES})
    evaluation = Evaluation.prepare(options.ref, group, settings, None, weights, size, options.train)
    check_size("--image-size", size, size, evaluation.extractor, evaluation.reference)
    evaluation.check_training(size, size)
    return evaluation


def evaluate(evaluation: "Evaluation", npz: Path) -> "Result | None":
    """On all ranks: writes the result beside the npz, unless it is there. Return what was evaluated now, on rank 0."""
    from fiducial.evaluation import report
    from fiducial.evaluation.evaluate import is_done

    json_file, html_file = (npz.with_name(npz.name.removesuffix(".npz") + ending) for ending in (".json", ".html"))
    if evaluation.group.once(lambda: html_file.exists() and is_done(evaluation, npz, json_file)):
        if evaluation.group.is_main:
            fiducial.say(f"{html_file}: evaluated before")
        return None
    if result := evaluation.evaluate(npz):
        report.write(result, json_file, html_file, evaluation.said)
    return result
