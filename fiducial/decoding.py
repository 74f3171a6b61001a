"""JSON that others may have written: of no more values, and no deeper, than what it is read for can have.

A text of a few megabytes can hold so many lists that they take gigabytes, and be nested so deeply that whoever walks through it
fails, such as what writes it again.
"""

import json
from collections.abc import Callable
from pathlib import Path

from fiducial.opening import read_bytes

MOST_VALUES = 1 << 20
DEEPEST = 64


def decode_json(text: bytes | str, pairs: Callable[[list[tuple[str, object]]], object] | None = None) -> object:
    """The value of a JSON text, of bytes in UTF-8.

    Args:
        pairs: makes what stands for an object of its entries; a dict by default.

    Raises:
        ValueError: with the reason in a few words, if it is no JSON, or more than anybody can have meant.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        if not is_decodable(text):
            raise ValueError(f"it has more than {MOST_VALUES:,} values")
        value = json.loads(text, object_pairs_hook=pairs)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8, as its byte {error.start:,} shows") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level, depth = [value], 0
    while level := [inner for outer in level for inner in _inside(outer) if isinstance(inner, dict | list)]:
        if (depth := depth + 1) > DEEPEST:
            raise ValueError("it is nested too deeply")
    return value


def is_decodable(text: str) -> bool:
    """Whether a JSON text has few enough values to be decoded; a comma within a string counts as well."""
    return sum(map(text.count, ",[{")) <= MOST_VALUES


def _inside(outer: object) -> list[object]:
    return list(outer.values()) if isinstance(outer, dict) else outer if isinstance(outer, list) else []


def read_json(path: Path, most: int) -> object:
    """The value in the JSON file `path`; errors as of `read_bytes`, with `most` bytes, and `decode_json`."""
    return decode_json(read_bytes(path, most))
