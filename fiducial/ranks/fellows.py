"""The processes of all ranks, as one of them sees them: which share its node, who of those speaks, and who is gone."""

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from fiducial.processes import is_running, is_stopped
from fiducial.ranks.beats import LEFT, beat_key
from fiducial.ranks.cause import Cause

if TYPE_CHECKING:
    import torch

KILLED = "was killed from outside, perhaps for want of memory (see dmesg)"


class Fellows:
    """All ranks' processes, as `own_process` tells them with their launcher; none where a rank is alone.

    `node` are the ranks that one launcher, or none, has started on this host.
    """

    def __init__(self, rank: int, world_size: int, processes: list[dict]):
        self.rank, self.world_size, self._processes = rank, world_size, processes
        places = [(process["host"], process["scope"], process["launcher"]) for process in processes]
        self.node = [other for other, place in enumerate(places) if place == places[rank]] or [rank]

    def before(self) -> list[int]:
        """The ranks of this node that would speak for it rather than this one."""
        return [rank for rank in self.node if rank < self.rank and self.answers(rank)]

    def is_here(self, rank: int) -> bool:
        """Whether a rank is a process of this machine, so that more can be told of it than others hear."""
        scope = self._processes[rank]["scope"]
        return bool(scope) and scope == self._processes[self.rank]["scope"]

    def answers(self, rank: int) -> bool:
        """Whether a rank of this machine is there, and not stopped."""
        process = self._processes[rank]
        return is_running(process) and not is_stopped(process["pid"])

    def missing(self, rank: int, how: str) -> Cause:
        """The cause that a rank is which is gone."""
        process = self._processes[rank]
        message = f"rank {rank} (process {process['pid']} on {process['host']}) {how}"
        return Cause("lost", message, self.rank, lost_rank=rank)

    def killed(self, store: "torch.distributed.Store") -> Cause | None:
        """The cause that a rank of this node is which was killed, if one was."""
        with suppress(RuntimeError, OSError, ValueError):
            for rank in self.node:
                if not is_running(self._processes[rank]) and store.get(beat_key(rank)).decode() != LEFT:
                    return self.missing(rank, KILLED)
        return None

    def end_frozen(self, lost: int | None) -> None:
        """End processes of this machine that do not answer: they have nothing to save, and would keep the launcher waiting.

        Args:
            lost: a rank that is given up, wherever it is.
        """
        for rank in {lost, *self.node} - {None} if self.world_size > 1 else ():
            with suppress(RuntimeError, OSError, ValueError):
                process = self._processes[rank]
                if self.is_here(rank) and is_running(process) and (rank == lost or is_stopped(process["pid"])):
                    time.sleep(1.1)  # a launcher, which counts in seconds, would take its end for the cause
                    os.kill(process["pid"], signal.SIGKILL)
