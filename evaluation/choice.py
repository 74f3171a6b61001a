"""Which results a line of paths means, such as a shell makes of `samples/sweep-*`: each run once, and why others are left."""

from collections.abc import Iterable
from pathlib import Path

from distributed import UserError, printable
from evaluation.compare import unfit
from evaluation.results import Known, find_result, read_result


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
            if not path.exists():
                raise
            left.setdefault(path.with_name(path.name.removesuffix(".npz").removesuffix(".html")), str(error))
    return list(found.values()), list(left.values())


def choose_results(paths: list[Path], files: list[Path], without: list[str]) -> tuple[list[Known], list[str]]:
    """The results that can be compared with the first of them, and in a sentence each what is left, with the reason.

    Args:
        files: with results, as `find_results` found them for `paths`.
        without: why it found none for others.

    Raises:
        UserError: if they are fewer than two.
    """
    chosen: list[Known] = []
    reasons, left = list(without), list(without)
    for file in files:
        try:
            result = read_result(file)
        except UserError as error:
            reasons.append(str(error))
            left.append(str(error))
            continue
        if why := next(filter(None, (unfit(other, result) for other in chosen)), None):
            reasons.append(why)
            left.append(f"{file}, for {why}")
        else:
            chosen.append(result)
    if len(chosen) > 1:
        return chosen, [printable(text) for text in left]
    if not reasons and len(paths) > 1:
        raise UserError(f"{paths[0]} and {paths[1]} are results of the same images: name each run once, and two runs at least")
    if not reasons:
        raise UserError(f"{paths[0]}: compare needs at least two results")
    if len(reasons) == 1:
        raise UserError(reasons[0])
    raise UserError(f"compare needs at least two results, and {len(chosen)} can be used: {'; '.join(reasons[:3])}")
