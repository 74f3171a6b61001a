"""Signs of life of work that takes long and knows no group, as of hashing or reading large files."""

from collections.abc import Callable

watchers: list[Callable[[], object]] = []  # called at each sign


def sign() -> None:
    """Say that the work of this process goes on; to be called for each file or chunk, from any thread.

    Raises:
        Stopped: if one watches whose work has to end.
    """
    for watcher in tuple(watchers):
        watcher()
