"""`fiducial watch RUN`: how far a run is, again and again until it ends."""

import argparse
import datetime as dt
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fiducial import RESUMABLE as CONTINUES
from fiducial import Parser, UserError, say

if TYPE_CHECKING:
    from fiducial.studies.watch.look import Look, View

DESCRIPTION = """Watches a run that is drawn here or, in a shared folder, by other machines. It reads what the run writes and
disturbs nothing.

    fiducial watch samples/RUN
    fiducial watch samples/RUN --wait --every 60 >> watch.log
    fiducial watch samples/RUN --once

In a terminal the lines are redrawn in place, and q or Ctrl-C leaves; elsewhere a line is printed every --every seconds, and one
for each new event. It ends with the run: 0 if that is complete, evaluation included; 75 if the same command continues it, as
after a signal, or nothing was written for --silence seconds; 1 if a person has to put something right. --once exits with 0 if
the run is complete, 75 if it is being drawn, and 75 or 1 as above; what is no run is 2.
"""
LOOK_SECONDS = 1.0  # between two looks for a terminal
ONCE_SECONDS = 7.0  # that --once watches for a movement where the run's processes cannot be seen: two beats of it


def build_parser() -> Parser:
    parser = Parser(
        prog="fiducial watch", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--once", action="store_true", help="print how far it is, and exit")
    parser.add_argument(
        "--every", type=float, default=30.0, metavar="SECONDS", help="between two lines where there is no terminal (default 30)"
    )
    parser.add_argument(
        "--wait", action="store_true", help="wait for a run that is not there yet, and for one that ended early to be continued"
    )
    parser.add_argument(
        "--silence",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="without anything written, after which a run counts as ended (default 120)",
    )
    parser.add_argument("--plain", action="store_true", help="lines also in a terminal")
    return parser


def main() -> int:
    """Do what the command line says. Return the exit code."""
    args = build_parser().parse_args()
    for name in ("every", "silence"):
        if not (math.isfinite(value := getattr(args, name)) and value > 0):
            raise UserError(f"--{name} {value}: must be a number of seconds above 0")
    if args.run.exists() and not args.run.is_dir():
        raise UserError(f"{args.run} is a file; give the folder of a run")
    from fiducial.studies.watch.look import Look

    look = Look(args.run, args.silence)
    if args.once:
        return once(look)
    with interrupted() as stop:
        if sys.stdout.isatty() and not args.plain:
            return on_terminal(look, args.wait, stop)
        return in_lines(look, args.wait, args.every, stop)


@contextmanager
def interrupted() -> Iterator[list[int]]:
    """In here Ctrl-C puts its number into the list, and does nothing else."""
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)


def code_of(view: "View", wait: bool) -> int | None:
    """The exit code with which watching ends at this view; None where it goes on.

    Raises:
        UserError: if there is no run, and none is waited for.
    """
    from fiducial.studies.watch import look

    if view.state == look.ABSENT and not wait:
        where = f"{view.folder} is not the folder of a run" if view.folder.exists() else f"{view.folder}: there is no such folder"
        raise UserError(f"{where}; --wait waits for one")
    if view.state in (look.COMPLETE, look.FAILED):
        return 0 if view.state == look.COMPLETE else 1
    return CONTINUES if view.state in (look.RESUMABLE, look.SILENT) and not wait else None


def once(look: "Look") -> int:
    """Print the screen once. Where the run's process is not seen, something is waited for that moves."""
    from fiducial.studies.watch.lines import screen
    from fiducial.studies.watch.look import ALIVE

    view = look()
    code_of(view, wait=False)
    if view.state in ALIVE and not look.is_here():
        view = until_moved(look, view)
    say(*screen(view, dt.datetime.now(), 10_000, 1_000))
    return CONTINUES if (code := code_of(view, wait=False)) is None else code


def until_moved(look: "Look", view: "View") -> "View":
    """The view once something has moved; told silent if nothing has."""
    from fiducial.studies.watch.look import ALIVE, SILENT

    began, until = look.moved, time.monotonic() + ONCE_SECONDS
    while view.state in ALIVE and look.moved == began:
        if time.monotonic() > until:
            return replace(view, state=SILENT, reason=f"nothing was written while it was watched, for {ONCE_SECONDS:.0f} s")
        time.sleep(LOOK_SECONDS / 2)
        view = look()
    return view


def on_terminal(look: "Look", wait: bool, stop: list[int]) -> int:
    """Redraw the screen until the run ends, or q or Ctrl-C."""
    from fiducial.studies.watch.lines import screen
    from fiducial.studies.watch.terminal import Terminal

    view = look()
    code = code_of(view, wait)
    with Terminal().opened() as terminal:
        while True:
            columns, lines = terminal.size
            leaves = ["", "q leaves"] if code is None else []
            terminal.draw([*screen(view, dt.datetime.now(), columns, lines - len(leaves)), *leaves])
            if code is not None:
                return code
            if stop or terminal.key(LOOK_SECONDS).lower() == "q":
                return 0
            code = code_of(view := look(), wait)


def in_lines(look: "Look", wait: bool, every: float, stop: list[int]) -> int:
    """Print a line now and then, and each event once, until the run ends or Ctrl-C."""
    from fiducial.studies.watch.lines import one_line

    due, shown = -math.inf, None
    while True:
        view = look()
        code = code_of(view, wait)
        fresh = new_events(view.events, shown)
        shown = view.events
        if fresh:
            say(*(f"{dt.datetime.now():%H:%M:%S} {view.folder}: {event}" for event in fresh))
        now = time.monotonic()
        if code is not None or now >= due:
            say(one_line(view, dt.datetime.now()))
            due = now + every
        if code is not None:
            return code
        until = min(due, now + max(LOOK_SECONDS, every / 10))
        while time.monotonic() < until and not stop:
            time.sleep(min(0.2, max(until - time.monotonic(), 0.0)))
        if stop:
            return 0


def new_events(events: tuple[str, ...], shown: tuple[str, ...] | None) -> list[str]:
    """The events that were not there at the look before; of the first look, the last one."""
    if shown is None:
        return list(events[-1:])
    return [event for event in events if event not in shown]
