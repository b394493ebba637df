"""Let Ctrl-C end one of the programs at once, without a traceback, while it still imports.

What a program imports takes seconds. Until ``run_program`` knows what to do, the system's own way
of ending a process does. It is imported before all else that takes time, and does nothing in a
process that is another program's.
"""

import signal
import sys
from pathlib import Path

PROGRAMS = ("train.py", "eval.py")
MODULES = ("models.convert", "pruning.sweep", "pruning.report", "data.synthetic")


def _is_program() -> bool:
    """Return whether this process was started as one of our programs."""
    started = sys.orig_argv[1:]
    if "-m" in started[:-1]:
        return started[started.index("-m") + 1] in MODULES
    scripts = {Path(each).name for each in started if not each.startswith("-")}
    return any(name in PROGRAMS or name.startswith("parp-") for name in scripts)


def take_interrupts() -> None:
    """Raise KeyboardInterrupt at Ctrl-C again, as Python does."""
    if _ENDS_AT_ONCE:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# One who has Ctrl-C ignored, as a shell does in the background, means it.
_ENDS_AT_ONCE = _is_program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _ENDS_AT_ONCE:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
