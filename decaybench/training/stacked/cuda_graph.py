"""Records the gradients of a step as a CUDA graph, which a GPU starts at once instead of kernel by kernel."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from decaybench.training.stacked.stack import StackedModels

WARMUP_PASSES = 3  # passes before the capture, in which libraries choose their kernels and allocate what they keep
Work = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Recorder = Callable[[Callable[[], Any]], tuple[Callable[[], object], Any]]


def cuda_graph(work: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
    """Records work as a CUDA graph; see https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.

    Returns:
        What replays it, and what it returned, whose memory every replay writes to again.
    """
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    side.wait_stream(current)
    gc.collect()  # an old graph must not be destroyed while a new one is recorded
    gc.disable()
    try:
        with torch.cuda.stream(side):
            for _ in range(WARMUP_PASSES):
                work()
        with torch.cuda.graph(graph, stream=side):
            result = work()
    finally:
        gc.enable()
        torch.cuda.set_stream(current)  # a capture that fails leaves its own
    current.wait_stream(side)
    return graph.replay, result


class RecordedStep:
    """Computes whole batches by a recording, and others without.

    Optimizers are no part of it, so that learning rates may change and strategies may do what they like.

    Args:
        work: A method: from a batch x (R, B, C, H, W) and y (R, B) to two tensors; it leaves gradients in the
            network's leaves. Its object is not kept alive.
        net: The networks whose gradients are computed.
        batch: B, the number of examples of a whole batch.
        record: The function that makes the recording.

    Attributes:
        replay: Repeats the recording; None where there is none.
        reason: Why there is none, after the first batch.
    """

    def __init__(self, work: Work, net: StackedModels, batch: int, record: Recorder = cuda_graph) -> None:
        self._work, self._net, self._batch, self._record = weakref.WeakMethod(work), net, batch, record
        self._tried, self._elsewhere = False, False
        self.replay: Callable[[], object] | None = None
        self.reason = ""
        self._result: tuple[Tensor, Tensor]

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the gradients, and hands them to the groups of replicas."""
        whole = x.shape[1] == self._batch
        if whole and not self._tried:
            self._tried = True
            self._begin(x, y)
        if self.replay is None or not whole:
            self._elsewhere = True
            return self._do(x, y)
        self._x.copy_(x)
        self._y.copy_(y)
        self.replay()
        if self._elsewhere:  # the last batch put its gradients into memory of its own
            self._net.set_gradients(self._gradients)
            self._elsewhere = False
        return self._result

    def _do(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        work = self._work()
        assert work is not None
        return work(x, y)

    def _begin(self, x: Tensor, y: Tensor) -> None:
        self._x, self._y = x.clone(), y.clone()
        try:
            with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
                self.replay, self._result = self._record(lambda: self._do(self._x, self._y))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # something in it cannot be recorded: then it is done as it is
            if x.is_cuda:
                torch.cuda.synchronize(x.device)  # unless the GPU itself is in trouble
            if "out of memory" in str(error).lower():  # within a capture it comes as another type
                raise torch.OutOfMemoryError(str(error)) from error
            self.reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            return
        self._gradients = self._net.gradients_by_name()
