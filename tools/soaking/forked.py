"""Children of a process that imports the library once: forking one costs milliseconds, so that
two hundred runs can be killed, stopped or starved of disk space within minutes."""
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from simulus_nb import checkpoint, trainer

FREES = ("unlink", "rmdir")             # operations that a full disk allows


def begin(
    work: Callable[[int], int],         # (file descriptor for words to the parent) -> exit code
) -> tuple[int, int]:                   # process id, and where the parent reads those words
    "Fork a child that does `work`; an error that `work` lets through ends it as it ends Python."
    reader, report = os.pipe()
    pid = os.fork()
    if pid:
        os.close(report)
        return pid, reader
    code = 1
    try:
        os.close(reader)
        code = work(report)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (AttributeError, OSError, ValueError):       # closed or absent
                pass
        os._exit(code)


def moments(
    signals: dict[int, int],            # number of a moment: the signal that comes then
    full: int | None = None,            # from this moment on the disk is full
    tell: Callable[[str], None] = lambda name: None,    # hears the name of every moment
) -> Callable[..., None]:               # counts a further moment, by its name
    """Make every operation on a file a moment: before it, after it, and of a write, half done.

    A process that kills itself with SIGKILL in the middle of a write leaves half of the file."""
    seen = 0

    def moment(name: str, spoil: Callable[[], None] = lambda: None) -> None:
        nonlocal seen
        seen += 1
        tell(name)
        when, _, what = name.partition(" ")
        if full is not None and seen >= full and when == "before" and what not in (*FREES, "log"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")
        if seen in signals:
            if signals[seen] == signal.SIGKILL:
                spoil()
            os.kill(os.getpid(), signals[seen])

    def watch(owner, name: str, path: Callable | None = None) -> None:
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            moment(f"before {name}")
            out = original(*args, **kwargs)
            if path is not None:
                file = path(args)
                moment(f"half of {name}", lambda: os.truncate(file, os.path.getsize(file) // 2))
            moment(f"after {name}")
            return out

        setattr(owner, name, watched)

    for name in ("fsync", "replace", "rename", "mkdir", *FREES):
        watch(os, name)
    watch(Path, "write_text", lambda args: args[0])
    watch(checkpoint, "save_file", lambda args: args[1])
    watch(trainer.Session, "log", lambda args: args[0].folder.metrics)
    return moment


def without_pictures() -> None:
    "Pictures and videos take longer than a tiny run."
    trainer.dream_media = lambda *args, **kwargs: {}
    trainer.plot_history = lambda history: Figure(figsize=(1, 1))
