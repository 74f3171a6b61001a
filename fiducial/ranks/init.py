"""How a process comes by its group."""

import atexit
import json
import os
import socket

from fiducial import devices
from fiducial.console import UserError, one_line, warn
from fiducial.mistakes import require_uninterrupted
from fiducial.ranks.cores import own_cores
from fiducial.ranks.group import Group
from fiducial.ranks.joining import connect, give_up, launched, meet
from fiducial.startup import LOOKOUT


def init(device: str = "auto") -> Group:
    """Find the other ranks of the launcher, or stand alone without a launcher.

    Raises:
        UserError: if `device` asks for a GPU that this rank does not have, rank 0's device is of another kind, the launcher's
            environment is not one, or the others cannot be found.
        Stopped: if others, or the launcher, are gone; that has been said.
    """
    here = launched()
    import torch.distributed as dist

    require_uninterrupted()
    has_gpu, trouble = devices.look() if device in ("auto", "cuda") else (False, "")
    if device == "auto":
        device = "cuda" if has_gpu else "cpu"
    local_rank = here.local_rank
    place = devices.place_of(device, local_rank)
    if trouble and place.type == "cpu" and here.rank == 0:
        warn(f"warning: this runs on the CPU, because the GPU of this machine cannot be used ({trouble})")
    if here.is_alone:
        group = Group(0, 1, 0, "0", place, dist.HashStore())
        devices.take(place, local_rank, group.store, trouble)
        return group
    rank, world_size = here.rank, here.world_size
    own = {"device": place.type, "trouble": trouble, "cores": own_cores()}
    with LOOKOUT.kept():
        try:
            store = meet(dist.PrefixStore("fiducial", connect(here)), rank, world_size, own)
            fellows = [json.loads(value) for value in store.multi_get([f"process/{other}" for other in range(world_size)])]
        except RuntimeError as error:  # as are all that torch raises of connections
            give_up(rank, f"the connection to rank 0's host is lost ({one_line(error)})")
    node = os.environ.get("GROUP_RANK", socket.gethostname())
    group = Group(rank, world_size, local_rank, node, place, store, fellows)
    atexit.register(group.depart)
    try:
        devices.take(place, local_rank, store, trouble)
        devices.require_one_kind(fellows, rank)
    except UserError:
        with group:  # so that the ranks of other nodes hear of it
            raise
    return group
