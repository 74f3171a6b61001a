"""How numbers are written, in tables as on pages, and what a file of them calls itself."""

RESULT_FORMAT = "fiducial-result-3"


def number(value: float, unit: str = "") -> str:
    """A value; percentages have one decimal, all others four."""
    return f"{value:.1f} %" if unit == "%" else f"{value:.4f}"


def between(low: float | None, high: float | None, unit: str = "") -> str:
    """An interval; empty where there is none."""
    if low is None or high is None:
        return ""
    return f"{low:.1f} to {high:.1f} %" if unit == "%" else f"{low:.4f} to {high:.4f}"


def counted(count: int | None) -> str:
    """A number of images; empty where it is not known."""
    return "" if count is None else f"{count:,}"


def listed(words: list[str]) -> str:
    """Words as a sentence has them."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
