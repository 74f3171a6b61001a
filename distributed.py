"""Ranks: joining the process group, talking through its store, adding arrays, printing once.

Also what every command shares because several processes run it: `UserError`, the one exception for what a person can put
right, printed once for all ranks; `write_whole`, by which no process ever sees half a file; and `file_sha256`.
"""

import argparse
import hashlib
import itertools
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    import numpy as np
    import torch

STORE_TIMEOUT = timedelta(days=7)  # others may draw for days; a launcher ends the ranks that wait for a dead one
YIELD_SECONDS = 10.0


class UserError(Exception):
    """A mistake that its one-sentence message lets the person correct: what was given, what was expected."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are reported like all others: one sentence, once for all ranks."""

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see --help)")


@dataclass(frozen=True)
class Group:
    """This process among its fellows. `store` is shared by all of them: counters and small values.

    `once`, `wait` and `sum` have to be called by every rank, in the same order.
    """

    rank: int
    world_size: int
    local_rank: int
    node: str
    device: "torch.device"
    store: "torch.distributed.Store"
    _calls: Iterator[int] = field(default_factory=itertools.count, repr=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def publish(self, key: str, value: str) -> None:
        """Makes `value` available to every rank."""
        self.store.set(key, value)

    def receive(self, key: str) -> str:
        """Waits until some rank has published `key`; signals are heard meanwhile."""
        deadline = time.monotonic() + STORE_TIMEOUT.total_seconds()
        pause = 0.002
        while not self.store.check([key]) and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(2 * pause, 0.25)
        return self.store.get(key).decode()

    def once_per_node(self, key: str, make: Callable[[], str]) -> str:
        """What `make` returns, called on the first rank of each node only; the node's other ranks wait for it."""
        if self.local_rank == 0:
            self.publish(f"{key}/{self.node}", value := make())
            return value
        return self.receive(f"{key}/{self.node}")

    def once(self, make: Callable[[], str]) -> str:
        """What `make` returns, called on rank 0 only; the others wait for it."""
        key = f"once/{next(self._calls)}"
        if self.is_main:
            self.publish(key, value := make())
            return value
        return self.receive(key)

    def wait(self) -> None:
        """Returns when every rank has come here."""
        key = f"wait/{next(self._calls)}"
        if self.store.add(key, 1) == self.world_size:
            self.publish(f"{key}/all", "here")
        self.receive(f"{key}/all")

    def sum(self, array: "np.ndarray") -> "np.ndarray":
        """The sum over ranks of a float64 array of one shape, on every rank.

        The one collective; ranks meet at the store first, so that none sits in it for longer than the addition takes.
        """
        if self.world_size == 1:
            return array
        import torch
        import torch.distributed as dist

        self.wait()
        total = torch.from_numpy(array.copy())
        dist.all_reduce(total)
        return total.numpy()

    def close(self) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def environment_rank() -> int:
    """The rank that the launcher gave this process; 0 without a launcher."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0


def init(device: str = "auto") -> Group:
    """Joins the launcher's process group (gloo, and nccl for what lies on CUDA), or stands alone without a launcher.

    Raises:
        UserError: if `device` asks for a GPU that this rank does not have.
    """
    import torch
    import torch.distributed as dist

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        if local_rank >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise UserError(
                f"local rank {local_rank} needs a GPU of its own, but {found} can be seen here; or choose --device cpu"
            )
        torch.cuda.set_device(local_rank)
    place = torch.device(device, local_rank) if device == "cuda" else torch.device(device)

    if "RANK" not in os.environ:
        store = dist.HashStore()
        store.set_timeout(STORE_TIMEOUT)
        return Group(0, 1, 0, "0", place, store)
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=STORE_TIMEOUT))
    except ValueError as error:
        raise UserError(f"RANK is set, but the rest of a launcher's environment is not whole ({error}); use torchrun") from error
    # torchrun's store outlives a restart of the workers; what the earlier attempt counted there must not be read again.
    store = dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    store.set_timeout(STORE_TIMEOUT)
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=rank, world_size=world_size)
    node = os.environ.get("GROUP_RANK", socket.gethostname())
    return Group(rank, world_size, local_rank, node, place, dist.PrefixStore("fiducial", store))


def progress_bar(total: int, desc: str, unit: str = "image", **options) -> tqdm:
    """A progress bar on rank 0: lively on a terminal, a line every ten seconds in a log."""
    interval = 0.3 if sys.stderr.isatty() else 10.0
    scaled = unit != "image"
    return tqdm(
        total=total, desc=desc, unit=unit, unit_scale=scaled, mininterval=interval, disable=environment_rank() != 0, **options
    )


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns a `UserError` into one line and exit code 2.

    All ranks make the same mistake, so rank 0 prints it at once; the others give the launcher time to end them and speak
    only if they are still there: then the mistake was theirs alone.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a result is not lost for want of a character
    try:
        yield
    except UserError as error:
        rank = environment_rank()
        if rank:
            time.sleep(YIELD_SECONDS)
        where = f" (rank {rank})" if rank else ""
        print(f"error{where}: {printable(str(error))}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        if environment_rank() == 0:
            print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)


def printable(text: str) -> str:
    """The same text in one line of valid UTF-8: names of files may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: str) -> None:
    """Prints on standard output at once.

    Raises:
        UserError: if nobody can read it there.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again at its end
        raise UserError(f"standard output cannot be written ({error.strerror})") from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file beside `path`, then puts it in its place, so that `path` is never seen half-written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
