"""Signals that end the work of all ranks in order."""

import signal
from types import FrameType

from fiducial import startup
from fiducial.ranks.cause import Cause, Ending

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class Signals:
    """Notes the signals that come until it is closed, and does no more: what a handler waits for may be held by what it
    interrupts. `take` is called where there is time."""

    def __init__(self, ending: Ending):
        self._ending, self._number = ending, 0
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
        self._handlers = {number: signal.signal(number, self._hear) for number in heard}

    def _hear(self, number: int, _: FrameType | None) -> None:
        self._number = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # for who is impatient

    def take(self) -> None:
        """End for the signal that has come, if one has."""
        if number := self._number:
            message = f"stopped by {signal.Signals(number).name}"
            self._ending.decide(Cause("stopped", message, self._ending.rank, signal=int(number)))

    def close(self, failed: bool = False) -> None:
        """Let them do what they did before."""
        for number, handler in self._handlers.items():
            # A launcher ends the others when one has failed; they are ending, with an exit code of their own.
            ignored = failed and startup.LAUNCHER and number == signal.SIGTERM
            signal.signal(number, signal.SIG_IGN if ignored else handler or signal.SIG_DFL)
