"""Ctrl-C while a command still imports: it ends by the signal, and no traceback shows how far the imports were.

The first import of the package, which does nothing where somebody else's program imports it: that keeps its own way.
`fiducial.user_errors` takes over.
"""

import os
import signal
import sys

INTERRUPTED = 130  # for a launcher, which is told by exit codes
COMMANDS = ("fiducial", "diffusion", "models", "sampling", "evaluation")  # of `python -m`
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _is_command() -> bool:
    """Whether this process was started as one of ours."""
    if sys.argv[0] == "-m":  # as Python has it until the module is found
        words = iter(sys.orig_argv)
        return any(word == "-m" for word in words) and next(words, "").partition(".")[0] in COMMANDS
    program = os.path.abspath(getattr(sys.modules["__main__"], "__file__", None) or "")
    return os.path.dirname(program) in (ROOT, os.path.join(ROOT, "scripts")) or os.path.basename(program) == COMMANDS[0]


def _exit(*_: object) -> None:
    os._exit(INTERRUPTED)


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as under nohup
    signal.signal(signal.SIGINT, _exit if "TORCHELASTIC_RUN_ID" in os.environ else signal.SIG_DFL)
