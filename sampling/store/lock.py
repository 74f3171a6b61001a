"""One run at a time in a folder, across hosts, without a lock daemon: a lease that its holder renews every few seconds.

RUN/lock holds who has it, a token, and a count that goes up. A holder on this machine is looked for among its processes; one
that cannot be seen, elsewhere or because it is another user's, is watched: if the count stands still for a while, the holder is
dead. No clock or time stamp of a file is compared. Of several that find it dead, the one whose RUN/.lock.HASH.next, after the
dead one's token, is there first puts its own lock in the place of the other's, which is at no moment free in between.
"""

import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fiducial import UserError, in_the_making, is_running, is_visible, open_regular, own_process, say
from fiducial.sampling.store.disk import gone

LOCK = "lock"
RENEW_SECONDS = 5.0
LEASE_SECONDS = 30.0  # longer than network file systems keep what they have read
LENGTH = 512  # bytes, always the same, so that renewing takes no space on a full disk


class Lock:
    """Holds `folder` while it is open. The holder is told by `lost` if another run took the folder for abandoned.

    Args:
        check: called while another's lock is watched, which takes half a minute; what it raises ends that.

    Raises:
        UserError: if another run holds it.
    """

    def __init__(self, folder: Path, check: Callable[[], object] = lambda: None):
        self.path, self.token, self.lost = folder / LOCK, uuid.uuid4().hex, threading.Event()
        self.told: Path | None = None  # the file that says what the run is, once it is there
        self._count, self._file, self._claim, self._check = 0, -1, None, check
        while not (self._create(self.path) or self._succeed()):
            pass
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
            if self._claim:
                self._claim.unlink(missing_ok=True)  # not before: a slow one may still see the last holder's lock

    def _content(self) -> bytes:
        holder = {**own_process(), "token": self.token, "count": self._count}
        return json.dumps(holder).encode().ljust(LENGTH - 1) + b"\n"

    def _create(self, path: Path) -> bool:
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            self._write()
        except OSError:
            os.close(self._file)
            path.unlink()
            raise
        return True

    def _write(self) -> None:
        """Into the file that this run has made, whatever bears its name by now."""
        os.pwrite(self._file, self._content(), 0)
        os.fsync(self._file)

    def _succeed(self) -> bool:
        """Take the place of a dead holder; False if the lock is another's by now, or free.

        Raises:
            UserError: if the holder lives, or one that is about to succeed it.
        """
        if (holder := read(self.path)) is None or not self._is_dead(self.path, holder):
            return False
        fresh, claim, dead = in_the_making(self.path), None, holder
        self._create(fresh)
        try:
            while True:
                there = self.path.with_name(f".{LOCK}.{hashlib.sha256(str(dead['token']).encode()).hexdigest()[:12]}.next")
                if self._link(fresh, there):
                    claim = there
                    break
                token, dead = dead["token"], read(there)
                if dead is None or not self._is_dead(there, dead):
                    return False
                if dead["token"] == token:
                    raise UserError(f"{there} names itself, so it was changed by hand; remove it")
            if (read(self.path) or {}).get("token") == holder["token"]:
                os.replace(fresh, self.path)
                self._claim = claim
                for other in set(self.path.parent.glob(f".{LOCK}.*.next")) - {claim}:  # of those that died in here
                    other.unlink(missing_ok=True)
        finally:
            fresh.unlink(missing_ok=True)
            if self._claim is None:
                os.close(self._file)
                if claim:
                    claim.unlink(missing_ok=True)
        return self._claim is not None

    def _link(self, fresh: Path, claim: Path) -> bool:
        """Have `claim` be this lock as well, or, where files cannot have two names, a copy; False if another's is there."""
        try:
            os.link(fresh, claim)
        except FileExistsError:
            return False
        except OSError:
            try:
                with open(claim, "xb") as file:
                    file.write(self._content())
            except FileExistsError:
                return False
        return True

    def _is_dead(self, path: Path, holder: dict) -> bool:
        """Whether the holder that `path` names is dead; False if it has left, or has only now said who it is.

        Raises:
            UserError: if it lives.
        """
        if not holder["token"]:
            time.sleep(RENEW_SECONDS / 5)
            if read(path) != holder:
                return False
        who = f"process {holder['pid']} on {holder['host']}"
        remedy = "wait for it, or choose another --run-name"
        if holder["scope"] and holder["scope"] == own_process()["scope"]:
            if not is_running(holder):
                return True
            if is_visible(holder["pid"]):
                raise UserError(f"{self.path.parent} is being drawn by another run, {who}; {remedy}")
        say(f"{self.path.parent} was left locked by {who}; watching for {LEASE_SECONDS:.0f} s whether that run is alive")
        until = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < until:
            self._check()
            time.sleep(RENEW_SECONDS / 5)
            if (now := read(path)) is None:
                return False
            if now != holder:
                who = f"process {now['pid']} on {now['host']}"
                raise UserError(f"{self.path.parent} is being drawn by another run, {who}; {remedy}")
        return True

    def _renew(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            with suppress(OSError):  # a file system that does not answer for a while; the lease may run out
                if (read(self.path) or {}).get("token") != self.token or (self.told and gone(self.told)):
                    self.lost.set()
                    return
                self._count += 1
                self._write()

    def check(self) -> None:
        """Raise UserError if another run has taken the folder over, or what is in it is gone."""
        if self.lost.is_set():
            if self.told and (reason := gone(self.told)):
                raise UserError(reason)
            raise UserError(f"{self.path} was removed, or taken over by another run because this one did not answer for a while")


def read(path: Path) -> dict | None:
    """The holder of the lock, or None if nobody holds it. What cannot be understood is held by nobody alive."""
    try:
        with open_regular(path) as file:
            content = file.read(LENGTH)
    except FileNotFoundError:
        return None
    try:
        holder = json.loads(content)
        return {name: holder[name] for name in ("host", "scope", "pid", "started", "token", "count")}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"host": "?", "scope": "", "pid": 0, "started": "", "token": "", "count": 0}


def await_token(folder: Path, token: str, rank: int, seconds: float = LEASE_SECONDS) -> None:
    """Make sure that this rank sees the folder of rank 0.

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
