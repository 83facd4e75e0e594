"""A process that imports the library once and forks a child for each task, so that killing twenty runs costs seconds. Tasks come on stdin and results leave on
stdout, one JSON object a line. A child trains (`argv`) or writes one checkpoint (`save`); it is sent `signal` after `delay` seconds, or ends itself with SIGKILL
at its `at`-th moment: before and after every operation on a file, and, of a write, with half of it done. With `full` the disk is full from that moment on instead,
and with `limit` no file may get longer than so many bytes."""
import errno
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

from simulus_nb import checkpoint, cli, trainer

torch.set_num_threads(1)


def moments(at, full, report):
    "Make every operation on a file a moment at which this process may die, or the disk be full; the name of each goes to the pipe `report`."
    seen = [0]

    def moment(name, before_death=lambda: None):
        seen[0] += 1
        os.write(report, f"{name}\n".encode())
        if full and at <= seen[0] and name.startswith("before") and name.split()[1] not in ("unlink", "rmdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")
        if seen[0] == at and not full:
            before_death()
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(owner, name, path=None):
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            moment(f"before {name}")
            out = original(*args, **kwargs)
            if path is not None:
                moment(f"half of {name}", lambda: os.truncate(path(args), os.path.getsize(path(args)) // 2))
            moment(f"after {name}")
            return out

        setattr(owner, name, watched)

    for name in ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir"):
        watch(os, name)
    watch(Path, "write_text", lambda args: args[0])
    watch(checkpoint, "save_file", lambda args: args[1])
    watch(trainer.Run, "log", lambda args: args[0].folder.metrics)


def small_save(folder, epoch):
    "A checkpoint of two groups."
    return checkpoint.save_checkpoint(folder, {"net": {"x": torch.full((50,), float(epoch))}, "replay": {"y": torch.arange(200) + epoch}}, {"epoch": epoch})


def child(task, report):
    "What the forked process does; returns its exit code."
    log = os.open(task.get("log", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    parse = cli.parse
    cli.parse = lambda argv: os.write(report, b"parse\n") and parse(argv)
    trainer.dream_media = lambda *args, **kwargs: {}            # pictures and videos take longer than the run
    trainer.plot_history = lambda history: Figure(figsize=(1, 1))
    moments(task.get("at"), task.get("full", False), report)
    if "limit" in task:
        resource.setrlimit(resource.RLIMIT_FSIZE, (task["limit"], task["limit"]))
    if "save" in task:
        return 0 * bool(small_save(*task["save"]))
    return cli.main(task["argv"])


def run(task):
    "Fork, send the signal if one is wanted, wait."
    begin, (reader, report) = time.perf_counter(), os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.close(reader)
            code = child(task, report)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    os.close(report)
    first, begin = os.read(reader, 1), time.perf_counter()
    if task.get("delay") is not None:
        while time.perf_counter() < begin + task["delay"] and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
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
