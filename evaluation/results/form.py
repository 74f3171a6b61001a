"""Dataclasses from decoded JSON, which may be anybody's: what does not fit is named by its place, never believed."""

from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

LARGEST = 1e300  # which NaN is not below either


class Unexpected(ValueError):
    """A value that does not fit at `where`; `missing` if there is none."""

    def __init__(self, where: tuple[str, ...], value: object = None, missing: bool = False):
        super().__init__(".".join(where))
        self.where, self.value, self.missing = where, value, missing


def decode(kind: Any, value: object, where: tuple[str, ...] = (), without: Sequence[str] = ()) -> Any:
    """`value` as a dataclass, or another annotation of one: a plain type, a union, `dict`, `dict[str, X]`, `list[X]`, tuples.

    Args:
        where: the way to the value, for errors.
        without: fields of the dataclass that do not stand in JSON.

    Raises:
        Unexpected: if it is of another kind, or a number that is not finite. Fields that are not known are left.
    """
    if is_dataclass(kind):
        return _of_dataclass(kind, value, where, without)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None and NoneType in inner else _of_union(inner, value, where)
    if origin is dict and isinstance(value, dict):
        return {key: decode(inner[1], part, (*where, key)) for key, part in value.items()}
    if origin in (list, tuple) and isinstance(value, list):
        kinds = inner[:1] * len(value) if origin is list or inner[1:] == (...,) else inner
        if len(kinds) == len(value):
            parts = enumerate(zip(kinds, value, strict=True))
            return origin(decode(one, part, (*where, str(place))) for place, (one, part) in parts)
    if origin is None and _is_plain(kind, value):
        return value
    raise Unexpected(where, value)


def _is_plain(kind: type, value: object) -> bool:
    """Whether a value is of a plain type; numbers are finite, and an integer is a float too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return isinstance(value, kind) and (kind is bool) == isinstance(value, bool)
    return (isinstance(value, kind) or kind is float) and abs(value) < LARGEST


def _of_union(kinds: tuple[Any, ...], value: object, where: tuple[str, ...]) -> Any:
    """The first kind that fits; where only one could, its own error."""
    kinds = tuple(kind for kind in kinds if kind is not NoneType)
    for kind in kinds[:-1]:
        try:
            return decode(kind, value, where)
        except Unexpected:
            pass
    return decode(kinds[-1], value, where)


def _of_dataclass(kind: Any, value: object, where: tuple[str, ...], without: Sequence[str]) -> Any:
    if not isinstance(value, dict):
        raise Unexpected(where, value)
    hints, found = get_type_hints(kind), {}
    for field in fields(kind):
        if field.name in without:
            continue
        if field.name in value:
            found[field.name] = decode(hints[field.name], value[field.name], (*where, field.name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise Unexpected((*where, field.name), missing=True)
    return kind(**found)
