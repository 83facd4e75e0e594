"One command in a forked process, and the trouble that befalls it."
import io
import os
import re
import resource
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gymnasium

from simulus_nb import cli

from . import forked
from .worlds import world_class

NAMED = re.compile(r"^simulus-nb: the world (\S+) failed in \w+\(\)")
MEMORY = 4 * 2**30                      # bytes that a command may ask for on its way


@dataclass
class Outcome:
    "How a command ended."
    argv: list[str]
    code: int | None                    # exit code, minus a signal's number, None: it hung
    out: str
    err: str
    words: list[str]                    # what the process told: `fault`, and `moments N` at its end

    @property
    def said(self) -> list[str]:
        "Lines on stderr; Python's warnings, of two lines each, do not count."
        lines = self.err.splitlines()
        warned = {i for i, line in enumerate(lines) if re.match(r"\S+:\d+: \w*Warning: ", line)}
        keep = [x for i, x in enumerate(lines) if i not in warned and i - 1 not in warned]
        return [line for line in keep if line.strip()]

    @property
    def named(self) -> bool:
        "Whether the last line names the world and the call that failed."
        return bool(self.said and NAMED.match(self.said[-1]))

    @property
    def moments(self) -> int:
        "Operations on files and steps of the world."
        return next((int(w.split()[1]) for w in self.words if w.startswith("moments")), 0)

    @property
    def kind(self) -> str:
        "A column of the table."
        if self.code == 0 and "stopped; " in self.out:
            return "stopped"
        return {0: "finished", 1: "world's error", 2: "refused"}.get(self.code, "stopped")


@dataclass(frozen=True)
class Trouble:
    "What befalls one command."
    signals: dict[int, int] = field(default_factory=dict)       # {number of the moment: signal}
    after: Sequence[tuple[float, int]] = ()     # [(seconds of computing, signal)], one by one
    full: int | None = None                     # from this moment on the disk is full
    limit: int | None = None                    # largest file in bytes
    stream: str = ""                            # a key of STREAMS
    pictures: bool = False                      # draw curves and dreams
    world: dict = field(default_factory=dict)   # changes of the world


def rewrap(number: int, encoding: str) -> io.TextIOWrapper:
    "A standard stream in another encoding."
    return io.TextIOWrapper(os.fdopen(number, "wb", closefd=False), encoding, line_buffering=True)


def shut(*numbers: int) -> None:
    "Standard streams as a service may have them: closed, and absent in Python."
    for number in numbers:
        os.close(number)
        setattr(sys, {1: "stdout", 2: "stderr"}[number], None)


def unread() -> None:
    "Nobody reads what is printed."
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    sys.stdout = rewrap(1, "utf8")          # the old one took its file for one with positions


STREAMS = {
    "": lambda: None, "no stdout": lambda: shut(1), "no stderr": lambda: shut(2),
    "neither": lambda: shut(1, 2), "nobody reads": unread,
    "ASCII": lambda: setattr(sys, "stdout", rewrap(1, "ascii")),
    "cp1252": lambda: setattr(sys, "stdout", rewrap(1, "cp1252")),
    "ASCII errors": lambda: setattr(sys, "stderr", rewrap(2, "ascii"))}


def strike_after(plan: Sequence[tuple[float, int]]) -> None:
    "Send this process signals after so many seconds of its own computing each."
    left = list(plan)

    def strike(*_):
        _, number = left.pop(0)
        if left:
            signal.setitimer(signal.ITIMER_VIRTUAL, left[0][0])
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGVTALRM, strike)
    if left:
        signal.setitimer(signal.ITIMER_VIRTUAL, left[0][0])


def child(argv: list[str], world: dict, trouble: Trouble, log: Path, report: int) -> int:
    "What a forked process does: meet its trouble in the command `argv`."
    os.setpgid(0, 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(log / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    made = world_class(**{**world, **trouble.world})
    tell = lambda word: os.write(report, f"{word}\n".encode())
    made.tell = lambda self: tell("fault")
    gymnasium.register(world_id(world), entry_point=made)
    if not trouble.pictures:
        forked.without_pictures()
    names: list[str] = []
    moment = forked.moments(trouble.signals, trouble.full, names.append)
    step = made.step
    made.step = lambda self, action: moment("step") or step(self, action)
    if trouble.limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (trouble.limit, trouble.limit))
    if (pages := Path("/proc/self/statm")).exists():
        most = int(pages.read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    STREAMS[trouble.stream]()
    strike_after(trouble.after)
    try:
        return cli.main(argv)
    finally:
        tell(f"moments {len(names)}")


def world_id(world: dict) -> str:
    "The id under which a world is registered."
    return f"soak/World-{world['seed']}-v0"


class Started:
    "A command that runs in a forked process."

    def __init__(self, argv: list[str], world: dict, trouble: Trouble, log: Path):
        self.argv, self.log = argv, log
        log.mkdir(parents=True)
        work = lambda report: child(argv, world, trouble, log, report)
        self.pid, self.reader = forked.begin(work)

    def wait(self, limit: float, flags: int = 0) -> int | None:
        "The status of `waitpid`; None if nothing happened within `limit` seconds."
        end = time.monotonic() + limit
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG | flags)
            if pid:
                return status
            time.sleep(0.01)
        return None

    def finish(self, limit: float) -> Outcome:
        "Wait for its end, or put one to it."
        status = self.wait(limit)
        if status is None:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        code = None if status is None else os.waitstatus_to_exitcode(status)
        words = b""
        while select.select([self.reader], [], [], 0)[0] and (piece := os.read(self.reader, 2**16)):
            words += piece
        os.close(self.reader)
        out, err = ((self.log / n).read_text("utf8", "replace") for n in ("out", "err"))
        return Outcome(self.argv, code, out, err, words.decode().splitlines())
