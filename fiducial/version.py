"""Which Fiducial this is, and the command that started it: what a run and a result say of how they were made."""

import os
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

from fiducial.wings import ROOT

VERSION = "0.1.0"
DISTRIBUTION = "fiducial-fid"  # as it is called where packages are installed from
GIT_SECONDS = 10.0  # on a slow file system the commit is left out
LAUNCHERS = ("torchrun", "accelerate")  # programs that an interpreter runs, which a person does not type


def about() -> dict[str, str | None]:
    """`version`, `commit` and `command` of this process, for what it writes; None where something is not known."""
    return {"version": VERSION, "commit": commit(), "command": command()}


def described(made: dict[str, str | None]) -> str:
    """Version and commit in words."""
    return f"Fiducial {made['version']}" + (f" ({made['commit']})" if made.get("commit") else "")


@cache
def commit() -> str | None:
    """The commit of the checkout that this code is in, "+changes" after it where files that git knows differ from it.

    None without git, in a copy without its history, and in a repository of somebody else's that holds such a copy.
    """
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return None
    head, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return head and head + ("+changes" if changes else "")


def _git(*arguments: str) -> str | None:
    """The state of the checkout by git; None where git says nothing, or is not there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            env=environment | {"GIT_OPTIONAL_LOCKS": "0"},  # nothing is written, also where somebody else works
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return os.fsdecode(done.stdout).strip()


def command() -> str:
    """The whole command line, as it can be pasted in a shell; with the launcher's part, where its process can be read."""
    own = [word for position, word in enumerate(sys.orig_argv) if (position, word) != (1, "-u")]  # torchrun's addition
    return " ".join(map(_quoted, _launched(own) or own))


def _launched(own: list[str]) -> list[str] | None:
    """The launcher's words, which end in those of this process; None without a launcher."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    try:
        words = [os.fsdecode(word) for word in Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")[:-1]]
    except OSError:
        return None
    program = own[2:] if own[1:2] == ["-m"] else own[1:]
    if len(words) <= len(program) or words[-len(program) :] != program:
        return None
    return [Path(words[1]).name, *words[2:]] if Path(words[1]).name in LAUNCHERS else words


def _quoted(word: str) -> str:
    """One word for a shell; what cannot be printed by its bytes, as bash and zsh read them."""
    if word.isprintable():
        return shlex.quote(word)
    plain = (c if c.isprintable() and c not in "'\\" else "".join(f"\\x{byte:02x}" for byte in os.fsencode(c)) for c in word)
    return f"$'{''.join(plain)}'"
