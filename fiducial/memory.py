"""Memory that a process has freed: what glibc does with it. Elsewhere than on glibc these functions do nothing."""

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names of malloc.h


def keep_freed_memory() -> None:
    """Have what is freed used again, instead of returned to the system and got back in pages that are zeroed one by one."""
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)  # all from the one heap,
        mallopt(M_TRIM_THRESHOLD, -1)  # which never shrinks by itself


def give_back_freed_memory() -> None:
    """Return to the system what was kept."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
