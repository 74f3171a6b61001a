"""Processes of this machine: who one is, whether another is still there, and what else the same launcher has started."""

import os
import socket
from contextlib import suppress
from pathlib import Path


def own_process() -> dict[str, str | int]:
    """A key that tells this process from any other, also from one that gets its number later; `scope` is the machine as it sees
    it."""
    pid, scope, started = os.getpid(), "", ""
    with suppress(OSError):  # not Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        scope, started = f"{boot}/{os.readlink('/proc/self/ns/pid')}", _started(pid)
    return {"host": socket.gethostname(), "scope": scope, "pid": pid, "started": started}


def is_running(other: dict[str, str | int]) -> bool:
    """Whether the process that `own_process` described is alive, as far as one in the same scope can tell.

    One that is there but cannot be seen, as other users' cannot where /proc is mounted with hidepid, counts as alive.
    """
    if type(other["pid"]) is not int or other["pid"] < 1:  # changed by hand
        return not other["scope"]
    try:
        return not other["scope"] or _started(other["pid"]) == other["started"]
    except ProcessLookupError:
        return False
    except OSError:
        return _exists(other["pid"])


def is_visible(pid: int) -> bool:
    """Whether more can be told of a process than that one of this number is there."""
    return Path(f"/proc/{pid}/stat").exists()


def is_stopped(pid: int) -> bool:
    """Whether a process is there and does nothing, as after SIGSTOP or under a debugger."""
    with suppress(OSError):
        return _stat(pid)[0] in "Tt"
    return False


def siblings() -> dict[int, int]:
    """The ranks that the same parent has started here, as far as the kernel tells, and their process numbers."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            pid = int(folder.name)
            if pid != os.getpid() and int(_stat(pid)[1]) == os.getppid():
                words = (folder / "environ").read_bytes().split(b"\0")
                found |= {int(word[5:]): pid for word in words if word.startswith(b"RANK=")}
    return found


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _started(pid: int) -> str:
    """When a process began, in the kernel's ticks."""
    letter, *rest = _stat(pid)
    if letter in "ZX":
        raise ProcessLookupError(pid)
    return rest[18]


def _stat(pid: int) -> list[str]:
    """The kernel's fields of a process, from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
