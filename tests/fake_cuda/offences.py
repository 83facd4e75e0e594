"""Offences against a CUDA that computes nothing, some of them by calls into the library, to see
that each is noted: {name: [what the note must say, notes]}."""
import json

import fake                             # before torch
import numpy as np
import torch
from torch import nn

from simulus_nb.controller import sample_categorical
from simulus_nb.learner import adamw, update
from simulus_nb.loop import average
from simulus_nb.vqvae import nearest_entry

CPU_GENERATOR = torch.Generator()
OFFENCES = {}


def offence(*wanted: str):
    def register(f):
        OFFENCES[f.__name__] = (wanted, f)
        return f
    return register


def recording():
    return torch.cuda.graph(torch.cuda.CUDAGraph())


def on(*shape, **kwargs) -> torch.Tensor:
    return torch.zeros(shape, device="cuda", **kwargs)


@offence("addmm mixes devices", "vqvae.py", "(nearest_entry)")
def two_devices(device):
    nearest_entry(on(5, 4), torch.zeros(3, 4))


@offence("stack mixes devices")
def a_number_in_a_cat(device):
    torch.stack([on(), torch.zeros(())])


@offence("generator of the cpu", "controller.py", "(sample_categorical)")
def generator_of_the_host(device):
    sample_categorical(on(2, 3), CPU_GENERATOR)


@offence("rand", "the CUDA graph does not know", "controller.py", "(sample_categorical)")
def generator_that_no_graph_knows(device):
    with recording():
        sample_categorical(on(2, 3), torch.Generator(device="cuda"))


@offence("numpy()")
def numpy_of_a_cuda_tensor(device):
    on(3).numpy()


@offence("numpy()")
def array_of_a_cuda_tensor(device):
    np.asarray(on(3))


@offence("synchronisation by tolist in an update", "loop.py", "(average)")
def a_list_in_an_update(device):
    with device.no_waiting("an update"):
        average([{"loss": on()}])


@offence("synchronisation by tolist while a CUDA graph is recorded", "loop.py", "(average)")
def a_list_in_a_recording(device):
    with recording():
        average([{"loss": on()}])


def waits(name, work, *wanted):
    "An offence in a place where nobody may wait."
    def f(device):
        with device.no_waiting("an update"):
            work()
    f.__name__ = name
    offence(*(wanted or (f"synchronisation by {name} in an update",)))(f)


waits("item", lambda: on().item(), "item, bool")
waits("bool", lambda: bool(on(1) > 0), "item, bool")
waits("nonzero", lambda: on(3).nonzero())
waits("where of one argument", lambda: torch.where(on(3) > 0), "nonzero")
waits("unique", lambda: on(3).unique(return_inverse=True))
waits("boolean mask", lambda: on(3)[on(3) > 0])
waits("values under a boolean mask", lambda: on(3).__setitem__(on(3) > 0, on(3)), "boolean mask")
waits("masked_select", lambda: on(3).masked_select(on(3) > 0))
waits("equal", lambda: torch.equal(on(3), on(3)))
waits("a list as index", lambda: on(3)[[0, 2]], "copy from CPU to CUDA")
waits("index on the host", lambda: on(3)[torch.tensor([0, 2])], "copy from CPU to CUDA (an index")
waits("a list", lambda: torch.tensor([1, 2], device="cuda"), "copy from CPU to CUDA")
waits("an array", lambda: torch.as_tensor(np.zeros(3), device="cuda"), "copy from CPU to CUDA")
waits("to", lambda: torch.zeros(3).to("cuda"), "copy from CPU to CUDA")
waits("cpu", lambda: on(3).cpu(), "copy from CUDA to CPU")
waits("copy_", lambda: torch.zeros(3).copy_(on(3)), "copy from CUDA to CPU")
waits("numpy by force", lambda: on(3).numpy(force=True), "numpy(force=True)")
waits("torch.cuda.synchronize", lambda: torch.cuda.synchronize())


def lstm(training: bool) -> nn.LSTM:
    return nn.LSTM(4, 5, batch_first=True).to("cuda").train(training)


@offence("backward: cuDNN refuses the backward pass of an LSTM in evaluation mode")
def gradients_in_evaluation_mode(device):
    net = lstm(training=False)
    update(net, adamw(net, 1e-3, 0.0), net(on(2, 3, 4))[0].sum(), 1.0)


@offence("hx is not contiguous")
def a_state_with_gaps(device):
    h = on(1, 5, 2).transpose(1, 2)
    lstm(training=True)(on(2, 3, 4), (h, h.contiguous()))


@offence("cx is torch.float64, its input torch.float32")
def a_state_of_another_type(device):
    lstm(training=True)(on(2, 3, 4), (on(1, 2, 5), on(1, 2, 5).double()))


def allowed(device) -> None:
    "What looks like an offence and is none."
    x, net = on(3), lstm(training=True)
    with device.no_waiting("an update"), recording():
        x[x > 0] = 1.0
        x[1:] = 0.0
        torch.where(x > 0, 0.0, x) * torch.tensor(2.0)
        torch.rand(3, device="cuda").exponential_()
        x.shape[0], x.numel(), x.to("cuda"), x[torch.zeros(2, dtype=torch.int64, device="cuda")]
        with torch.no_grad():
            net.eval()(on(2, 3, 4))
        net.train()(on(2, 3, 4))[0].sum().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)


def main() -> None:
    found = {}
    for name, (wanted, f) in [*OFFENCES.items(), ("allowed", ((), allowed))]:
        with fake.fake_cuda() as device:
            f(device)
        found[name] = wanted, [f"{where}: {rule}" for rule, where in device.broken]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
