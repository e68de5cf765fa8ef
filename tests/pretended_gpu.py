"""A pretended GPU: runs the real CUDA path on a CPU, and notices the mistakes that a GPU would punish.

A tensor is on a GPU when its storage is marked so; it lies in the CPU's memory all the same. Every operation of torch
is seen (`TorchDispatchMode`): what it makes is on the same GPU, different devices are refused as CUDA refuses them,
transfers and waits are noted with the line of the project that caused them. A capture records operations and not
Python, fills what they made with NaN (a real capture computes nothing), and refuses transfers and waits; a replay
repeats the operations into the same memory.

Two streams that touch the GPU without waiting for each other are noticed, and what a graph gives is overwritten by the
next one of its pool. It cannot see the allocator, the workspaces of cuBLAS and cuDNN, its own random numbers (they are
the CPU's), the precision of products, Triton's launcher, and errors that come late.
"""

import collections
import contextlib
import os
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

FACTORIES = (
    *("zeros", "ones", "empty", "full", "tensor", "randn", "rand", "arange", "randint", "randperm", "linspace", "eye"),
    *("as_tensor", "empty_strided"),
)
LIKE = ("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like")
NEW = ("new_tensor", "new_zeros", "new_empty", "new_full", "new_ones")
WAITS = {  # operations whose result the CPU has to know
    *("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero", "bincount"),
    *("unique_consecutive", "histc"),
}
TRANSFERS = {"copy_", "_to_copy", "set_"}  # operations that may have tensors of two devices
NO_KERNEL = {  # operations that start nothing on a GPU
    *("detach", "alias", "_unsafe_view", "lift_fresh", "_local_scalar_dense", "empty_like", "new_empty"),
    *("empty_strided", "new_empty_strided", "set_", "empty"),
}


class Note(NamedTuple):
    """Something that costs time on a GPU: a transfer or a wait."""

    what: str
    detail: str
    where: str


class Graph:
    """What `torch.cuda.CUDAGraph` is, on the CPU."""

    def __init__(self) -> None:
        self.recorded: list[tuple[Callable[..., Any], Any, Any, list[Any]]] = []
        self.replays, self.pool, self.valid = 0, object(), False
        self.made: list[Tensor] = []

    def replay(self) -> None:
        """Repeats the operations that were recorded, into the memory that they wrote to."""
        self.replays += 1
        gpu = PretendedGpu.now
        assert gpu is not None
        gpu.touched()
        with _disable_current_modes(), torch.no_grad(), gpu.unseen():
            for other in gpu.graphs:  # whose memory this one takes
                if other is not self and other.pool == self.pool and other.valid:
                    other.spoil()
            for work, args, kwargs, outs in self.recorded:
                for old, new in zip(outs, tree_flatten(work(*args, **kwargs))[0], strict=False):
                    if isinstance(old, Tensor) and old is not new and _storage(old) != _storage(new):
                        old.copy_(new)
        gpu.count["replays"] += 1
        self.valid = True

    def spoil(self) -> None:
        """Fills what the graph makes with NaN."""
        self.valid = False
        for made in self.made:
            made.fill_(float("nan"))


class Stream:
    """What `torch.cuda.Stream` is: work on one is done in order, and knows of others what it waited for."""

    def __init__(self, device: Any = None) -> None:
        self.last = 0  # the number of its last work
        self.knows: dict[int, int] = {}  # of other streams

    def wait_stream(self, other: "Stream") -> None:
        """Waits for all that another stream has done so far."""
        for stream, last in {**other.knows, id(other): other.last}.items():
            self.knows[stream] = max(last, self.knows.get(stream, 0))


def _storage(tensor: Tensor) -> int | None:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


def _bytes(values: Any) -> int:
    """Returns the bytes of tensors that a kernel reads or writes, each number once however often it is repeated."""
    tensors = [t for t in tree_flatten(values)[0] if isinstance(t, Tensor)]
    real = {t.data_ptr(): min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors}
    return sum(real.values())


def _place() -> str:
    """Names the line of the project that is being executed."""
    for frame in reversed(traceback.extract_stack()[:-2]):
        if "/decaybench/" in frame.filename and "/tests/" not in frame.filename:
            return f"{frame.filename.rpartition('/decaybench/')[2]}:{frame.lineno}"
    return "elsewhere"


class PretendedGpu(TorchDispatchMode):
    """A machine with GPUs, while it is entered: CUDA's, or Apple's ("mps"), which has no float64.

    Attributes:
        notes: Transfers and waits.
        count: How many kernels there were outside a graph and in one, the bytes they touch, captures, replays.
        kernels: How often each kernel was started or recorded.
    """

    now: "PretendedGpu | None" = None

    def __init__(self, devices: int = 1, free: int = 70 << 30, kind: str = "cuda") -> None:
        super().__init__()
        self.kind = kind
        self.devices, self.free = devices, free
        self.notes: list[Note] = []
        self.count: collections.Counter[str] = collections.Counter()
        self.kernels: collections.Counter[str] = collections.Counter()
        self.capturing: Graph | None = None
        self._on: dict[
            int, tuple[int, Any]
        ] = {}  # of a storage: its GPU, and the storage, so that its address stays its own
        self._before: dict[int, tuple[Tensor, Tensor]] = {}  # what a capture must not change, and as it was
        self._unseen = 0
        self.graphs: weakref.WeakSet[Graph] = weakref.WeakSet()
        self.stream = Stream()
        self._streams = {id(self.stream): self.stream}
        self._works = 0

    # -- where a tensor is --------------------------------------------------------------------------------------------

    def put(self, tensor: Any, index: int = 0) -> Any:
        """Marks a tensor as one of a GPU."""
        if isinstance(tensor, Tensor) and (storage := _storage(tensor)) is not None:
            real = tensor
            while torch._C._functorch.is_functorch_wrapped_tensor(real):
                real = torch._C._functorch.get_unwrapped(real)
            self._on.setdefault(storage, (index, real.untyped_storage()))
            if self.kind == "mps" and tensor.dtype == torch.float64 and not self._unseen:
                raise TypeError(f"the MPS framework doesn't support float64 (at {_place()})")
        return tensor

    def index_of(self, tensor: Tensor) -> int | None:
        """Returns the GPU that a tensor is on; None for the CPU."""
        storage = _storage(tensor) if self._on else None
        return self._on[storage][0] if storage in self._on else None

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """Lets what happens inside be the CPU's."""
        self._unseen += 1
        try:
            yield
        finally:
            self._unseen -= 1

    def note(self, what: str, detail: str) -> None:
        """Notes a transfer or a wait, which no capture allows."""
        if self._unseen:
            return
        self.notes.append(Note(what, detail, _place()))
        if self.capturing is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what} of {detail} at {_place()}")

    # -- operations ---------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(a, Tensor) and a.is_meta for a in args):
            return func(*args, **kwargs)
        if func.namespace == "decaybench":  # an operation of the project: what is inside counts
            with self:
                out = func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
            index = next((i for a in args if isinstance(a, Tensor) and (i := self.index_of(a)) is not None), None)
            return out if index is None else tree_map(lambda t: self.put(t, index), out)
        name = func.overloadpacket.__name__
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        there = {index for t in tensors if (index := self.index_of(t)) is not None}
        if there:
            self._check(func, name, args, tensors, there)
        if self.capturing is not None:
            self._keep(func, args, kwargs)
        out = func(*args, **kwargs)
        outs = tree_flatten(out)[0]
        if there and name != "_local_scalar_dense":
            target = self.index_of(args[0]) if isinstance(args[0], Tensor) else None
            for made in outs:
                self.put(made, min(there) if target is None else target)
            self._record(func, name, args, kwargs, outs)
        return out

    def _keep(self, func: Any, args: Any, kwargs: Any) -> None:
        """Keeps what an operation within a capture writes to, which a capture leaves as it is."""
        assert self.capturing is not None
        given = zip(func._schema.arguments, args, strict=False)
        named = ((a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs)
        for argument, value in (*given, *named):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if not written and argument.name not in (
                "running_mean",
                "running_var",
            ):  # of batch norm, whose schema is mum
                continue
            for t in tree_flatten(value)[0]:
                if isinstance(t, Tensor) and (storage := _storage(t)) is not None:
                    with _disable_current_modes(), torch.no_grad(), self.unseen():
                        whole = t.detach().as_strided((t.untyped_storage().nbytes() // t.element_size(),), (1,), 0)
                        self._before.setdefault(storage, (whole, whole.clone()))

    def _check(self, func: Any, name: str, args: Any, tensors: list[Tensor], there: set[int]) -> None:
        others = [t for t in tensors if t.dim() and t.numel() and self.index_of(t) is None]
        if name not in TRANSFERS and (len(there) > 1 or (others and not name.startswith("_foreach"))):
            if name in ("index", "index_put_", "_index_put_impl_", "index_put"):
                self.note("upload", f"the index of {name}")
            else:
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found two in {func} at {_place()}"
                )
        if name == "copy_" and self.index_of(args[0]) != self.index_of(args[1]):
            self.note("upload" if self.index_of(args[1]) is None else "download", f"copy_ {tuple(args[0].shape)}")
        if name in WAITS:
            self.note("wait", name)
        if name == "index" and any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            self.note("wait", "an index by a mask")

    def _record(self, func: Any, name: str, args: Any, kwargs: Any, outs: list[Any]) -> None:
        if self._unseen:
            return
        if not func.is_view and name not in NO_KERNEL:
            if self.capturing is None:
                self.touched()
            where = " in a graph" if self.capturing is not None else ""
            self.count["kernels" + where] += 1
            self.count["bytes" + where] += _bytes((args, kwargs, outs))
            self.kernels[name] += 1
        if self.capturing is not None and not func.is_view and name not in ("detach", "alias", "_unsafe_view"):
            self.capturing.recorded.append((func, args, kwargs, outs))

    def touched(self) -> None:
        """Notes that the current stream works, unless another one did since it waited for that."""
        self._works += 1
        for key, other in self._streams.items():
            if other is not self.stream and other.last > self.stream.knows.get(key, 0):
                self.note("race", "two streams that do not wait for each other")
                self.stream.wait_stream(other)
        self.stream.last = self._works

    @contextlib.contextmanager
    def _on_stream(self, stream: Stream) -> Iterator[None]:
        before = self.stream
        self.stream = self._streams.setdefault(id(stream), stream)
        try:
            yield
        finally:
            self.stream = before

    def launch(self, work: Callable[..., Any], *args: Any) -> None:
        """Does what is no operation of torch, as one kernel: ``work(*args)`` writes to its arguments."""
        where = " in a graph" if self.capturing is not None else ""
        self.count["kernels" + where] += 1
        self.count["bytes" + where] += _bytes(args)
        with _disable_current_modes(), self.unseen():
            work(*args)
        if self.capturing is not None:
            self.capturing.recorded.append((lambda *a: work(*a), args, {}, []))

    @contextlib.contextmanager
    def _capture(self, graph: Graph, pool: Any = None, stream: Any = None, **_: Any) -> Iterator[None]:
        self.capturing = graph
        graph.pool = graph.pool if pool is None else pool
        self.graphs.add(graph)
        self.count["captures"] += 1
        drawn = torch.random.get_rng_state()
        try:
            yield
        finally:
            self.capturing = None
            torch.random.set_rng_state(drawn)
            with _disable_current_modes(), torch.no_grad(), self.unseen():
                for tensor, before in self._before.values():
                    tensor.copy_(before)
            self._before.clear()
        seen: set[int | None] = set()
        with _disable_current_modes(), torch.no_grad(), self.unseen():
            for _work, args, kwargs, outs in graph.recorded:  # what the graph makes, and not what it was given
                given = {_storage(t) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
                for made in outs:
                    if isinstance(made, Tensor) and _storage(made) not in given | seen:
                        seen.add(_storage(made))
                        if made.is_floating_point():
                            graph.made.append(made)
        with _disable_current_modes(), torch.no_grad(), self.unseen():
            graph.spoil()

    # -- torch, as it is beside a GPU ---------------------------------------------------------------------------------

    def __enter__(self) -> Any:
        if PretendedGpu.now is self:
            return super().__enter__()
        PretendedGpu.now = self
        self._patches = contextlib.ExitStack()
        self._patch_tensors()
        if self.kind == "cuda":
            self._patch_cuda()
        self._patch_optimizers()
        self._patch_autocast()
        return super().__enter__()

    def close(self) -> None:
        """Takes the GPUs away."""
        self._patches.close()
        PretendedGpu.now = None

    def _patch(self, owner: Any, name: str, value: Any, **more: Any) -> None:
        self._patches.enter_context(mock.patch.object(owner, name, value, **more))

    def _is_here(self, tensor: Tensor) -> bool:
        return self._unseen > 0 or self.index_of(tensor) is None

    def _wanted(self, device: Any) -> int | None:
        """Returns the GPU that a device names; None for others."""
        if device is None or self._unseen:
            return None
        device = torch.device(device)
        return (device.index or 0) if device.type == self.kind else None

    def _patch_tensors(self) -> None:
        real_device = torch._C.TensorBase.device.__get__
        gpu = self

        def device(t: Tensor) -> torch.device:
            index = None if gpu._unseen else gpu.index_of(t)
            return real_device(t) if index is None else torch.device(gpu.kind, index)

        self._patch(Tensor, "device", property(device), create=True)
        self._patch(Tensor, "is_cuda", property(lambda t: gpu.kind == "cuda" and not gpu._is_here(t)), create=True)
        self._patch(Tensor, "is_cpu", property(gpu._is_here), create=True)
        real_get = Tensor.get_device
        self._patch(Tensor, "get_device", lambda t: real_get(t) if gpu._is_here(t) else gpu.index_of(t))
        for name in FACTORIES:
            self._patch(torch, name, self._factory(getattr(torch, name)))
        for name in NEW:
            self._patch(Tensor, name, self._beside(getattr(Tensor, name), inherits=True))
        for name in LIKE:
            self._patch(torch, name, self._beside(getattr(torch, name), inherits=False))
        self._patch_transfers()
        self._patch_reading()

    def _factory(self, real: Any) -> Any:
        def make(*args: Any, **kwargs: Any) -> Any:
            index = self._wanted(kwargs.get("device"))
            if index is None:
                return real(*args, **kwargs)
            kwargs["device"] = "cpu"
            out = real(*args, **kwargs)
            if real.__name__ in ("tensor", "as_tensor"):
                self.note("upload", f"torch.{real.__name__}")
            elif not real.__name__.startswith("empty"):  # a kernel fills it, within a graph each time
                self.count["kernels in a graph" if self.capturing is not None else "kernels"] += 1
                if self.capturing is not None:
                    self.capturing.recorded.append((real, args, kwargs, [out]))
            return self.put(out.clone() if real.__name__ == "as_tensor" else out, index)

        return make

    def _beside(self, real: Any, inherits: bool) -> Any:
        def make(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            device = kwargs.pop("device", None)
            out = real(tensor, *args, **kwargs)
            index = self._wanted(device)
            if index is None and device is None and inherits and not self._unseen:
                index = self.index_of(tensor)
            return out if index is None else self.put(out, index)

        return make

    def _patch_transfers(self) -> None:
        to, cpu = Tensor.to, Tensor.cpu
        gpu = self

        def moved(t: Tensor, target: Any, args: Any, kwargs: Any) -> Tensor:
            index, before = gpu._wanted(target), gpu.index_of(t)
            if index is not None:
                if before == index:
                    return to(t, *args, **kwargs)
                out = to(t, *args, **kwargs)
                out = out.clone() if out is t or _storage(out) == _storage(t) else out
                gpu.note("upload", f"{tuple(t.shape)} {t.dtype}")
                return gpu.put(out, index)
            if before is None:
                return to(t, target, *args, **kwargs)
            gpu.note("download", f"{tuple(t.shape)}")
            with gpu.unseen(), _disable_current_modes():
                return to(t.detach(), *args, **kwargs).clone()

        def new_to(t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if gpu._unseen:
                return to(t, *args, **kwargs)
            target, rest = kwargs.pop("device", None), list(args)
            if rest and isinstance(rest[0], str | torch.device):
                target = rest.pop(0)
            elif rest and isinstance(rest[0], Tensor):
                target, rest = rest[0].device, [rest[0].dtype, *rest[1:]]
            rest = [x for x in rest if isinstance(x, torch.dtype)]
            return to(t, *rest, **kwargs) if target is None else moved(t, target, rest, kwargs)

        self._patch(Tensor, "to", new_to)
        self._patch(Tensor, "cuda", lambda t, *_, **__: new_to(t, "cuda"))
        self._patch(Tensor, "cpu", lambda t, *a, **k: cpu(t, *a, **k) if gpu._unseen else moved(t, "cpu", [], {}))

    def _patch_reading(self) -> None:
        numpy, tolist = Tensor.numpy, Tensor.tolist
        gpu = self

        def new_numpy(t: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not gpu._is_here(t):
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
            return numpy(t, *args, **kwargs)

        def new_tolist(t: Tensor) -> Any:
            if gpu.index_of(t) is not None:
                gpu.note("wait", "tolist")
            with gpu.unseen():
                return tolist(t)

        self._patch(Tensor, "numpy", new_numpy)
        self._patch(Tensor, "tolist", new_tolist)

    def _patch_cuda(self) -> None:
        gpu, cuda = self, torch.cuda
        answers: dict[str, Any] = {
            "is_available": lambda: True,
            "device_count": gpu.visible,
            "current_device": lambda: 0,
            "is_initialized": lambda: True,
            "_lazy_init": lambda: None,
            "mem_get_info": lambda device=None: (gpu.free, 80 << 30),
            "memory_reserved": lambda device=None: 0,
            "memory_allocated": lambda device=None: 0,
            "get_device_capability": lambda device=None: (9, 0),
            "get_device_name": gpu.name,
            "empty_cache": lambda: None,
            "is_current_stream_capturing": lambda: gpu.capturing is not None,
            "device_of": lambda tensor: contextlib.nullcontext(),
            "device": lambda device: contextlib.nullcontext(),
            "graph_pool_handle": lambda: (0, 0),
            "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
            "set_rng_state": lambda state, device=None: None,
            "manual_seed_all": lambda seed: None,
            "synchronize": lambda device=None: gpu.note("wait", "synchronize"),
            "Stream": Stream,
            "current_stream": lambda *_: gpu.stream,
            "set_stream": lambda other: None,
            "stream": gpu._on_stream,
            "CUDAGraph": Graph,
            "graph": gpu._capture,
        }
        for name, answer in answers.items():
            self._patch(cuda, name, answer)

    def visible(self) -> int:
        """Returns how many GPUs this process may see, by CUDA_VISIBLE_DEVICES."""
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        return self.devices if given is None else min(self.devices, len([i for i in given.split(",") if i]))

    def name(self, device: Any = None) -> str:
        """Names a GPU by its number on the machine."""
        given = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(self.devices)))
        return f"Pretended GPU {given.split(',')[torch.device(device or 'cuda').index or 0]}"

    def _patch_optimizers(self) -> None:
        gpu = self

        def check(optimizer: torch.optim.Optimizer) -> None:
            if gpu.capturing is not None and not all(group.get("capturable") for group in optimizer.param_groups):
                raise RuntimeError("Attempting CUDA graph capture of step() for an instance that is not capturable")

        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            self._patch(torch.optim.Optimizer, name, check, create=True)
        real = torch._C._group_tensors_by_device_and_dtype

        def grouped(lists: Any, *args: Any, **kwargs: Any) -> Any:  # in C++, where our GPUs are not known
            out = {}
            for (device, dtype), values in real(lists, *args, **kwargs).items():
                index = next(
                    (i for t in values[0][0] if isinstance(t, Tensor) and (i := gpu.index_of(t)) is not None), None
                )
                out[device if index is None else torch.device(gpu.kind, index), dtype] = values
            return out

        self._patch(torch._C, "_group_tensors_by_device_and_dtype", grouped)

    def _patch_autocast(self) -> None:
        gpu = self
        real, enabled, dtype_of = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype

        class Autocast(real):  # type: ignore[misc,valid-type]
            def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
                super().__init__("cpu" if device_type == gpu.kind else device_type, *args, **kwargs)

        self._patch(torch, "autocast", Autocast)
        self._patch(torch, "is_autocast_enabled", lambda kind="cpu": enabled("cpu" if kind == gpu.kind else kind))
        self._patch(torch, "get_autocast_dtype", lambda kind: dtype_of("cpu" if kind == gpu.kind else kind))


@contextlib.contextmanager
def pretended_gpu(**options: Any) -> Iterator[PretendedGpu]:
    """Gives this machine GPUs for a while."""
    gpu = PretendedGpu(**options)
    try:
        with gpu:
            yield gpu
    finally:
        gpu.close()
