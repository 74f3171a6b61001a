"""How numbers are written, in tables as on pages."""

import math

MOST_DECIMALS = 12


def number(value: float, unit: str = "", low: float | None = None, high: float | None = None) -> str:
    """A value to as many digits as its interval, `low` to `high`, means: two of its standard error.

    At least two decimals, which tables of papers have. Without an interval four decimals, of small values four digits.
    Percentages, and points of them, have at least one decimal.
    """
    return f"{value:.{_decimals(value, unit, low, high)}f}{f' {unit}' if unit else ''}"


def between(low: float | None, high: float | None, unit: str = "") -> str:
    """An interval, to as many digits as the value that it is of; empty where there is none."""
    if low is None or high is None:
        return ""
    decimals = _decimals(low, unit, low, high)
    return f"{low:.{decimals}f} to {high:.{decimals}f}{f' {unit}' if unit else ''}"


def _decimals(value: float, unit: str, low: float | None, high: float | None) -> int:
    """How many decimals mean something."""
    if low is not None and high is not None and high > low:
        return min(max(1 - math.floor(math.log10((high - low) / 4)), 1 if unit else 2), MOST_DECIMALS)
    if unit or not value:
        return 1 if unit else 4
    return min(max(3 - math.floor(math.log10(abs(value))), 4), MOST_DECIMALS)


def counted(count: int | None) -> str:
    """A number of images; empty where it is not known."""
    return "" if count is None else f"{count:,}"


def signed(value: float, unit: str = "", low: float | None = None, high: float | None = None) -> str:
    """A difference with its sign, to as many digits as its interval means."""
    return f"{'+' if value >= 0 else '-'}{number(abs(value), unit, low, high)}"
