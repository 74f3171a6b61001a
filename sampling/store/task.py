"""A run's folder in one session: what rank 0 has found to be done, in the form in which it is published to every rank."""

import base64
import json
import os
import socket
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fiducial import Group, make_folder, open_to_write, read_text
from fiducial.sampling.identity import Identity
from fiducial.sampling.plan import Plan
from fiducial.sampling.store import manifest, records
from fiducial.sampling.store.manifest import FILES, MANIFEST_FORMAT, Manifest

EVENTS_KEPT = 1000  # of a session, in the manifest
EVENTS_BYTES = 1 << 26  # of a rank


@dataclass(frozen=True)
class Task:
    """The folder that a session draws into, and what is missing there."""

    folder: Path
    session: int  # its number, from 1
    token: str  # of the folder's lock
    identity: Identity
    done: np.ndarray  # (N,) bool
    facts: Mapping[str, object] = field(default_factory=dict)  # of the source
    made: str = MANIFEST_FORMAT
    npz: Path | None = None  # as it is called while it is worked on
    mark: int = 0  # of its records

    def to_json(self) -> str:
        bits = base64.b64encode(zlib.compress(np.packbits(self.done))).decode()
        fields = {"folder": str(self.folder), "npz": self.npz and str(self.npz), "count": len(self.done), "done": bits}
        return json.dumps(vars(self) | fields | {"identity": dict(self.identity.values)})

    @classmethod
    def from_json(cls, text: str) -> "Task":
        fields = json.loads(text)
        bits = np.frombuffer(zlib.decompress(base64.b64decode(fields["done"])), dtype=np.uint8)
        done = np.unpackbits(bits, count=fields.pop("count")).astype(bool)
        paths = {"folder": Path(fields["folder"]), "npz": fields["npz"] and Path(fields["npz"])}
        return cls(**fields | paths | {"identity": Identity(fields["identity"]), "done": done})

    @property
    def told(self) -> Path:
        """The file that says what the run is."""
        return self.folder / FILES[self.made]

    @property
    def plan(self) -> Plan:
        return Plan.of(self.identity, len(self.done))

    @property
    def missing(self) -> int:
        return int((~self.done).sum())

    def manifest(self) -> Manifest:
        """As it stands on the disk now; UserError if it is gone."""
        return manifest.reread(self.folder, self.made)

    def note(self, group: Group, event: Mapping) -> None:
        """Add to what this rank leaves for the manifest of what was out of the ordinary."""
        line = json.dumps({"rank": group.rank, "host": socket.gethostname(), **event})
        path = events_path(self.folder, self.session, group.rank)
        make_folder(path.parent)
        with open(open_to_write(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "a") as file:
            file.write(line + "\n")


def events_path(folder: Path, session: int, rank: int) -> Path:
    return records.part_path(folder, session, rank).with_suffix(".jsonl")


def read_events(folder: Path, session: int, ranks: int) -> list[dict]:
    """Events that the ranks of a session have noted."""
    events = []
    for rank in range(ranks):
        path = events_path(folder, session, rank)
        with suppress(FileNotFoundError):
            for line in read_text(path, EVENTS_BYTES, errors="replace").splitlines():
                try:
                    events.append(json.loads(line))
                except ValueError:  # cut off
                    continue
    return events[:EVENTS_KEPT]


def remove_events(folder: Path, session: int, ranks: int) -> None:
    for rank in range(ranks):
        events_path(folder, session, rank).unlink(missing_ok=True)
