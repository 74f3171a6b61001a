"""Where results go: a table on the screen, and files."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from fiducial import STDOUT, UserError, say, say_result, write_whole


def warnings_left(sentences: Sequence[str], said: Collection[str]) -> list[str]:
    """Lines of the warnings that were not `said` on the terminal before, and how many were."""
    left = [f"warning: {sentence}" for sentence in sentences if sentence not in said]
    before = len(sentences) - len(left)
    return [*left, *([f"{before} more {'warning was' if before == 1 else 'warnings were'} given at the start"] if before else [])]


def _write(beside: Path, content: str | bytes) -> None:
    beside.write_bytes(content if isinstance(content, bytes) else content.encode())


def deliver(table: str, files: Mapping[Path | None, Callable[[], str | bytes]], data: Mapping[Path, bytes] | None = None) -> None:
    """Write the files that are asked for, print the table, and say where they are; `STDOUT` comes last.

    Args:
        data: files that belong to one of the others, by their content; they are not named.

    Raises:
        UserError: if one cannot be written.
    """
    wanted = {path: make for path, make in files.items() if path not in (None, STDOUT)}
    for path, make in {**wanted, **{path: partial(bytes, content) for path, content in (data or {}).items()}}.items():
        try:
            write_whole(path, partial(_write, content=make()))
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror})") from error
    say(*table.split("\n"), *map(str, wanted))
    if STDOUT in files:
        say_result(files[STDOUT]().rstrip("\n"))
