"""Files of torch.save read without trust: no code of the file's runs, and no file costs more than its size.

Only what torch itself allows (`weights_only=True`) is called, and stand-ins for some harmless things that trainings leave beside
weights; their values are of no use here, so nothing is lost. Everything else is named in the refusal.
"""

import argparse
import io
import os
import pathlib
import pickle
import re
import types
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fiducial import UserError, printable, quoted
from fiducial.models.checkpoints import pickles

LARGEST_DIRECTORY = 1 << 23  # bytes of a zip's list of contents; that of XL's training checkpoint has 200 kB
MOST_NAMED = 3  # globals in a message
FREE_ELEMENTS = 1 << 24  # that a tensor may have beyond those stored, as an expanded one has
TAKE_OUT = 'torch.save(torch.load(OLD, weights_only=False)["ema"], NEW)'


class Harmless:
    """In the place of something that nobody here looks at."""

    def __init__(self, *_: object): ...

    def __setstate__(self, _: object) -> None: ...


class Dtype(Harmless):
    """In the place of a numpy.dtype: what `scalar` has to know of it."""

    def __init__(self, code: object = "", *_: object):
        self.code, self.order = code, "="

    def __setstate__(self, state: object) -> None:
        self.order = state[1] if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">") else "="


def scalar(dtype: object = None, raw: object = b"", *_: object) -> object:
    """A number of numpy's as one of Python's; anything else as `Harmless`."""
    if not (isinstance(dtype, Dtype) and isinstance(dtype.code, str) and re.fullmatch("b1|[iuf][1248]", dtype.code)):
        return Harmless()
    kind = np.dtype(dtype.code).newbyteorder(dtype.order)
    return np.frombuffer(raw, kind)[0].item() if isinstance(raw, bytes) and len(raw) == kind.itemsize else Harmless()


def emptied(*_: object) -> dict:
    """In the place of a defaultdict, whose items come after it."""
    return {}


def listed(*_: object) -> list:
    """In the place of a deque, whose items come after it."""
    return []


PATHS = {
    f"{module}.{name}": pathlib.PureWindowsPath if "Windows" in name else pathlib.PurePosixPath  # no file of theirs is looked at
    for module in ("pathlib", "pathlib._local")
    for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
}
NUMPY = {
    "numpy.dtype": Dtype,
    **{f"numpy.{core}.multiarray.scalar": scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": Harmless for core in ("core", "_core")},
    **{f"numpy.random._pickle.__{name}_ctor": Harmless for name in ("randomstate", "bit_generator", "generator")},
    **{f"numpy.random._{name.lower()}.{name}": Harmless for name in ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")},
    **{f"numpy.{kind}{bits}": Harmless for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)},
    **{f"numpy.{name}": Harmless for name in ("ndarray", "bool", "bool_", "str_", "bytes_")},
    "numpy.random.bit_generator.SeedSequence": Harmless,
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence": Harmless,
}
OTHERS = {
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": types.SimpleNamespace,
    "collections.defaultdict": emptied,
    "collections.deque": listed,
    "builtins.frozenset": frozenset,
    "torch.torch_version.TorchVersion": Harmless,
    "random.Random": Harmless,
    "decimal.Decimal": Harmless,
    "uuid.UUID": Harmless,
    **{f"datetime.{name}": Harmless for name in ("datetime", "date", "time", "timedelta", "timezone")},
    **{
        f"builtins.{name}": Harmless
        for name in ("int", "float", "str", "bool", "bytes", "list", "dict", "tuple", "slice", "range")
    },
}
SAFE = [(stand_in, name) for name, stand_in in {**PATHS, **NUMPY, **OTHERS}.items()]
REFUSED = {"builtins.bytearray", "__builtin__.bytearray"}  # by a number, torch would have it make as many bytes


class BoundedFile(io.FileIO):
    """A file of which nothing large is read at once, as a zip's list of contents might be."""

    def read(self, size: int = -1) -> bytes:
        wanted = size if size >= 0 else os.fstat(self.fileno()).st_size - self.tell()
        if wanted > max(LARGEST_DIRECTORY, pickles.MOST_BYTES):
            raise pickles.TooMuch(f"its list of contents is larger than {LARGEST_DIRECTORY:,} bytes")
        return super().read(size)


def unpickle(path: Path) -> object:
    """The content of a file of torch's zip format, its tensors memory-mapped.

    Raises:
        UserError: if it is damaged, or holds more than weights and harmless things, or would take much time or memory.
    """
    try:
        _check(path)
        with torch.serialization.safe_globals(SAFE), warnings.catch_warnings(action="ignore"):
            if refused := sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)):
                raise _refusal(path, refused)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UserError:
        raise
    except pickles.TooMuch as error:
        raise UserError(f"{path} was not unpickled: {error}, which no checkpoint of a DiT has") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than weights, or is damaged, and was not unpickled ({reason(error)})") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f"{path} is not whole in torch's zip format ({reason(error)}); if it is older, re-save it with torch.save"
        ) from error
    return content


def _check(path: Path) -> None:
    """Raise what `unpickle` handles if reading would cost too much; nothing is unpacked or built."""
    with BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if packed := next((entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None):
            raise UserError(
                f"{path}: {quoted(packed.filename)} in it is compressed, which torch.save never does and torch reads as if it "
                "were not; unpack it and pack it again without compression"
            )
        for entry in entries:
            if not entry.filename.endswith("/data.pkl"):
                continue
            if max(entry.file_size, entry.compress_size) > pickles.MOST_BYTES:
                raise pickles.TooMuch(f"its pickle has {entry.file_size:,} bytes")
            if refused := pickles.followed(archive.read(entry)) & REFUSED:
                raise _refusal(path, sorted(refused))


def _refusal(path: Path, names: list[str]) -> UserError:
    said = ", ".join(printable(name)[:80] for name in names[:MOST_NAMED])
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return UserError(
        f"{path} was not unpickled: it holds {said}{more}, which could run code; where you trust it, save its weights alone, as "
        f"by {TAKE_OUT}"
    )


def require_stored(state: dict[str, Tensor], path: Path) -> None:
    """Raise UserError if a tensor of a file has no values, or claims many more than the file has."""
    bytes_in_file = path.stat().st_size
    for key, value in state.items():
        if value.is_meta:
            raise UserError(f"{path}: {quoted(key)} has a shape and no values; it was saved from the meta device")
        if value.layout != torch.strided:
            continue  # which is refused as no dense tensor
        there = min(value.untyped_storage().nbytes(), bytes_in_file) // value.element_size()
        if value.numel() - there > FREE_ELEMENTS:
            raise UserError(
                f"{path}: {quoted(key)} claims {value.numel():,} elements, of which {there:,} are stored; save it as "
                "tensor.contiguous()"
            )


def reason(error: Exception) -> str:
    """The first line of an exception of torch's, without the advice that follows it."""
    return printable(re.split(r"\n|\. ", str(error).strip() or type(error).__name__)[0])[:200]
