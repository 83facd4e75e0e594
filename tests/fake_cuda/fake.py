"""A CUDA that computes nothing: on a CPU build of PyTorch, tensors on `cuda` have shapes, types, a
device and a real autograd, but no numbers. Tensors on the CPU are real. What a GPU would do with
each operation is only written down, in `Device`, and what it would refuse, or have to wait for, is
noted with its place in the library. What comes back from the device to the host is zero.

Import this before PyTorch. It needs the library of build.py: its path in FAKE_CUDA_LIBRARY, or it
is made in a temporary folder."""
import contextlib
import ctypes
import functools
import os
import subprocess
import sys
import tempfile
import weakref
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent


def load() -> None:
    """Load backend.cpp's library into this process; where there can be none, print why and leave
    with build.py's exit code."""
    path = os.environ.get("FAKE_CUDA_LIBRARY")
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            command = [sys.executable, str(HERE / "build.py"), folder]
            made = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            path = made.stdout.strip()
            if made.returncode:
                print(path)
                sys.exit(made.returncode)
        ctypes.CDLL(path, ctypes.RTLD_GLOBAL)


if "torch" in sys.modules:
    raise RuntimeError("tests/fake_cuda/fake.py must be imported before torch")
load()

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

sys.path.insert(0, str(HERE.parents[1]))        # the library of this tree, whatever is installed
CUDA = torch.device("cuda", 0)
LIBRARY = torch.library.Library("aten", "IMPL")
# one operation there; without a kernel PyTorch takes it apart
LIBRARY.impl("silu_backward", lambda *a: None, "CUDA")
aten = torch.ops.aten


@functools.lru_cache(None)
def is_ours(file: str) -> str:
    "The module's file name if the file belongs to the library, else nothing."
    return os.path.basename(file) if os.path.basename(os.path.dirname(file)) == "simulus_nb" else ""


def place() -> str:
    "Where in the library we are: file:line (function)."
    frame = sys._getframe(1)
    while frame is not None:
        if name := is_ours(frame.f_code.co_filename):
            return f"{name}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return "outside the library"


# What an operation is

NO_KERNEL = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty",
             "new_empty_strided", "resize_", "set_", "lift"}

@functools.lru_cache(None)
def written(func) -> tuple[tuple[int, ...], tuple[str, ...]]:
    "The arguments that it changes: positions and names."
    aliases = [(i, a.name, a.alias_info) for i, a in enumerate(func._schema.arguments)]
    marks = [(i, name) for i, name, alias in aliases if alias is not None and alias.is_write]
    return tuple(i for i, _ in marks), tuple(name for _, name in marks)


@functools.lru_cache(None)
def launches(func) -> bool:
    "Whether it runs something on the device: it is no view, and makes more than empty memory."
    aliases = [a.alias_info for a in func._schema.arguments if a.alias_info is not None]
    return all(a.is_write for a in aliases) and short(func) not in NO_KERNEL


@functools.lru_cache(None)
def draws(func) -> bool:
    "Whether it takes a generator."
    return any("Generator" in str(a.type) for a in func._schema.arguments)


@functools.lru_cache(None)
def short(func) -> str:
    "aten::add.Tensor -> add"
    return func._schema.name.split("::")[1]


def leaves(*trees):
    "What lists, tuples and dicts of arguments hold."
    for x in trees:
        if isinstance(x, (list, tuple)):
            yield from leaves(*x)
        elif isinstance(x, dict):
            yield from leaves(*x.values())
        else:
            yield x


def tensors_in(*trees) -> list[Tensor]:
    return [x for x in leaves(*trees) if isinstance(x, Tensor)]


# Operations that this file answers itself: name -> f(device, func, args, kwargs)

ANSWERS = {}


def answers(*names):
    def register(f):
        ANSWERS.update(dict.fromkeys(names, f))
        return f
    return register


@answers("_local_scalar_dense", "equal")
def number(device, func, args, kwargs):
    "Zero; but two tensors are equal, and what is asked of all entries holds."
    device.wait("equal" if short(func) == "equal" else "item, bool, int or float")
    if short(func) == "equal" or hasattr(args[0], "holds"):
        return True
    return torch.zeros((), dtype=args[0].dtype).item()


@answers("nonzero")
def nonzero(device, func, args, kwargs):
    device.wait("nonzero")
    return device.make(args[0].numel(), args[0].ndim, dtype=torch.int64)


@answers("masked_select")
def masked_select(device, func, args, kwargs):
    device.wait("masked_select")
    return device.make(args[0].numel(), dtype=args[0].dtype)


@answers("_unique2", "_unique", "unique_dim", "unique_consecutive", "unique_dim_consecutive")
def unique(device, func, args, kwargs):
    device.wait("unique")
    x, dim = args[0], args[1] if "dim" in short(func) else None
    places = x.shape if dim is None else x.shape[dim:][:1]
    values = device.make(*(x.shape if dim is not None else (x.numel(),)), dtype=x.dtype)
    shapes = places, [values.shape[dim or 0]]
    inverse, counts = (device.make(*shape, dtype=torch.int64) for shape in shapes)
    return (values, inverse, counts)[:len(func._schema.returns)]


@answers("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
def index(device, func, args, kwargs):
    """A mask among the indices is counted first; an index on the CPU is copied. A single number
    set under a mask is a `masked_fill` and waits for nobody."""
    indices = []
    for i in args[1]:
        if i is not None and not i.is_cuda:
            device.copy("CPU to CUDA", "an index on the CPU")
            i = device.make(*i.shape, dtype=i.dtype)
        if i is None or i.dtype not in (torch.bool, torch.uint8):
            indices.append(i)
        elif "put" in short(func) and args[2].numel() == 1:
            return args[0] if short(func).endswith("_") else torch.empty_like(args[0])
        else:
            device.wait("boolean mask")
            indices += [device.make(i.numel(), dtype=torch.int64)] * i.ndim
    rest = args[2:]
    if "put" in short(func) and not args[2].is_cuda and args[2].ndim:
        device.refuse("index_put mixes devices: CPU values and a CUDA tensor")
    return device.run(func, (args[0], indices, *rest), kwargs)


@answers("_to_copy")
def to_copy(device, func, args, kwargs):
    x, target = args[0], kwargs.get("device")
    if target is None or torch.device(target).type == x.device.type:
        return device.run(func, args, kwargs)
    if torch.device(target).type == "cuda":
        device.copy("CPU to CUDA", tuple(x.shape))
        return device.make(*x.shape, dtype=kwargs.get("dtype") or x.dtype)
    device.copy("CUDA to CPU", tuple(x.shape))
    dtype = kwargs.get("dtype") or x.dtype
    return torch.full(x.shape, hasattr(x, "holds"), dtype=dtype, device=target)


@answers("copy_")
def copy_(device, func, args, kwargs):
    to, x = args[:2]
    if to.is_cuda != x.is_cuda:
        device.copy("CPU to CUDA" if to.is_cuda else "CUDA to CPU", tuple(x.shape))
    return device.run(func, args, kwargs) if to.is_cuda else to.zero_()


@answers("_cudnn_rnn")
def cudnn_rnn(device, func, args, kwargs):
    "Shapes of cuDNN's LSTM, and what it insists on."
    (x, weights, _, _, h, c, _, H), train, layers = args[:8], args[12], args[9]
    for name, t in (("hx", h), ("cx", c)):
        if not t.is_contiguous():
            device.refuse(f"cuDNN refuses an LSTM whose {name} is not contiguous")
        if t.dtype != x.dtype:
            device.refuse(f"cuDNN refuses an LSTM whose {name} is {t.dtype}, its input {x.dtype}")
    if any(w.dtype != x.dtype for w in weights):
        device.refuse(f"cuDNN refuses an LSTM whose weights are no {x.dtype}, like its input")
    reserve = 6 * x.shape[0] * x.shape[1] * H * layers if train else 0
    shapes = (*x.shape[:2], H), h.shape, c.shape, (reserve,), (0,)
    return tuple(device.make(*shape, dtype=x.dtype) for shape in shapes)


@answers("_cudnn_rnn_backward")
def cudnn_rnn_backward(device, func, args, kwargs):
    x, weights, h, c, train = args[0], args[1], args[4], args[5], args[16]
    if not train:
        device.refuse("cuDNN refuses the backward pass of an LSTM in evaluation mode")
    like = lambda t: device.make(*t.shape, dtype=t.dtype)
    return like(x), like(h), like(c), [like(w) for w in weights]


class Device(TorchDispatchMode):
    """Takes every operation on CUDA tensors out of PyTorch's hands. `broken`: {(rule, place):
    times}; `waits`: the same for synchronisations and copies."""

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.broken, self.waits = Counter(), Counter()
        self.hot, self.recording, self.watchers = [], [], []
        # CUDA graphs; {place: float64 tensors made}
        self.recorded, self.doubles = 0, Counter()
        self.sizes, self.live, self.peak, self.forward = weakref.WeakKeyDictionary(), 0, 0, {}

    # what is noted

    def refuse(self, rule: str) -> None:
        "A GPU would not do this."
        self.broken[rule, self.where()] += 1

    def wait(self, what: str) -> None:
        "The host waits for the device."
        self.note(f"host synchronisation by {what}")

    def copy(self, way: str, what) -> None:
        "Data go from one memory to the other."
        self.note(f"copy from {way} ({what})")

    def note(self, what: str) -> None:
        self.waits[what, self.where()] += 1
        if self.hot:
            self.refuse(f"{what} in {self.hot[-1]}")
        if self.recording:
            self.refuse(f"{what} while a CUDA graph is recorded")

    def where(self) -> str:
        "The place in the library; of an operation in a backward pass, where its forward pass was."
        node = torch._C._current_autograd_node()
        at = node and self.forward.get(node._sequence_nr())
        return f"{at}, backward" if at else place()

    @contextlib.contextmanager
    def no_waiting(self, name: str):
        "Inside, synchronisations and copies break a rule."
        self.hot.append(name)
        try:
            yield
        finally:
            self.hot.pop()

    # memory

    def own(self, x: Tensor) -> None:
        """Count the memory of a tensor until it is freed, in pieces of 512 bytes as CUDA's
        allocator hands them out."""
        storage = x.untyped_storage()
        if storage not in self.sizes:
            self.sizes[storage] = size = -(-storage.nbytes() // 512) * 512
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.free, size)

    def free(self, size: int) -> None:
        self.live -= size

    # operations

    def make(self, *shape: int, dtype: torch.dtype) -> Tensor:
        "A new tensor on the device."
        with self.fake:
            return torch.empty(shape, dtype=dtype, device=CUDA)

    def run(self, func, args, kwargs):
        with self.fake:
            return func(*args, **kwargs)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        ins = tensors_in(args, kwargs)
        on_cuda = any(x.is_cuda for x in ins)
        to_cuda = getattr(kwargs.get("device"), "type", "") == "cuda"
        if not (on_cuda or to_cuda) or func.namespace == "prim":
            return func(*args, **kwargs)
        if torch.is_grad_enabled() and torch._C._current_autograd_node() is None:
            # the newest node is this operation's, if it has one
            self.forward[torch.autograd._get_sequence_nr() - 1] = place()
        name = short(func)
        answer, moves = ANSWERS.get(name), name in ("_to_copy", "copy_", *ANSWERS)
        if on_cuda and not moves and not all(x.is_cuda for x in ins):
            args, kwargs = self.one_device(name, ins, args, kwargs)
        if draws(func):
            args, kwargs = self.draw(name, args, kwargs)
        try:
            out = answer(self, func, args, kwargs) if answer else self.run(func, args, kwargs)
        except Exception as e:
            what = f"{func} at {self.where()}: {type(e).__name__}: {e}"
            raise RuntimeError(f"the CUDA that computes nothing cannot do {what}") from e
        outs = tensors_in(out)
        if any(isinstance(x, FakeTensor) and not x.is_cuda for x in outs):
            real = lambda x: x if x.is_cuda else torch.zeros(x.shape, dtype=x.dtype)
            out = tree_map_only(FakeTensor, real, out)
        for x in outs:
            if x.is_cuda:
                self.own(x)
                if x.dtype == torch.float64:
                    self.doubles[self.where()] += 1
        known = ins and "not" not in name and all(hasattr(x, "holds") for x in ins)
        if name == "all" or known and outs and outs[0].dtype == torch.bool:
            # what is asked of all entries, and what is made of such answers
            out.holds = True
        for watch in self.watchers:
            watch(self, func, args, kwargs, out)
        return out

    def one_device(self, name: str, ins: list[Tensor], args, kwargs):
        """A single number on the CPU may stand beside CUDA tensors, but not in a `cat`; the rest
        is refused, and moved, to go on."""
        wrong = lambda x: not x.is_cuda and (x.ndim > 0 or name in ("cat", "stack"))
        for x in filter(wrong, ins):
            self.refuse(f"{name} mixes devices: a CPU tensor {tuple(x.shape)} and a CUDA tensor")
        here = lambda x: self.make(*x.shape, dtype=x.dtype) if wrong(x) else x
        return tree_map_only(Tensor, here, (args, kwargs))

    def draw(self, name: str, args, kwargs):
        "A generator lives on its tensor's device. PyTorch's shape functions take none."
        for g in leaves(args, kwargs):
            if isinstance(g, torch.Generator) and g.device.type != "cuda":
                self.refuse(f"{name} on CUDA with a generator of the {g.device.type}")
        return tree_map_only(torch.Generator, lambda g: None, (args, kwargs))


class Calls(TorchFunctionMode):
    """What never reaches the dispatcher: which generator it is, lists and arrays made of
    tensors, and PyTorch's choice of an LSTM."""

    def __init__(self, device: Device):
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        x, name = args[0] if args else None, getattr(func, "__name__", "")
        g, graphs = kwargs.get("generator"), self.device.recording[-1:]
        known = [k for graph in graphs for k in graph.generators]
        if g is not None and graphs and not any(g is k for k in known):
            self.device.refuse(f"{name} draws from a generator that the CUDA graph does not know")
        if not (isinstance(x, Tensor) and x.is_cuda):
            return func(*args, **kwargs)
        if name == "tolist":
            self.device.wait("tolist")
            return torch.full(x.shape, hasattr(x, "holds"), dtype=x.dtype).tolist()
        if name in ("numpy", "__array__"):
            if kwargs.get("force"):
                self.device.wait("numpy(force=True)")
            else:
                self.device.refuse("numpy() or np.asarray() of a CUDA tensor")
            return torch.zeros(x.shape, dtype=x.dtype).numpy()
        if name == "lstm":
            x, state, weights, _, layers, dropout, train, both_ways, batch_first = args
            y, h, c, _, _ = aten._cudnn_rnn(
                x, weights, 4, None, *state, 2, state[0].shape[-1], 0, layers, batch_first, dropout,
                train, both_ways, [], None)
            return y, h, c
        return func(*args, **kwargs)


def apply(module: nn.Module, fn, recurse: bool = True) -> nn.Module:
    """`Module._apply`, which moves and converts: the same parameters with other data where they
    stay on their device, new ones where not."""
    for child in module.children():
        child._apply(fn)
    for name, p in module._parameters.items():
        if p is not None:
            with torch.no_grad():
                new = fn(p)
            if new.device == p.device:
                p.data = new
            else:
                module._parameters[name] = nn.Parameter(new, p.requires_grad)
    module._buffers.update({name: fn(b) for name, b in module._buffers.items() if b is not None})
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
    return module


# torch.cuda

class Stream:
    def __init__(self, *args, **kwargs):
        pass

    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass


class Graph:
    "Records nothing; a replay does nothing."

    def __init__(self):
        self.generators = []

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)

    def replay(self) -> None:
        pass


def install(device: Device) -> None:
    "Let `torch.cuda` tell of one GPU."
    @contextlib.contextmanager
    def graph(graph: Graph, pool=None, stream=None, capture_error_mode="global"):
        device.recording.append(graph)
        device.recorded += 1
        try:
            yield
        finally:
            device.recording.pop()

    new = dict(
        is_available=lambda: True, device_count=lambda: 1, current_device=lambda: 0,
        is_initialized=lambda: True, _lazy_init=lambda: None,
        is_bf16_supported=lambda including_emulation=True: True,
        get_device_name=lambda *a: "a CUDA that computes nothing",
        synchronize=lambda *a: device.wait("torch.cuda.synchronize"), empty_cache=lambda: None,
        max_memory_allocated=lambda *a: device.peak, reset_peak_memory_stats=lambda *a: None,
        manual_seed_all=lambda seed: None, set_rng_state=lambda *a, **k: None,
        get_rng_state_all=lambda: [torch.zeros(16, dtype=torch.uint8)],
        current_stream=lambda *a: Stream(), Stream=Stream,
        stream=lambda s: contextlib.nullcontext(), CUDAGraph=Graph, graph=graph,
        graph_pool_handle=lambda: (0, 0),
        is_current_stream_capturing=lambda: bool(device.recording))
    for name, value in new.items():
        if not hasattr(torch.cuda, name):
            raise RuntimeError(f"this PyTorch has no torch.cuda.{name}")
        setattr(torch.cuda, name, value)
    # weights are not joined to one piece
    torch.backends.cudnn.is_acceptable = lambda x: False
    nn.Module._apply = apply
    _foreach_utils._foreach_supported_types.append(FakeTensor)
    # one synchronisation, not one for each entry
    FakeTensor.tolist = Tensor.tolist
    torch._C._set_multithreading_enabled(False)         # a backward pass stays in this thread
    # torch.tensor(..., device="cuda") copies where we see it
    torch._C._set_only_lift_cpu_tensors(True)


@contextlib.contextmanager
def fake_cuda():
    "Inside, there is a GPU: gives out its `Device`."
    device = Device()
    install(device)
    with Calls(device), device:
        yield device
