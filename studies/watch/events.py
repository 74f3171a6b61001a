"""Events of a run in words: sessions that begin and end, and what was out of the ordinary on a rank."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from fiducial import printable, quoted
from fiducial.sampling.store.manifest import Manifest, Session
from fiducial.sampling.store.task import read_events

SESSIONS = 3  # the last ones, whose events are told
MOST = 50
LONGEST = 300  # characters of one
ASIDE = ("rank", "host", "event")  # parts of an event that its sentence begins with


def events_of(folder: Path, manifest: Manifest, ended: Mapping | None) -> tuple[str, ...]:
    """Events of the last sessions, oldest first."""
    found: list[str] = []
    sessions = list(enumerate(manifest.sessions, start=1))
    for number, session in sessions[-SESSIONS:]:
        found.append(began(number, session))
        found += [in_words(event) for event in _noted(folder, number, session, number == len(sessions))]
        if end := session.ended or (ended if number == len(sessions) else None):
            found.append(f"session {number} ended early: {end.get('message', '')}")
        elif session.finished:
            found.append(f"session {number} finished at {session.finished}{_mended(session)}")
    return tuple(printable(one)[:LONGEST] for one in found[-MOST:])


def began(number: int, session: Session) -> str:
    """When and with how much a session began."""
    when = f" at {session.started}" if session.started else ""
    ranks = f"{session.world_size} rank{'s' if session.world_size > 1 else ''}"
    what = f"with {session.images_before:,} images there" if session.images_before else "from nothing"
    return f"session {number} began{when} on {ranks}, {what}"


def in_words(event: object) -> str:
    """An event that a rank has noted."""
    if not isinstance(event, Mapping):
        return quoted(event)
    where = f"rank {event.get('rank', '?')} on {event.get('host', '?')}"
    others = {name: value for name, value in event.items() if name not in ASIDE}
    rest = "".join(f", {name} {_shown(value)}" for name, value in others.items())
    return f"{where}: {event.get('event', 'something')}{rest}"


def _shown(value: object) -> str:
    """A value of an event; of several by names, these too."""
    if isinstance(value, Mapping):
        return f"({', '.join(f'{name} {_shown(one)}' for name, one in value.items())})"
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else quoted(value)


def _noted(folder: Path, number: int, session: Session, is_last: bool) -> list:
    if session.events is not None or not is_last:
        return session.events or []
    with suppress(OSError):  # not there yet, or not now
        return read_events(folder, number, session.world_size)
    return []


def _mended(session: Session) -> str:
    restored, redrawn = session.copies_restored or 0, session.images_redrawn or 0
    return f", {restored:,} copies restored and {redrawn:,} images redrawn" if restored or redrawn else ""
