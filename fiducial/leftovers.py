"""Names of what is still being made, which tell whose it is, and the removal of what killed processes have left.

Such a file or folder is called .NAME.SCOPE-PID-STARTED-RANDOM.tmp: the machine as its maker sees it (hashed), its number, when
it began. Whoever shares the folder from another machine cannot know whether the maker lives, and leaves it alone.
"""

import hashlib
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from fiducial.processes import is_running, own_process

KEPT = 40  # characters of a name, so that the whole is no longer than any file system takes
LEFTOVER = re.compile(r"\..+\.([0-9a-f]{12})-([0-9]+)-([0-9]+)-[0-9a-f]{8}\.tmp")


def in_the_making(path: Path) -> Path:
    """A path beside `path`, of this process alone, for what will be put in its place when it is whole."""
    own = own_process()
    owner = f"{_hashed(own['scope'])}-{own['pid']}-{own['started']}"
    return path.with_name(f".{path.name[:KEPT]}.{owner}-{secrets.token_hex(4)}.tmp")


def remove_leftovers(folder: Path, nobody_writes: bool = False) -> None:
    """Remove what processes were making in `folder` that are known to be dead: those of this machine that are not running.

    Args:
        nobody_writes: the caller holds the folder, and knows that all that is in the making there was left by the dead.
    """
    with suppress(OSError):
        for entry in os.scandir(folder):
            if (match := LEFTOVER.fullmatch(entry.name)) and (nobody_writes or _is_dead(match)):
                with suppress(OSError):
                    shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else os.unlink(entry)


def _is_dead(maker: re.Match) -> bool:
    own = own_process()
    is_here = own["scope"] and maker[1] == _hashed(own["scope"])
    return bool(is_here) and not is_running({**own, "pid": int(maker[2]), "started": maker[3]})


def _hashed(scope: str) -> str:
    return hashlib.sha256(scope.encode()).hexdigest()[:12]
