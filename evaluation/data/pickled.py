"""Pickles of nothing but numpy's arrays in dictionaries, as EDM2 publishes its references. No code of a file runs: what numpy's
own functions would make of it is made here, of numbers alone, and nothing else has a name.
"""

import io
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fiducial import UserError, one_line, open_regular, quoted

MOST_BYTES = 1 << 29  # EDM2's hold 2,048 and 1,024 dimensions squared in float64, 42 MB; FD-loss's twelve such
DEEPEST = 4
DTYPE = re.compile("b1|[iuf][1248]")


class Refused(ValueError):
    """Something that is no array of numbers."""


class Dtype:
    """In the place of a numpy.dtype."""

    def __init__(self, code: object = None, *_: object):
        self._code, self._order = code, "="

    def __setstate__(self, state: object) -> None:
        self._order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="

    @property
    def numbers(self) -> np.dtype:
        """The dtype that it stands for."""
        if not (isinstance(self._code, str) and DTYPE.fullmatch(self._code) and self._order in ("<", ">", "=", "|")):
            raise Refused(f"it holds an array of {quoted(self._code)}")
        return np.dtype(self._code).newbyteorder(self._order)


class Array:
    """In the place of a numpy.ndarray, whose values come after it."""

    values: np.ndarray | None = None

    def __init__(self, *_: object): ...

    def __setstate__(self, state: object) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.values = _array(raw, dtype, shape, "F" if is_fortran else "C")


def _array(raw: object, dtype: object, shape: object, order: object) -> np.ndarray:
    """The array of these bytes, exactly so many."""
    if not (isinstance(raw, bytes | bytearray | memoryview) and isinstance(dtype, Dtype) and order in ("C", "F")):
        raise Refused("it holds an array that is not of numbers")
    return np.frombuffer(raw, dtype.numbers).reshape(shape, order=order)  # ValueError if it is another size


def _scalar(dtype: object = None, raw: object = None, *_: object) -> object:
    """A number of numpy's."""
    return _array(raw, dtype, (), "C").item()


NAMES: dict[str, Callable] = {
    "numpy.dtype": Dtype,
    "numpy.ndarray": Array,
    **{f"numpy.{core}.multiarray._reconstruct": Array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array for core in ("core", "_core")},
}


class Maker:
    """One of `NAMES` as a file gets it: to be called, and not to be changed."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable):
        self._make = make

    def __call__(self, *given: object) -> object:
        return self._make(*given)

    def __setstate__(self, _: object) -> None:
        raise Refused("it would change what makes an array")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Maker:
        if (found := NAMES.get(f"{module}.{name}")) is None:
            raise Refused(f"it holds {f'{module}.{name}'[:80]}, which could run code")
        return Maker(found)


def _check(data: bytes) -> None:
    """Raise Refused for a place among what is kept that no pickle of this size has: all places before it would be made."""
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name in ("PUT", "LONG_BINPUT") and argument > len(data):
            raise Refused("it numbers what it holds beyond its own size")


def read(path: Path) -> dict[str, object]:
    """The arrays in a pickle by their names, in dictionaries where they stand in such; numbers and texts beside them.

    Raises:
        UserError: if there is anything else in it, of which nothing was called, or it is damaged.
    """
    try:
        with open_regular(path, MOST_BYTES) as file:
            _check(data := file.read())
        content = _plain(_Unpickler(io.BytesIO(data)).load())
    except Refused as error:
        raise UserError(f"{path} was not unpickled: {one_line(error)}; arrays alone are read") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} is not a whole pickle of arrays ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no pickle of arrays by their names")
    return content


def _plain(value: object, depth: int = 0) -> object:
    """The same, with arrays in the place of what stands for them."""
    if isinstance(value, Array) and value.values is not None:
        return value.values
    if isinstance(value, dict) and depth < DEEPEST and all(isinstance(name, str) for name in value):
        return {name: _plain(one, depth + 1) for name, one in value.items()}
    if isinstance(value, np.ndarray | str | int | float | None):
        return value
    raise Refused(f"it holds a {type(value).__name__} where an array should be")
