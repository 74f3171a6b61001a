"""Linear algebra of large matrices, float64, while which Python's other threads go on, such as a rank's heartbeats.

scipy's own functions hold the interpreter until they are done: for seconds at 2,048 dimensions, and for minutes where others keep
the processor busy. So the LAPACK that scipy brings is called by its address, which ctypes does without the interpreter; on a GPU,
torch does it there.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import cython_lapack

if TYPE_CHECKING:
    import torch


def singular_values(matrix: np.ndarray, device: "torch.device | None" = None) -> np.ndarray:
    """The singular values of (M, N), descending.

    Args:
        device: computed there if it is a GPU.

    Raises:
        ValueError: if there is NaN or infinity in it.
        numpy.linalg.LinAlgError: if they are not found.
    """
    if _is_gpu(device):
        return _on(device, np.asarray_chkfinite(matrix), "svdvals")[0]
    a, least = _fortran(matrix), min(matrix.shape)
    found, integers = np.empty(least), np.empty(8 * least, dtype=np.intc)
    unused, one = np.empty(1), 1
    head = (b"N", *a.shape, a, a.shape[0], found, unused, one, unused, one)
    _call_with_room("dgesdd", head, integers)
    return found


def eigen(matrix: np.ndarray, device: "torch.device | None" = None) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (N,), ascending, and eigenvectors (N, N), by column, of a symmetric (N, N); the rest as `singular_values`."""
    if _is_gpu(device):
        return _on(device, np.asarray_chkfinite(matrix), "eigh")
    vectors, values = _fortran(matrix), np.empty(len(matrix))
    integers = np.empty(3 + 5 * len(matrix), dtype=np.intc)
    _call_with_room("dsyevd", (b"V", b"L", len(matrix), vectors, len(matrix), values), integers, len(integers))
    return values, vectors


def pivoted_cholesky(matrix: np.ndarray) -> np.ndarray:
    """A (N, rank), or one column of zeros for rank 0, with A A' = the symmetric (N, N) if that is positive semi-definite."""
    size = len(matrix)
    factored, pivots, rank = _fortran(matrix), np.empty(size, dtype=np.intc), np.zeros(1, dtype=np.intc)
    _call("dpstrf", b"L", size, factored, size, pivots, rank, np.array([-1.0]), np.empty(2 * size), np.zeros(1, dtype=np.intc))
    kept = int(rank[0])
    found = np.zeros((size, max(kept, 1)))
    found[pivots - 1, :kept] = np.tril(factored)[:, :kept]
    return found


def _is_gpu(device: "torch.device | None") -> bool:
    return device is not None and device.type == "cuda"


def _on(device: "torch.device", matrix: np.ndarray, name: str) -> tuple[np.ndarray, ...]:
    """The values of the function of `torch.linalg` of this name."""
    import torch

    there = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float64)).to(device)
    try:
        found = getattr(torch.linalg, name)(there)
    except torch.linalg.LinAlgError as error:
        raise np.linalg.LinAlgError(f"{name}: {error}") from error
    return tuple(part.cpu().numpy() for part in ((found,) if isinstance(found, torch.Tensor) else found))


def _fortran(matrix: np.ndarray) -> np.ndarray:
    """A copy as LAPACK takes it, which writes over it."""
    return np.array(np.asarray_chkfinite(matrix), dtype=np.float64, order="F")


def _call_with_room(name: str, head: tuple, integers: np.ndarray, *rest: int) -> None:
    """Call a routine whose last arguments are the room that it works in, which is asked for first, and what became of it."""
    size, info = np.empty(1), np.zeros(1, dtype=np.intc)
    _call(name, *head, size, -1, integers, *rest, info)
    room = np.empty(int(size[0]))
    _call(name, *head, room, len(room), integers, *rest, info)
    if info[0]:
        raise np.linalg.LinAlgError(f"{name} gives {info[0]}: no values are found")


def _call(name: str, *arguments: bytes | int | np.ndarray) -> None:
    """Call a routine of LAPACK, to which all goes by address; arrays are written to."""
    kept = [np.array(value, dtype=np.intc) if isinstance(value, int) else value for value in arguments]
    addresses = (value if isinstance(value, bytes) else ctypes.c_void_p(value.ctypes.data) for value in kept)
    _routine(name)(*addresses)


@cache
def _routine(name: str) -> Callable:
    capsule = cython_lapack.__pyx_capi__[name]
    told = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
    address = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
    return ctypes.CFUNCTYPE(None)(address(capsule, told(capsule)))
