"""The command on a CUDA that computes nothing and has little memory: a run is built, trains, and
meets the end of it. `python tests/fake_cuda/memory.py MIB [OPTION ...]` prints the exit code and
what was said as one JSON object."""
import contextlib
import io
import json
import os
import sys
import tempfile
from functools import wraps

import fake                             # before torch
import torch
from worlds import without_numbers

from simulus_nb.cli import main


def limit(device, size: int) -> None:
    "Let the device refuse what goes beyond so many bytes, as CUDA's allocator does."
    own = device.own

    @wraps(own)
    def bounded(x) -> None:
        own(x)
        if device.live > size:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2.00 MiB.")
    device.own = bounded
    torch.cuda.mem_get_info = lambda *a: (size - device.live, size)


if __name__ == "__main__":
    said = io.StringIO()
    with fake.fake_cuda() as device, tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        without_numbers()
        limit(device, int(float(sys.argv[1]) * 2**20))
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = main(["train", "--device", "cuda", "--out", "run", *sys.argv[2:]])
        os.chdir("/")
    print(json.dumps({"code": code, "said": said.getvalue()}))
