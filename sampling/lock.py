"""One run at a time in a folder, across hosts, without a lock daemon: a lease that its holder renews every few seconds.

RUN/lock holds who has it, a token, and a count that goes up. A holder on this machine is looked for among its processes; one
elsewhere is watched: if the count stands still for a while, the holder is dead. No clock or time stamp of a file is compared.
"""

import json
import os
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

from distributed import UserError, is_running, open_regular, own_process, say

LOCK = "lock"
RENEW_SECONDS = 5.0
LEASE_SECONDS = 30.0  # longer than network file systems keep what they have read
LENGTH = 512  # bytes, always the same, so that renewing takes no space on a full disk


class Lock:
    """Holds `folder` while it is open. The holder is told by `lost` if another run took the folder for abandoned.

    Raises:
        UserError: if another run holds it.
    """

    def __init__(self, folder: Path):
        self.path, self.token, self.lost = folder / LOCK, uuid.uuid4().hex, threading.Event()
        self._count, self._file = 0, -1
        while not self._create():
            self._remove_if_dead()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_) -> None:
        self._released.set()
        self._thread.join(RENEW_SECONDS)
        os.close(self._file)
        with suppress(OSError):
            if (read(self.path) or {}).get("token") == self.token:
                self.path.unlink(missing_ok=True)

    def _content(self) -> bytes:
        holder = {**own_process(), "token": self.token, "count": self._count}
        return json.dumps(holder).encode().ljust(LENGTH - 1) + b"\n"

    def _create(self) -> bool:
        try:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            self._write()
        except OSError:
            os.close(self._file)
            self.path.unlink()
            raise
        return True

    def _write(self) -> None:
        """Into the file that this run has made, whatever bears its name by now."""
        os.pwrite(self._file, self._content(), 0)
        os.fsync(self._file)

    def _remove_if_dead(self) -> None:
        holder = read(self.path)
        if holder is None:
            return
        who = f"process {holder['pid']} on {holder['host']}"
        remedy = "wait for it, or choose another --run-name"
        if holder["scope"] and holder["scope"] == own_process()["scope"]:
            if is_running(holder):
                raise UserError(f"{self.path.parent} is being drawn by another run, {who}; {remedy}")
        else:
            say(f"{self.path.parent} was left locked by {who}; watching for {LEASE_SECONDS:.0f} s whether that run is alive")
            until = time.monotonic() + LEASE_SECONDS
            while time.monotonic() < until:
                time.sleep(RENEW_SECONDS / 5)
                if (now := read(self.path)) is None:
                    return
                if now != holder:
                    who = f"process {now['pid']} on {now['host']}"
                    raise UserError(f"{self.path.parent} is being drawn by another run, {who}; {remedy}")
        # Only one of several that judge it dead moves it away; whoever moved a newer one puts it back.
        aside = self.path.with_name(f".{LOCK}.{self.token}.dead")
        with suppress(FileNotFoundError):
            os.rename(self.path, aside)
            if (read(aside) or {}).get("token") != holder["token"]:
                with suppress(OSError):
                    os.link(aside, self.path)
            aside.unlink()

    def _renew(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            with suppress(OSError):  # a file system that does not answer for a while; the lease may run out
                if (read(self.path) or {}).get("token") != self.token:
                    time.sleep(RENEW_SECONDS / 5)  # someone may have moved it away by mistake, and puts it back
                    if (read(self.path) or {}).get("token") != self.token:
                        self.lost.set()
                        return
                self._count += 1
                self._write()

    def check(self) -> None:
        """Raises UserError if another run has taken the folder over."""
        if self.lost.is_set():
            raise UserError(f"{self.path} was removed, or taken over by another run because this one did not answer for a while")


def read(path: Path) -> dict | None:
    """Who holds the lock, or None if nobody does. What cannot be understood is held by nobody alive."""
    try:
        with open_regular(path) as file:
            content = file.read(LENGTH)
    except FileNotFoundError:
        return None
    try:
        holder = json.loads(content)
        return {name: holder[name] for name in ("host", "scope", "pid", "started", "token", "count")}
    except (ValueError, KeyError, TypeError):
        return {"host": "?", "scope": "", "pid": 0, "started": "", "token": "", "count": 0}


def await_token(folder: Path, token: str, rank: int, seconds: float = LEASE_SECONDS) -> None:
    """Makes sure that this rank sees the folder of rank 0.

    Raises:
        UserError: if it does not.
    """
    until = time.monotonic() + seconds
    while (read(folder / LOCK) or {}).get("token") != token:
        if time.monotonic() > until:
            host = own_process()["host"]
            raise UserError(
                f"rank {rank} on {host} does not see {folder} of rank 0; --sample-dir must be a folder that all nodes share"
            )
        time.sleep(0.2)
