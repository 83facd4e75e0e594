"""A process that imports the library once and forks a child for each task, so that killing twenty
runs costs seconds. Tasks come on stdin and results leave on stdout, one JSON object a line. A child
trains (`argv`) or writes one checkpoint (`save`); it is sent `signal` after `delay` seconds, or
ends itself with SIGKILL at its `at`-th moment: before and after every operation on a file, and, of
a write, with half of it done. With `full` the disk is full from that moment on instead, and with
`limit` no file may get longer than so many bytes."""
import io
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

from simulus_nb import checkpoint, cli

sys.path.append(str(Path(__file__).parents[1] / "tools"))
from soaking import forked

torch.set_num_threads(1)


def small_save(folder, epoch):
    "A checkpoint of two groups."
    return checkpoint.save_checkpoint(
        folder,
        {"net": {"x": torch.full((50,), float(epoch))}, "replay": {"y": torch.arange(200) + epoch}},
        {"epoch": epoch}
    )


def child(task, report):
    "What the forked process does; returns its exit code."
    log = os.open(task.get("log", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    parse = cli.parse
    cli.parse = lambda argv: os.write(report, b"parse\n") and parse(argv)
    forked.without_pictures()
    at, full = task.get("at"), task.get("full", False)
    forked.moments({} if full else {at: signal.SIGKILL}, at if full else None,
                   lambda name: os.write(report, f"{name}\n".encode()))
    if "limit" in task:
        resource.setrlimit(resource.RLIMIT_FSIZE, (task["limit"], task["limit"]))
    if "save" in task:
        return 0 * bool(small_save(*task["save"]))
    return cli.main(task["argv"])


def run(task):
    "Fork, send the signal if one is wanted, wait."
    pid, reader = forked.begin(lambda report: child(task, report))
    first, begin = os.read(reader, 1), time.perf_counter()
    if task.get("delay") is not None:
        while (
            time.perf_counter() < begin + task["delay"]
            and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.002)
        os.kill(pid, task["signal"])                            # one that has ended does not mind
    with open(reader, "rb") as lines:
        names = (first + lines.read()).decode().split("\n")[:-1]
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"status": status, "moments": names, "seconds": time.perf_counter() - begin}


if __name__ == "__main__":
    Figure().savefig(io.BytesIO())                              # what is slow the first time
    cli.parse(["train"])
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
