"""Failures of a device while drawing: how they are known and said."""

import torch

# As torch, and the libraries beneath it, say it where it is no error of a kind of its own.
OUT_OF_MEMORY = (
    *("can't allocate memory", "not enough memory", "could not create a primitive", "CUDA error: out of memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may help."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
