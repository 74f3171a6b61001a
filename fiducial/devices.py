"""The device of a rank: which it is, whether it can be had, and that those of all ranks are of one kind."""

import os
import socket
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fiducial.console import UserError, one_line

if TYPE_CHECKING:
    import torch

DRIVER = Path("/proc/driver/nvidia/version")  # there where NVIDIA's driver is loaded
HIDDEN = ("", "-1", "none", "void", "NoDevFiles")  # of CUDA_VISIBLE_DEVICES, where a person or a scheduler wants no GPU seen
WORDS = {"cuda": "a GPU", "cpu": "the CPU"}


def look() -> tuple[bool, str]:
    """Whether torch can use a GPU here, and if not, why one that may be there cannot be used; empty where nothing is wrong."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # torch tells of a broken driver by a warning alone
        if torch.cuda.is_available():
            return True, ""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN:
        return False, ""
    if said:
        return False, one_line(said[0].message)
    if not DRIVER.exists():
        return False, ""
    return False, "it has NVIDIA's driver, but torch " + ("finds no GPU" if torch.version.cuda else "was built without CUDA")


def driver_version() -> str:
    """The version of NVIDIA's driver, in its own words; empty where none is loaded."""
    with suppress(OSError):
        return DRIVER.read_text()
    return ""


def place_of(kind: str, local_rank: int) -> "torch.device":
    """The device of a local rank: the GPU of its number, or the only one that a launcher lets each of its processes see.

    Raises:
        UserError: if there is no such kind of device.
    """
    import torch

    try:
        if kind == "cuda":
            return torch.device(kind, 0 if torch.cuda.device_count() == 1 else local_rank)
        return torch.device(kind)
    except RuntimeError:
        raise UserError(f"device {kind}: no such device; choose from auto, cuda, cpu") from None


def take(place: "torch.device", local_rank: int, store: "torch.distributed.Store", trouble: str = "") -> None:
    """Make `place` this process's device, if it is a GPU that no other rank has.

    Args:
        store: shared by all ranks.
        trouble: why there is no GPU.

    Raises:
        UserError: if this rank has no GPU of its own, or it does not work.
    """
    import torch

    if place.type != "cuda":
        return
    found, remedy = torch.cuda.device_count(), "or choose --device cpu"
    if place.index >= found:
        because = f" ({trouble})" if trouble else ""
        raise UserError(f"local rank {local_rank} needs a GPU of its own, but {found} can be seen here{because}; {remedy}")
    try:
        torch.cuda.set_device(place)
        torch.zeros(1, device=place)  # where a driver or GPU is broken, nothing fails before this
        properties = torch.cuda.get_device_properties(place)
    except RuntimeError as error:
        here = socket.gethostname()
        raise UserError(f"local rank {local_rank} on {here} cannot use its GPU {place} ({one_line(error)}); {remedy}") from error
    is_part = "MIG" in properties.name  # of a GPU, whose parts share its number
    if not is_part and store.add(f"gpu/{properties.uuid}", 1) > 1:
        raise UserError(
            f"local rank {local_rank} needs a GPU of its own, but {found} can be seen here, which another rank has; {remedy}"
        )


def require_one_kind(fellows: Sequence[Mapping], rank: int) -> None:
    """Raise UserError if this rank's device is of another kind than rank 0's, whose images or features would differ from it.

    Args:
        fellows: all ranks' processes, with their `device` and its `trouble`.
    """
    own, first = fellows[rank], fellows[0]
    if own["device"] == first["device"]:
        return
    said = [
        f"rank {number} on {one['host']} works on {WORDS.get(one['device'], one['device'])}"
        + (f" ({one['trouble']})" if one["trouble"] else "")
        for number, one in ((rank, own), (0, first))
    ]
    raise UserError(f"{said[0]}, but {said[1]}; give every rank a GPU that works, or --device cpu")
