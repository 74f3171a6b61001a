"""RUN/progress.json: what the ranks of a session do, as rank 0 hears it every few seconds. No torch.

It is for people and for `fiducial watch`; no image depends on it, and a run that lacks it, as older ones do, goes on as well. No
time in it is compared with another machine's clock: `beat` goes up each time that it is written.
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from fiducial import read_json, write_whole
from fiducial.sampling.store.folder import PROGRESS

FORMAT = "fiducial-progress-1"
LARGEST = 1 << 26  # bytes
DRAWING, DRAWN, EVALUATING, EVALUATED, ENDED = STAGES = ("drawing", "drawn", "evaluating", "evaluated", "ended")
LONGEST = 200  # characters of a text


@dataclass(frozen=True)
class Rank:
    """One rank: `done` of the `assigned` images of this session, `silent` seconds since it has told of anything new.

    `state` is loading, sampling, decoding, waiting, checking, packing or evaluating; `rate` images a second of late, None where
    that is not known; `memory` the most bytes that it has held.
    """

    rank: int
    host: str
    state: str
    done: int
    assigned: int
    rate: float | None = None
    silent: float = 0.0
    memory: int = 0


@dataclass(frozen=True)
class Progress:
    """A session at one moment: `images` of `of` are there, `rate` a second are drawn, so that `left` seconds are left to draw.

    `stage` is one of `STAGES`; `message` says why an evaluation ended early, `kind` as `ended.json` has it.
    """

    session: int
    beat: int
    stage: str
    images: int
    of: int
    ranks: tuple[Rank, ...]
    rate: float | None = None
    left: float | None = None
    message: str = ""
    kind: str = ""

    def write(self, folder: Path) -> None:
        """Put it in its place in one step; OSError if it cannot be written."""
        form = {"format": FORMAT, "time": datetime.now(UTC).isoformat(timespec="seconds"), **asdict(self)}
        write_whole(folder / PROGRESS, lambda beside: beside.write_text(json.dumps(form) + "\n"))

    @classmethod
    def parse(cls, form: object) -> "Progress":
        """Read what `write` wrote, decoded; raises ValueError for anything else."""
        if not isinstance(form, dict) or form.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        ranks = form.get("ranks")
        if not isinstance(ranks, list) or form.get("stage") not in STAGES:
            raise ValueError("it is not whole")
        return _of(cls, form | {"ranks": tuple(_of(Rank, rank) for rank in ranks)})


KINDS = {
    int: lambda value: type(value) is int and value >= 0,
    float: lambda value: type(value) in (int, float) and math.isfinite(value),
    float | None: lambda value: value is None or KINDS[float](value),
    str: lambda value: isinstance(value, str),
    tuple[Rank, ...]: lambda value: isinstance(value, tuple),
}


def _of(kind: type, form: object) -> "Progress | Rank":
    """A dataclass of numbers and texts from JSON."""
    if not isinstance(form, dict):
        raise ValueError("a part of it is no object")
    found = {}
    for own in fields(kind):
        value = form.get(own.name)
        if not KINDS[own.type](value):
            raise ValueError(f"its {own.name} is not as expected")
        found[own.name] = value[:LONGEST] if isinstance(value, str) and own.name != "message" else value
    return kind(**found)


def read(folder: Path) -> Progress | None:
    """The progress of the run in `folder`; None where there is none, or it cannot be read, or is something else."""
    try:
        return Progress.parse(read_json(folder / PROGRESS, LARGEST))
    except (OSError, ValueError):
        return None
