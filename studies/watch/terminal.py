"""A terminal on which some lines are drawn again and again, in place, and a key is heard."""

import os
import select
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HIDE, SHOW, TO_END_OF_LINE, BELOW = "\x1b[?25l", "\x1b[?25h", "\x1b[K", "\x1b[J"


class Terminal:
    """The lines that stand on standard output, which is a terminal, and the keys of standard input, if that is one."""

    def __init__(self):
        self._standing = 0
        self._keys: int | None = None

    @contextmanager
    def opened(self) -> Iterator["Terminal"]:
        """In here keys come at once and unseen, and there is no cursor; afterwards all is as it was."""
        before = None
        with suppress(ImportError, OSError, ValueError):
            import termios
            import tty

            if os.isatty(number := sys.stdin.fileno()):
                before = termios.tcgetattr(number)
                tty.setcbreak(number, termios.TCSANOW)  # waiting for what is unread could be for ever
                self._keys = number
        try:
            self._write(HIDE)
            yield self
        finally:
            self._write(SHOW)
            if before:
                termios.tcsetattr(self._keys, termios.TCSANOW, before)
                self._keys = None

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now."""
        return tuple(shutil.get_terminal_size())

    def draw(self, lines: list[str]) -> None:
        """Put these lines, which fit into the terminal, in the place of those before."""
        up = f"\x1b[{self._standing}A\r" if self._standing else ""
        self._write(up + "".join(f"{line}{TO_END_OF_LINE}\n" for line in lines) + BELOW)
        self._standing = len(lines)

    def key(self, seconds: float) -> str:
        """The key that is pressed within so many seconds; empty if none is."""
        if self._keys is None:
            time.sleep(seconds)
            return ""
        if not select.select([self._keys], [], [], seconds)[0]:
            return ""
        pressed = os.read(self._keys, 1)
        if not pressed:  # the terminal is gone
            self._keys = None
        return pressed.decode(errors="replace")

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # the terminal is gone
            sys.stdout.write(text)
            sys.stdout.flush()
