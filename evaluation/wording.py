"""How numbers are written, in tables as on pages and into files."""

from collections.abc import Callable, Mapping
from pathlib import Path

from distributed import UserError, say, write_whole

RESULT_FORMAT = "fiducial-result-3"


def number(value: float, unit: str = "") -> str:
    """A value; percentages, and points of them, have one decimal, all others four."""
    return f"{value:.1f} {unit}" if unit else f"{value:.4f}"


def between(low: float | None, high: float | None, unit: str = "") -> str:
    """An interval; empty where there is none."""
    if low is None or high is None:
        return ""
    return f"{low:.1f} to {high:.1f} {unit}" if unit else f"{low:.4f} to {high:.4f}"


def counted(count: int | None) -> str:
    """A number of images; empty where it is not known."""
    return "" if count is None else f"{count:,}"


def signed(value: float, unit: str = "") -> str:
    """A difference with its sign."""
    return f"{'+' if value >= 0 else '-'}{number(abs(value), unit)}"


def deliver(table: str, files: Mapping[Path | None, Callable[[], str]]) -> None:
    """Writes the files that are asked for, prints the table, and says where they are.

    Raises:
        UserError: if one cannot be written.
    """
    wanted = {path: text for path, text in files.items() if path is not None}
    for path, text in wanted.items():
        try:
            write_whole(path.resolve(), lambda beside, text=text: beside.write_text(text(), encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror})") from error
    say(*table.split("\n"), *map(str, wanted))
