"""Processor cores that ranks of one machine share, and threads that are no more than a rank's share of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fiducial.ranks.group import Group


def own_cores() -> list[int]:
    """The cores that this process may run on."""
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return list(range(os.cpu_count() or 1))


def share(group: Group) -> int:
    """How many cores there are for this rank: of its own, as many as for each other that has the same ones."""
    cores = own_cores()
    places = [(fellow["host"], fellow.get("cores")) for fellow in group.fellows]
    return max(len(cores) // (places.count(places[group.rank]) if places else 1), 1)


@contextmanager
def bounded_threads(group: Group) -> Iterator[None]:
    """In here neither torch nor numpy's and scipy's algebra work in more threads than this rank has cores."""
    import torch
    from threadpoolctl import ThreadpoolController

    most, before = share(group), torch.get_num_threads()
    algebra = ThreadpoolController().select(user_api="blas")
    torch.set_num_threads(min(before, most))
    try:
        with algebra.limit(limits={one["prefix"]: min(one["num_threads"], most) for one in algebra.info()}):
            yield
    finally:
        torch.set_num_threads(before)
