"""Fiducial: sampling of class-conditional generative models, and how good the samples are.

Here is the ground that its packages (`fiducial.models`, `fiducial.evaluation` ...) stand on: ranks that find each other, talk
through a store, add arrays and end together, of which none waits for one that will not come (see `fiducial.ranks`); and what
every command shares because several processes run it: `fiducial.console`, `decoding`, `files`, `leftovers` and `opening`.
"""

import fiducial.interrupts  # noqa: F401 (before what takes time)
from fiducial.cache import CHECKPOINTS, REFERENCES
from fiducial.console import (
    QUOTED,
    STDOUT,
    Parser,
    UserError,
    environment_rank,
    one_line,
    printable,
    progress_bar,
    quoted,
    require_ending,
    say,
    say_result,
    shown,
    stdout_kept,
    tell_launcher,
    warn,
)
from fiducial.decoding import decode_json, is_decodable, read_json
from fiducial.files import (
    CLASSES_BESIDE,
    MIRROR,
    OFFLINE,
    ZIPPED,
    default_cache,
    download,
    downloading_nothing,
    fetch_each,
    file_sha256,
    write_whole,
)
from fiducial.folders import check_lengths, make_folder, nearest, unwritable
from fiducial.leftovers import in_the_making, remove_leftovers
from fiducial.mistakes import user_errors
from fiducial.opening import (
    NO_FILE,
    NotAFile,
    no_file,
    open_new,
    open_regular,
    open_to_write,
    read_bytes,
    read_text,
    require_file,
    require_place,
)
from fiducial.processes import is_running, is_visible, own_process
from fiducial.ranks.cause import Cause, Stopped
from fiducial.ranks.group import Group
from fiducial.ranks.init import init
from fiducial.ranks.joining import launched
from fiducial.startup import RESUMABLE
from fiducial.version import about, described
from fiducial.wings import find_wings

find_wings()

__all__ = [
    "CHECKPOINTS",
    "CLASSES_BESIDE",
    "MIRROR",
    "NO_FILE",
    "OFFLINE",
    "QUOTED",
    "REFERENCES",
    "RESUMABLE",
    "STDOUT",
    "ZIPPED",
    "Cause",
    "Group",
    "NotAFile",
    "Parser",
    "Stopped",
    "UserError",
    "about",
    "check_lengths",
    "decode_json",
    "default_cache",
    "described",
    "download",
    "downloading_nothing",
    "environment_rank",
    "fetch_each",
    "file_sha256",
    "in_the_making",
    "init",
    "is_decodable",
    "is_running",
    "is_visible",
    "launched",
    "make_folder",
    "nearest",
    "no_file",
    "one_line",
    "open_new",
    "open_regular",
    "open_to_write",
    "own_process",
    "printable",
    "progress_bar",
    "quoted",
    "read_bytes",
    "read_json",
    "read_text",
    "remove_leftovers",
    "require_ending",
    "require_file",
    "require_place",
    "say",
    "say_result",
    "shown",
    "stdout_kept",
    "tell_launcher",
    "unwritable",
    "user_errors",
    "warn",
    "write_whole",
]
