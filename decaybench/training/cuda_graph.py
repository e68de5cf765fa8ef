"""Records work as CUDA graphs, which a GPU starts at once instead of kernel by kernel."""

import gc
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

WARMUP_CALLS = 2  # the first creates what is created once, moments of optimizers say; the second is as all later ones


# What torch and CUDA's libraries say when memory runs out elsewhere than in torch's own allocator.
_FULL = re.compile(r"out of memory|_ALLOC_FAILED", re.IGNORECASE)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tells whether an error says that memory ran out, of whatever type it is."""
    return isinstance(error, RuntimeError) and _FULL.search(str(error)) is not None


class CudaGraphs:
    """CUDA graphs on a stream of their own; see https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.

    They share their memory: no two run at once, and what one gives is used before the next one begins.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = None

    def do(self, work: Callable[[], Any]) -> Any:
        """Does work on the stream on which it will be recorded, as a capture asks for."""
        with torch.cuda.device(self.device):
            current, side = torch.cuda.current_stream(), _side_stream(self.device)
            side.wait_stream(current)
            with torch.cuda.stream(side):
                result = work()
            current.wait_stream(side)
        return result

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        """Records work; nothing is computed."""
        with torch.cuda.device(self.device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            current, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
            gc.collect()  # an old graph must not be destroyed while a new one is recorded
            gc.disable()
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=_side_stream(self.device)):
                    result = work()
            finally:
                gc.enable()
                torch.cuda.set_stream(current)  # a capture that fails leaves its own
        return graph.replay, result


@lru_cache(maxsize=64)
def _side_stream(device: torch.device) -> Any:
    """Returns the one stream of a GPU on which work is recorded: libraries keep a workspace for each that was used."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@dataclass
class _Recording:
    """Work for inputs of one shape: how often it was done, and how it is repeated."""

    calls: int = 0
    inputs: tuple[Tensor, ...] = ()
    replay: Callable[[], object] | None = None
    result: Any = None


class Recorded:
    """Does work for inputs of a few shapes, of each the first times as it is, and then by a recording.

    Since a recording computes nothing, there is nothing to put back after one.

    Args:
        work: A method that starts kernels on a GPU and returns tensors there. Its object is not kept alive.
        graphs: Makes the recordings.

    Attributes:
        replays: How often a recording was used.
        reason: Why there is none; empty where there is, or nothing is known yet.
    """

    def __init__(self, work: Callable[..., Any], graphs: CudaGraphs) -> None:
        self._work, self._graphs = weakref.WeakMethod(work), graphs
        self._recordings: dict[Any, _Recording] = {}
        self.replays, self.reason = 0, ""

    def __call__(self, *inputs: Any) -> Any:
        """Does the work; a result is overwritten by the next call.

        Args:
            *inputs: Tensors, whose content may differ from call to call, and other values that tell work from work.
        """
        work, tensors = self._work(), tuple(i for i in inputs if isinstance(i, Tensor))
        assert work is not None
        recording = self._recordings.setdefault(
            tuple(i.shape if isinstance(i, Tensor) else i for i in inputs), _Recording()
        )
        recording.calls += 1
        if recording.replay is None and recording.calls > WARMUP_CALLS and not self.reason:
            self._record(recording, work, inputs)
        if recording.replay is None:
            return work(*inputs) if self.reason else self._graphs.do(lambda: work(*inputs))
        for static, given in zip(recording.inputs, tensors, strict=True):
            static.copy_(given)
        recording.replay()
        self.replays += 1
        return recording.result

    def _record(self, recording: _Recording, work: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
        static = [i.clone() if isinstance(i, Tensor) else i for i in inputs]
        try:
            recording.replay, recording.result = self._graphs.record(lambda: work(*static))
        except RuntimeError as error:  # something in it cannot be recorded: then it is done as it is
            if is_out_of_memory(error):
                raise
            torch.cuda.synchronize(self._graphs.device)  # raises again if the GPU itself is in trouble
            self.reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            return
        recording.inputs = tuple(i for i in static if isinstance(i, Tensor))
