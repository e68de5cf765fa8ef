"""What a GPU does in other ways: the step as a recording, and the choice of a convolution."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from decaybench.training.stacked import convolution

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


ONE_AND_MANY_WINDOWS = [
    *(((1, 1), (1, 1), (3, 3)), ((2, 1), (0, 2), (5, 2))),
    *(((1, 1), (0, 0), (9, 8)), ((9, 9), (0, 0), (5, 2)), ((9, 9), (1, 2), (7, 9))),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("stride", "padding", "kernel"), ONE_AND_MANY_WINDOWS)
def test_both_convolutions_are_torchs(stride: Any, padding: Any, kernel: Any, bias: bool) -> None:
    torch.manual_seed(0)
    R, C, B = 3, 4, 6
    x = torch.randn(R, C, 9, 8, B, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(R, 5, C, *kernel, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(R, 5, dtype=torch.float64, requires_grad=True) if bias else None
    inputs = [t for t in (x, weight, offset) if t is not None]

    def plain(r: int) -> Tensor:
        own = None if offset is None else offset[r]
        return F.conv2d(x[r].movedim(-1, 0), weight[r], own, stride, padding).movedim(0, -1)

    wanted = torch.stack([plain(r) for r in range(R)])
    upstream = torch.randn_like(wanted)
    gradients = torch.autograd.grad(wanted, inputs, upstream)
    for way in (convolution.unfolded, convolution.grouped):
        out = way(x, weight, offset, stride, padding)
        torch.testing.assert_close(out, wanted)
        for ours, theirs in zip(torch.autograd.grad(out, inputs, upstream), gradients, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_way_that_does_not_work_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(convolution, "grouped", fails)
    convolution.fastest.cache_clear()
    shapes = (DEVICE, torch.float32, torch.Size((2, 3, 8, 8, 4)), torch.Size((2, 5, 3, 3, 3)), (1, 1), (1, 1))
    for learning in (True, False):
        assert convolution.fastest(*shapes, (learning, False, "ieee")) is convolution.unfolded
    convolution.fastest.cache_clear()


def test_the_faster_convolution_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = (DEVICE, torch.float32, torch.Size((2, 3, 8, 8, 4)), torch.Size((2, 5, 3, 3, 3)), (1, 1), (1, 1))
    convolution.fastest.cache_clear()
    assert convolution.fastest(*shapes) in (convolution.unfolded, convolution.grouped)
    for winner in (convolution.unfolded, convolution.grouped):
        convolution.fastest.cache_clear()
        monkeypatch.setattr(convolution, "_seconds", lambda way, *_, winner=winner: float(way is not winner))
        assert convolution.fastest(*shapes) is winner
    convolution.fastest.cache_clear()
