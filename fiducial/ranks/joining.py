"""Ranks finding each other: what the launcher's environment says, rank 0's store, and a corner of it of their own.

Whoever waits says after a while for whom, and no longer than for what can still come.
"""

import json
import os
import signal
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from fiducial import processes, startup
from fiducial.console import UserError, one_line, tell_launcher, warn
from fiducial.ranks.beats import BEAT_SECONDS, LOST_BEATS, beat_key
from fiducial.ranks.cause import Cause, Stopped

if TYPE_CHECKING:
    import torch

JOIN_SECONDS = 600.0  # for all ranks to start
QUIET_SECONDS = 10.0  # of waiting, before one says for whom
SILENCE_SECONDS = 5.0  # of rank 0's host, at one attempt
LOOK_SECONDS = 0.01
RENAME_LOOKS = 100  # at an answer, before rank 0's corner is looked up anew
NAMED = 8  # ranks in a sentence


@dataclass(frozen=True)
class Launched:
    """Rank and world of this process, by the environment."""

    rank: int
    world_size: int
    local_rank: int
    address: str
    port: int

    @property
    def is_alone(self) -> bool:
        """Whether there was no launcher."""
        return not self.address

    @property
    def by_agent(self) -> bool:
        """Whether torchrun's own store is used, which is there before any rank is."""
        return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


def launched() -> Launched:
    """Rank and world by the launcher's environment; without a launcher, one rank that is alone.

    Raises:
        UserError: if it cannot be, or is not whole.
    """
    local_rank = _number("LOCAL_RANK", 0, 1 << 20, "0")
    _number("LOCAL_WORLD_SIZE", 1, 1 << 20, "1")
    if "RANK" not in os.environ:
        return Launched(0, 1, local_rank, "", 0)
    world_size = _number("WORLD_SIZE", 1, 1 << 20)
    rank = _number("RANK", 0, 1 << 20)
    if rank >= world_size:
        raise UserError(f"RANK is {rank}, but WORLD_SIZE {world_size}, so ranks are 0 to {world_size - 1}; let torchrun set them")
    return Launched(rank, world_size, local_rank, _word("MASTER_ADDR"), _number("MASTER_PORT", 1, 1 << 16))


def _word(name: str) -> str:
    if not (text := os.environ.get(name, "").strip()):
        raise UserError(f"RANK is set, but the rest of a launcher's environment is not whole ({name} is missing); use torchrun")
    return text


def _number(name: str, least: int, end: int, default: str | None = None) -> int:
    """A whole number of the environment, from `least` to below `end`."""
    text = os.environ.get(name, default) if default is not None else _word(name)
    try:
        number = int(text)
    except ValueError:
        number = None
    if number is None or not least <= number < end:
        raise UserError(
            f"{name} is {text[:40]!r} in the environment: must be a whole number from {least} on; let torchrun set it"
        )
    return number


def connect(here: Launched) -> "torch.distributed.Store":
    """The store that all ranks share: torchrun's, or one in the process of rank 0.

    Raises:
        UserError: if it cannot be reached.
        Stopped: if the launcher that held it is gone.
    """
    import torch.distributed as dist

    is_host = here.rank == 0 and not here.by_agent
    place = f"{here.address}:{here.port}"
    if not is_host:
        _await_host(here, place)
    timeout = timedelta(seconds=JOIN_SECONDS)
    try:
        # Ranks are waited for in `meet`, which says for whom; inside torch, nobody would.
        return dist.TCPStore(
            here.address, here.port, is_master=is_host, timeout=timeout, wait_for_workers=False, multi_tenant=True
        )
    except (RuntimeError, ValueError) as error:  # as are all that torch's stores raise
        reason = one_line(error)
        if is_host:
            raise UserError(f"rank 0 cannot hold the ranks' store at {place} ({reason}); choose another MASTER_PORT") from error
        raise UserError(f"rank 0's host cannot be reached at {place} ({reason})") from error


def _await_host(here: Launched, place: str) -> None:
    """Return when somebody listens at rank 0's address."""
    waiting = _Waiting(here.rank, here.world_size)
    while True:
        try:
            return socket.create_connection((here.address, here.port), timeout=SILENCE_SECONDS).close()
        except (OSError, UnicodeError) as error:
            reason = one_line(error)
        if here.by_agent and waiting.seconds > LOST_BEATS * BEAT_SECONDS:
            give_up(here.rank, f"the launcher that held the ranks' store at {place} is gone ({reason})")
        waiting.go_on([0], f"rank 0's host, {place} ({reason})")


def meet(
    store: "torch.distributed.Store", rank: int, world_size: int, about: Mapping[str, str] | None = None
) -> "torch.distributed.Store":
    """A corner of the store where only these processes have been.

    torchrun's store outlives the workers, and nodes that come or go restart them without any sign of it in their environment.
    So rank 0 names a new corner, and whoever finds the name asks it for an answer that nobody else can have had.

    Args:
        about: more that the others are to know of this process.

    Raises:
        UserError: if some rank does not come.
        Stopped: if one of this host cannot come, because it is stopped.
    """
    import torch.distributed as dist

    own, waiting = uuid.uuid4().hex, _Waiting(rank, world_size)

    def enter(name: str) -> dist.PrefixStore:
        corner = dist.PrefixStore(name, store)
        corner.set(f"process/{rank}", json.dumps({**processes.own_process(), "launcher": startup.LAUNCHER, **(about or {})}))
        corner.set(beat_key(rank), "")
        return corner

    if rank == 0:
        corner, missing = enter(own), range(1, world_size)
        store.set("corner", own)
        while missing := [other for other in missing if not corner.check([f"hello/{other}"])]:
            waiting.go_on(missing)
        for other in range(1, world_size):  # all at once, because they watch each other from then on
            corner.set(f"welcome/{corner.get(f'hello/{other}').decode()}", "")
        return corner
    name = ""
    while True:
        while not store.check(["corner"]):
            waiting.go_on([0])
        if name != (name := store.get("corner").decode()):
            corner = enter(name)
            corner.set(f"hello/{rank}", own)
        for _ in range(RENAME_LOOKS):
            if corner.check([f"welcome/{own}"]):
                return corner
            waiting.go_on([])


class _Waiting:
    """A rank's patience with others that have not come."""

    def __init__(self, rank: int, world_size: int):
        self._rank, self._world_size = rank, world_size
        self._started, self._looked, self._said = time.monotonic(), 0.0, False
        self._stopped: dict[int, int] = {}  # ranks of this host, and how often in a row they were found stopped

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def go_on(self, missing: Sequence[int], whom: str = "") -> None:
        """Wait a moment for these ranks; if they are none, for rank 0, which waits for others and says so.

        Args:
            whom: who they are, in the place of their names.

        Raises:
            UserError: if it was long enough.
            Stopped: if one of this host cannot come, because it is stopped.
        """
        if self.seconds > JOIN_SECONDS:
            whom = whom or self._names(missing or [0])
            raise UserError(f"rank {self._rank} on {socket.gethostname()} waited {JOIN_SECONDS:.0f} s for {whom}")
        if missing and self.seconds > self._looked + BEAT_SECONDS:
            self._looked = self.seconds
            self._look(missing)
            if self.seconds > QUIET_SECONDS and not self._said and speaks(self._rank):
                warn(f"rank {self._rank} on {socket.gethostname()} waits for {whom or self._names(missing)}")
                self._said = True
        time.sleep(LOOK_SECONDS)

    def _look(self, missing: Sequence[int]) -> None:
        """End the waiting for processes of this host that have been stopped for a while."""
        here = processes.siblings()
        stopped = [rank for rank in missing if rank in here and processes.is_stopped(here[rank])]
        self._stopped = {rank: self._stopped.get(rank, 0) + 1 for rank in stopped}
        for rank, times in self._stopped.items():
            if times > LOST_BEATS:
                who = f"rank {rank} (process {here[rank]} on {socket.gethostname()})"
                give_up(self._rank, f"{who} is stopped, and has not joined the others", here[rank])

    def _names(self, ranks: Sequence[int]) -> str:
        here = processes.siblings()
        names = [f"{rank} (process {here[rank]} on this host)" if rank in here else str(rank) for rank in ranks[:NAMED]]
        more = f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else ""
        return f"rank {', '.join(names)}{more} of {self._world_size}"


def speaks(rank: int) -> bool:
    """Whether what every rank of this host finds is said by this one: the first that can."""
    return not any(other < rank and not processes.is_stopped(pid) for other, pid in processes.siblings().items())


def give_up(rank: int, message: str, stopped: int | None = None) -> NoReturn:
    """End this rank because others are gone, before it has a group to tell that.

    Args:
        stopped: a process of this host that would keep the launcher waiting.

    Raises:
        Stopped: always.
    """
    cause = Cause("lost", startup.gone() if startup.is_orphan() else message, rank)
    if speaks(rank):
        warn(f"error (rank {rank} on {cause.host}): {cause.message}; the same command continues")
        tell_launcher(cause.message)
        time.sleep(1.1)  # a launcher, which counts in seconds, would take the end of the other for the cause
        if stopped:
            with suppress(OSError):
                os.kill(stopped, signal.SIGKILL)
    raise Stopped(cause)
