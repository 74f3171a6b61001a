"""How a process comes by its group."""

import atexit
import json
import os
import socket
from typing import TYPE_CHECKING

from fiducial.console import UserError, one_line
from fiducial.mistakes import require_uninterrupted
from fiducial.ranks.group import Group
from fiducial.ranks.joining import connect, give_up, launched, meet
from fiducial.startup import LOOKOUT

if TYPE_CHECKING:
    import torch


def init(device: str = "auto") -> Group:
    """Find the other ranks of the launcher, or stand alone without a launcher.

    Raises:
        UserError: if `device` asks for a GPU that this rank does not have, the launcher's environment is not one, or the others
            cannot be found.
        Stopped: if others, or the launcher, are gone; that has been said.
    """
    here = launched()
    import torch
    import torch.distributed as dist

    require_uninterrupted()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    local_rank = here.local_rank
    try:
        place = torch.device(device, local_rank) if device == "cuda" else torch.device(device)
    except RuntimeError:
        raise UserError(f"device {device}: no such device; choose from auto, cuda, cpu") from None
    if here.is_alone:
        _take_device(place)
        return Group(0, 1, 0, "0", place, dist.HashStore())
    rank, world_size = here.rank, here.world_size
    with LOOKOUT.kept():
        try:
            store = meet(dist.PrefixStore("fiducial", connect(here)), rank, world_size)
            fellows = [json.loads(value) for value in store.multi_get([f"process/{other}" for other in range(world_size)])]
        except RuntimeError as error:  # as are all that torch raises of connections
            give_up(rank, f"the connection to rank 0's host is lost ({one_line(error)})")
    node = os.environ.get("GROUP_RANK", socket.gethostname())
    group = Group(rank, world_size, local_rank, node, place, store, fellows)
    atexit.register(group.depart)
    try:
        _take_device(place)
    except UserError:
        with group:  # so that the ranks of other nodes hear of it
            raise
    return group


def _take_device(place: "torch.device") -> None:
    """Raise UserError if `place` is a GPU that this rank does not have."""
    import torch

    if place.type == "cuda":
        if place.index >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise UserError(
                f"local rank {place.index} needs a GPU of its own, but {found} can be seen here; or choose --device cpu"
            )
        torch.cuda.set_device(place)
