"""Where results go: a table on the screen, and files."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from fiducial import STDOUT, UserError, say, say_result, write_whole


def warnings_left(sentences: Sequence[str], said: Collection[str]) -> list[str]:
    """Lines of the warnings that were not `said` on the terminal before, and how many were."""
    left = [f"warning: {sentence}" for sentence in sentences if sentence not in said]
    before = len(sentences) - len(left)
    return [*left, *([f"{before} more {'warning was' if before == 1 else 'warnings were'} given at the start"] if before else [])]


def deliver(table: str, files: Mapping[Path | None, Callable[[], str]], data: Mapping[Path, bytes] | None = None) -> None:
    """Write the files that are asked for, print the table, and say where they are; `STDOUT` comes last.

    Args:
        data: files that belong to one of the others, by their content; they are not named.

    Raises:
        UserError: if one cannot be written.
    """
    wanted = {path: text for path, text in files.items() if path not in (None, STDOUT)}
    contents = {path: lambda text=text: text().encode() for path, text in wanted.items()}
    contents |= {path: lambda content=content: content for path, content in (data or {}).items()}
    for path, content in contents.items():
        try:
            write_whole(path, lambda beside, content=content: beside.write_bytes(content()))
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror})") from error
    say(*table.split("\n"), *map(str, wanted))
    if STDOUT in files:
        say_result(files[STDOUT]().rstrip("\n"))
