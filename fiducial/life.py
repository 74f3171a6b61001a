"""Signs of life of work that takes long and knows no group, as of hashing or reading large files; and what it is that works."""

from collections.abc import Callable

watchers: list[Callable[[], object]] = []  # called at each sign
listeners: list[Callable[[str], object]] = []  # called with what this process does from now on


def sign() -> None:
    """Say that the work of this process goes on; to be called for each file or chunk, from any thread.

    Raises:
        Stopped: if one watches whose work has to end.
    """
    for watcher in tuple(watchers):
        watcher()


def tell(what: str) -> None:
    """Say what this process does from now on, in a word such as "decoding", to whoever listens."""
    for listener in tuple(listeners):
        listener(what)
