"""Failures of a device while drawing: how they are known and said."""

import torch

from fiducial import UserError

# As torch, and what is beneath and beside it, say it where it is no error of a kind of its own. Without memory for their handles
# or plans, cuBLAS and cuDNN speak of something else.
OUT_OF_MEMORY = (
    *("can't allocate memory", "not enough memory", "could not create a primitive", "CUDA out of memory"),
    *("CUDA error: out of memory", "CUDA driver error: out of memory", "Triton Error [CUDA]: out of memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED"),
    *("CUDNN_STATUS_ALLOC_FAILED", "CUDNN_STATUS_NOT_INITIALIZED", "HOST_ALLOCATION_FAILED", "DEVICE_ALLOCATION_FAILED"),
    "FIND was unable to find an engine to execute this computation",
)
SHOWN = 10  # images named in a message


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may help: memory ran out for an error, or for one that it came of, as a compiler's does.

    A `UserError` says itself what is to be done.
    """
    seen: list[BaseException] = []
    left = [] if isinstance(error, UserError) else [error]
    while left:
        found = left.pop()
        if isinstance(found, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(found, RuntimeError) and any(text in str(found) for text in OUT_OF_MEMORY):
            return True
        seen.append(found)
        left += [one for one in (found.__cause__, found.__context__) if one is not None and one not in seen]
    return False


def not_finite(what: str, indices: list[int]) -> UserError:
    """The error where `what` gave no numbers for some images, not in fp32 either."""
    more = f" and {len(indices) - SHOWN} more" if len(indices) > SHOWN else ""
    named = ", ".join(map(str, indices[:SHOWN])) + more
    return UserError(
        f"the {what} gave NaN or infinity for image{'s' * (len(indices) > 1)} {named}, also in fp32; they were not written"
    )
