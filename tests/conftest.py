"""What every test file shares: one thread a worker, fixed seeds, and no GPU tests where there is no
GPU."""
import random
import signal
import zlib

import numpy as np
import pytest
import torch
from hypothesis import register_random

torch.set_num_threads(1)                # two threads that compete are slower than one
# A job in the background or under nohup ignores these, and so would the programs of the tests.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class TorchRandom:
    """torch's generator as hypothesis wants it, which then starts every example from the same
    numbers."""
    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


torch_random = TorchRandom()            # hypothesis keeps a weak reference only
register_random(torch_random)


@pytest.fixture(autouse=True)
def seeded(request):
    """The random numbers of a test depend on its name alone, not on its neighbours or the worker it
    lands on."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)


@pytest.fixture
def breaks(monkeypatch):
    "A function: from then on C's stage of the second epoch raises what it is given; None: no more."
    from simulus_nb.loop import STAGES
    learn = STAGES["c"]
    def break_with(error):
        def stage(state):
            if state.epoch == 1 and error is not None:
                raise error
            return learn(state)
        monkeypatch.setitem(STAGES, "c", stage)
    return break_with


def pytest_collection_modifyitems(items):
    "Tests marked `gpu` need CUDA."
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
