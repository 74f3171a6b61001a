"""A view of a run as text: a screen of a few lines, or a single one."""

import datetime as dt
import textwrap
from collections import Counter

from fiducial import printable
from fiducial.sampling.store.disk import readable
from fiducial.sampling.store.progress import Rank
from fiducial.studies.watch.look import ABSENT, ALIVE, AT_WORK, View

BAR = 30  # characters
SILENT_SECONDS = 30.0  # after which a rank that draws is said to be silent
WORKS = ("sampling", "decoding", "loading")  # states in which a rank tells of something with each block
EVENTS = 5  # that a screen shows
REASON = 3  # lines of why it ended
LEAST_RANKS = 4


def lasting(seconds: float) -> str:
    """A time span for people."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    hours = seconds // 3600
    return f"{hours} h {seconds % 3600 // 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def speed(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.3g} images/s"


def left(view: View, now: dt.datetime) -> str:
    """The time that is left to draw, and when that is over by the clock of whoever watches."""
    told = view.progress
    if view.state != AT_WORK or told is None or told.left is None or not told.left:
        return ""
    end = now + dt.timedelta(seconds=told.left)
    until = f"{end:%H:%M:%S}" if told.left < 43_200 else f"{end:%a %d %b %H:%M}"
    return f"{lasting(told.left)} left, until {until}"


def doing(view: View) -> str:
    """The state of the whole in a word or two: what most of its ranks do, while they draw."""
    ranks = view.progress.ranks if view.progress else ()
    if view.state != AT_WORK or not ranks:
        return view.state
    states = Counter(rank.state for rank in ranks if rank.state != "waiting") or Counter(["waiting"])
    return states.most_common(1)[0][0]


def silent(rank: Rank) -> bool:
    return rank.state in WORKS and rank.silent > SILENT_SECONDS


def one_line(view: View, now: dt.datetime) -> str:
    """Everything in one line, as logs have it."""
    parts = [doing(view)]
    if view.of:
        parts.append(f"{view.images:,} of {view.of:,} images")
    if view.state in ALIVE and view.progress:
        parts += [speed(view.progress.rate), left(view, now)]
        parts += [f"rank {rank.rank} on {rank.host} silent for {lasting(rank.silent)}" for rank in _quiet(view)[:3]]
    line = f"{now:%H:%M:%S} {view.folder}: {', '.join(part for part in parts if part)}"
    return printable(line + (f": {view.reason}" if view.reason else ""))


def screen(view: View, now: dt.datetime, width: int, height: int) -> list[str]:
    """The lines of a terminal of that size; none is longer or more than it has."""
    lines = [f"{view.folder}: {doing(view)}"]
    if view.state == ABSENT:
        return _cut([f"{view.folder}: there is no run yet"], width)
    share = view.images / view.of if view.of else 0.0
    filled = int(BAR * share)
    told = [f"[{'#' * filled}{'-' * (BAR - filled)}] {view.images:,} of {view.of:,} images"]
    if view.state in ALIVE and view.progress:
        told += [speed(view.progress.rate), left(view, now)]
    lines.append("   ".join(part for part in told if part))
    if view.session:
        ranks = f"{view.world_size} rank{'s' if view.world_size > 1 else ''}"
        quiet = f", nothing written for {lasting(view.quiet)}" if view.state in ALIVE and view.quiet > SILENT_SECONDS else ""
        lines.append(f"session {view.session} on {ranks}{quiet}")
    lines += textwrap.wrap(printable(view.reason), width)[:REASON]
    tail = ["", *(f"  {event}" for event in view.events[-EVENTS:])] if view.events else []
    tail += [f"newest images: {view.sheet}"] if view.sheet else []
    tail += [f"result: {view.result}"] if view.result and view.state not in (AT_WORK,) else []
    room = max(height - len(lines) - len(tail) - 3, LEAST_RANKS)
    return _cut([*lines, *_table(view, room), *tail][: max(height - 1, 1)], width)


def _table(view: View, room: int) -> list[str]:
    """The ranks, as many as there is room for: silent ones first, then those that have most to do."""
    if not view.progress or view.state not in ALIVE:
        return []
    ranks = list(view.progress.ranks)
    shown = ranks
    if len(ranks) > room:
        urgent = sorted(ranks, key=lambda rank: (not silent(rank), rank.done - rank.assigned))[: room - 1]
        shown = sorted(urgent, key=lambda rank: rank.rank)
    host = max(4, *(len(rank.host) for rank in shown))
    lines = ["", f"{'rank':>5}  {'host':<{host}}  {'state':<10}  {'images':>17}  {'images/s':>8}  {'last sign':>12}  memory"]
    for rank in shown:
        images, rate = f"{rank.done:,} of {rank.assigned:,}", "" if rank.rate is None else f"{rank.rate:.3g}"
        state = "silent" if silent(rank) else rank.state
        lines.append(
            f"{rank.rank:>5}  {rank.host:<{host}}  {state:<10}  {images:>17}  {rate:>8}  {lasting(rank.silent) + ' ago':>12}  "
            f"{readable(rank.memory)}"
        )
    if more := len(ranks) - len(shown):
        others = Counter(rank.state for rank in ranks if rank not in shown)
        lines.append(f"  and {more:,} more: {', '.join(f'{number:,} {state}' for state, number in others.most_common())}")
    return lines


def _quiet(view: View) -> list[Rank]:
    return [rank for rank in view.progress.ranks if silent(rank)] if view.progress else []


def _cut(lines: list[str], width: int) -> list[str]:
    return [text if len(text := printable(line)) <= width else f"{text[: width - 1]}…" for line in lines]
