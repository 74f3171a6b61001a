"""Why all ranks end, and what one rank has decided of that."""

import json
import socket
import threading
import traceback
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from fiducial.console import UserError, as_mistake
from fiducial.startup import RESUMABLE

if TYPE_CHECKING:
    import torch

TRACEBACK = 20_000  # characters that are kept of one
KEY = "cause"  # in the store


class Stopped(Exception):
    """Raised where this rank's work has to end because of what `cause` says; that has been announced already."""

    def __init__(self, cause: "Cause"):
        super().__init__(cause.message)
        self.cause = cause


@dataclass(frozen=True)
class Cause:
    """Why all ranks end.

    `kind` is `failed` if a person has to put something right, `stopped` after a signal, `lost` if a process, host or
    connection is gone; after the latter two the same command continues.
    """

    kind: str
    message: str
    rank: int
    host: str = field(default_factory=socket.gethostname)
    exit_code: int = RESUMABLE
    traceback: str = ""
    lost_rank: int | None = None
    signal: int = 0  # that it was stopped by

    @classmethod
    def of(cls, error: BaseException, rank: int) -> "Cause":
        """The cause that an exception is which ends this rank."""
        error = as_mistake(error)
        if isinstance(error, UserError):
            return cls("failed", str(error), rank, exit_code=2)
        if isinstance(error, SystemExit):
            return cls("failed", f"rank {rank} has exited with {error.code}", rank, exit_code=1)
        words = "; ".join([f"{type(error).__name__}: {error}".removesuffix(": "), *getattr(error, "__notes__", [])])
        trace = "".join(traceback.format_exception(error))[-TRACEBACK:]
        return cls("failed", words, rank, exit_code=1, traceback=trace)

    @classmethod
    def published(cls, store: "torch.distributed.Store") -> "Cause | None":
        """The one that a rank has published, if one has."""
        return cls(**json.loads(store.get(KEY))) if store.check([KEY]) else None

    def publish(self, store: "torch.distributed.Store") -> None:
        store.set(KEY, json.dumps(asdict(self)))


class Ending:
    """How the work of a rank ends: done, or for the first cause that it has found or heard of.

    Its threads wait for the events: `decided` once there is a cause, `announced` once others can know it, `done` once nothing
    is to be watched any more, and `wake` at the first and the last.
    """

    def __init__(self, rank: int):
        self.rank = rank
        self.cause: Cause | None = None
        self.is_own = False  # found here, so to be announced from here
        self.decided, self.announced, self.done, self.wake = (threading.Event() for _ in range(4))
        self._deciding = threading.Lock()

    def decide(self, cause: Cause, own: bool = True) -> None:
        """End for this cause, unless there is one."""
        with self._deciding:
            if not self.decided.is_set():
                self.cause, self.is_own = cause, own
                self.decided.set()
                self.wake.set()

    def lose(self, message: str) -> None:
        """End because something is gone, unless there is a cause."""
        self.decide(Cause("lost", message, self.rank))

    def finish(self) -> None:
        self.done.set()
        self.wake.set()

    def require_none(self) -> None:
        """Raise Stopped if there is a cause."""
        if self.cause:
            raise Stopped(self.cause)
