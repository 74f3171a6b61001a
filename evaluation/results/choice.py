"""Which results a line of paths means, such as a shell makes of `samples/sweep-*`: each run once, and why others are left."""

import os
from collections.abc import Iterable
from pathlib import Path

from fiducial import UserError, printable
from fiducial.evaluation.results.compare import unfit
from fiducial.evaluation.results.reading import Known, find_result, read_result, run_name


def find_results(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """The files with results, each once though its page, npz or folder is named as well; and why the others have none.

    Raises:
        UserError: if there is nothing at a path.
    """
    found: dict[Path, Path] = {}
    left: dict[Path, str] = {}  # by where the result would be, so that a run is left once
    for path in paths:
        try:
            file = find_result(path)
            found.setdefault(file.resolve(), file)
        except UserError as error:
            if not os.path.lexists(path):
                raise
            left.setdefault(path.with_name(run_name(path)), str(error))
    return list(found.values()), list(left.values())


def choose_results(paths: list[Path], files: list[Path], without: list[str]) -> tuple[list[Known], list[str]]:
    """The most results that can be compared with each other, and in a sentence each what is left, with the reason.

    Args:
        files: with results, as `find_results` found them for `paths`.
        without: why it found none for others.

    Raises:
        UserError: if they are fewer than two.
    """
    read: dict[Path, Known | str] = {}  # or why not
    for file in files:
        try:
            read[file] = read_result(file)
        except UserError as error:
            read[file] = str(error)
    chosen = _largest_group([result for result in read.values() if isinstance(result, Known)])
    reasons, left = list(without), list(without)
    for file, result in read.items():
        if isinstance(result, str):
            reasons.append(result)
            left.append(result)
        elif result not in chosen:
            why = next(filter(None, (unfit(other, result) for other in chosen)))
            reasons.append(why)
            left.append(f"{file}, for {why}")
    if len(chosen) > 1:
        return chosen, [printable(text) for text in left]
    if not reasons and len(paths) > 1:
        raise UserError(f"{paths[0]} and {paths[1]} are results of the same images: name each run once, and two runs at least")
    if not reasons:
        raise UserError(f"{paths[0]}: compare needs at least two results")
    if len(reasons) == 1:
        raise UserError(reasons[0])
    raise UserError(f"compare needs at least two results, and {len(chosen)} can be used: {'; '.join(reasons[:3])}")


def _largest_group(results: list[Known]) -> list[Known]:
    """Those that can be compared with each other, in their order: the most that some result has with it, of as many the first."""
    largest: list[Known] = []
    for first in results:
        group = [first]
        for other in results:
            if other is not first and not any(unfit(one, other) for one in group):
                group.append(other)
        if len(group) > len(largest):
            largest = sorted(group, key=results.index)
        if len(largest) == len(results):
            break
    return largest
