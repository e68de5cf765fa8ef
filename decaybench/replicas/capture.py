"""The gradients of a step as a CUDA graph: a GPU starts them as one thing instead of kernel by kernel."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from decaybench.replicas.stack import Stack

WARM = 3  # passes before the capture, in which libraries choose their kernels and allocate what they keep
Work = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Recorder = Callable[[Callable[[], Any]], tuple[Callable[[], object], Any]]


def cuda_graph(work: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
    """Records work; see https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.

    Returns:
        What replays it, and what it returned, whose memory every replay writes to again.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph.replay, result


class Captured:
    """Does work on batches of the first one's size by a recording, and on others as it is.

    Optimizers are no part of it, so that learning rates may change and strategies may do what they like.

    Args:
        work: From a batch x (R, B, C, H, W) and y (R, B) to two tensors; it leaves gradients in the network's leaves.
        net: The network.
        record: Makes the recording.
    """

    def __init__(self, work: Work, net: Stack, record: Recorder = cuda_graph) -> None:
        self._work, self._net, self._record = work, net, record
        self._shape: torch.Size | None = None
        self._result: tuple[Tensor, Tensor]
        self._replay: Callable[[], object] | None = None

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients are then in the leaves, and handed to the cells."""
        if self._shape is None:
            self._shape = x.shape
            self._begin(x, y)
        if self._replay is None or x.shape != self._shape:
            return self._work(x, y)
        self._x.copy_(x)
        self._y.copy_(y)
        self._replay()
        self._net.put_gradients(self._gradients)  # a batch of another size put its own there
        return self._result

    def _begin(self, x: Tensor, y: Tensor) -> None:
        self._x, self._y = x.clone(), y.clone()
        try:
            with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
                self._replay, self._result = self._record(lambda: self._work(self._x, self._y))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # something in it cannot be recorded: then it is done as it is
            return
        self._gradients = self._net.take_gradients()
