"""Ctrl-C while a command still imports: it ends by the signal, and no traceback shows how far the imports were.

The first import of every command, before any that takes time, and of nothing else: a program that imports the evaluator keeps its
own way. `distributed.user_errors` takes over.
"""

import os
import signal

INTERRUPTED = 130  # for a launcher, which is told by exit codes


def _exit(*_: object) -> None:
    os._exit(INTERRUPTED)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is to be ignored, as under nohup
    signal.signal(signal.SIGINT, _exit if "TORCHELASTIC_RUN_ID" in os.environ else signal.SIG_DFL)
