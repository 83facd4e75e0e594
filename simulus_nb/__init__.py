"""The one module that no notebook writes: what has to happen before anything else is imported."""
__version__ = "0.1.0"

import os
import sys


def leave_working_folder() -> None:
    """`python -m simulus_nb.cli` looks for modules in the working folder first, also for torch and
    json.

    Files of a stranger's folder would run. So that folder leaves the search path again."""
    ours = sys.argv[:1] == ["-m"] and "simulus_nb" in sys.orig_argv[-len(sys.argv)]
    safe = getattr(sys.flags, "safe_path", False)               # python -P
    if ours and not safe and sys.path[:1] in ([""], [os.getcwd()]):
        del sys.path[0]


leave_working_folder()

import signal                                               # not before: it could be a stranger's


def interrupted(number, frame) -> None:
    "Ctrl-C before the command has begun: nothing is lost."
    os.write(2, b"simulus-nb: interrupted\n")
    os._exit(130)


def main() -> int:
    """The console script `simulus-nb`.

    Its imports take seconds, in which somebody may think better of it."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:                     # else somebody wants it ignored
        signal.signal(signal.SIGINT, interrupted)
    from simulus_nb.cli import main as command
    signal.signal(signal.SIGINT, usual)
    return command()
