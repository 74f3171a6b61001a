"""The command that draws: everything but the evaluation, which is handed in, as this package knows none."""

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import fiducial
from fiducial import Group
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.options.parser import parse

if TYPE_CHECKING:
    from fiducial.sampling.run.telling import Hearer


class Evaluating(Protocol):
    """An evaluation that is ready before any sample is drawn."""

    def evaluator(self) -> object:
        """The evaluator that `FeatureFiles` fills."""

    def of_images(self, npz: Path) -> None:
        """On all ranks: evaluates a run's images, and writes the result beside them."""

    def of_features(self, folder: Path, about: dict) -> None:
        """On all ranks: evaluates what the evaluator was filled with; `about` is the manifest of the run."""


Prepare = Callable[[SamplingConfig, argparse.Namespace, Group], Evaluating]
Listen = Callable[[Path], "Hearer"]


def main(prepare: Prepare, listen: Listen) -> None:
    """Draw as the command line says; with --ref, evaluate by what `prepare` returns.

    Args:
        listen: makes what hears how far a run is, for the folder of --tensorboard.
    """
    with fiducial.user_errors(), ExitStack() as stack:
        config, options = parse()
        fiducial.launched()  # before torch is imported
        if options.dry_run:
            stack.enter_context(fiducial.downloading_nothing())
        from fiducial.sampling.source import numerics
        from fiducial.sampling.source.table import source_of

        numerics.ready_torch()  # before an evaluation makes tensors
        with fiducial.init(options.device) as group:
            spec = source_of(config)
            if options.dry_run and group.is_main:
                spec.require_here(config)
            spec.check_given(config, group)
            if config.untold():
                config = spec.fetch(config, group)
            evaluation = prepare(config, options, group) if options.ref is not None else None
            is_heard = options.tensorboard is not None and group.is_main and not options.dry_run
            draw(config, options, group, evaluation, listen(options.tensorboard) if is_heard else None)


def draw(
    config: SamplingConfig,
    options: argparse.Namespace,
    group: Group,
    evaluation: Evaluating | None,
    hearer: "Hearer | None" = None,
) -> None:
    """On all ranks: a dry run, or a run to files or to features and its evaluation."""
    from fiducial.sampling import forecast
    from fiducial.sampling.run import session
    from fiducial.sampling.run.feature_files import FeatureFiles
    from fiducial.sampling.run.image_files import ImageFiles
    from fiducial.sampling.run.telling import evaluating
    from fiducial.sampling.store import manifest

    if options.dry_run:
        return forecast.forecast(config, group, not options.no_png, options.hang_timeout, options.allow_mixed)
    if options.evaluate_online:
        sink = FeatureFiles(evaluation.evaluator())
        folder = session.draw(config, group, sink, options.hang_timeout, vars(options), hearer)
        about = group.once(lambda: manifest.reread(folder, sink.made).to_json())
        with evaluating(folder, group):
            return evaluation.of_features(folder, about)
    npz = session.draw(config, group, ImageFiles(not options.no_png), options.hang_timeout, vars(options), hearer)
    if evaluation:
        with evaluating(npz.with_name(npz.name.removesuffix(".npz")), group):
            evaluation.of_images(npz)
