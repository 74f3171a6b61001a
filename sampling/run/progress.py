"""One bar for the images of all ranks."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fiducial import Group, Stopped, progress_bar
from fiducial.ranks.board import Count

POLL_SECONDS = 0.2


@contextmanager
def progress(missing: int, count: int, counter: Count, name: str, group: Group) -> Iterator[None]:
    """On rank 0, one bar for the images of all ranks, read from `counter` by a thread of its own."""
    if not group.is_main or not missing:
        yield
        return
    stopped = threading.Event()
    bar = progress_bar(total=count, initial=count - missing, desc=name, smoothing=0)

    def advance() -> None:
        if news := bar.initial + counter.value - bar.n:
            bar.update(news)

    def follow() -> None:
        while not stopped.wait(POLL_SECONDS):
            with suppress(RuntimeError, Stopped):  # the store may be gone, which the work hears of by itself
                advance()

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
        advance()
    finally:
        stopped.set()
        thread.join(POLL_SECONDS)
        bar.close()
