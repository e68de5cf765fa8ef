"""What a GPU does in other ways: the step as a recording, and the choice of a convolution."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from decaybench.training.data import load
from decaybench.training.stacked import convolution
from decaybench.training.stacked.cuda_graph import RecordedStep
from decaybench.training.stacked.stack import StackedModels
from decaybench.training.trainer import Finished, Training
from helpers import CPU, tiny

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Recording:
    """A CUDA graph on the CPU: replayed, it writes to the memory it wrote to first, and moves no pointer in Python."""

    def __init__(self, training: Training) -> None:
        self.training, self.replays = training, 0

    def __call__(self, work: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        net = self.training.net
        assert isinstance(net, StackedModels)
        result, gradients = work(), net.gradients_by_name()

        def replay() -> None:
            self.replays += 1
            before = net.gradients_by_name()
            again = work()
            for ours, theirs in zip(
                (*result, *gradients.values()), (*again, *net.gradients_by_name().values()), strict=True
            ):
                ours.copy_(theirs)
            net.set_gradients(before)

        return replay, result


def records(training: Training) -> dict[str, Any]:
    found = {}
    while not training.finished:
        found |= {e.config.run_id: e.record for e in training.advance() if isinstance(e, Finished)}
    return found


@pytest.mark.parametrize("network", ["mlp,width=16", pytest.param("forum,width=4", marks=pytest.mark.slow)])
def test_a_recorded_step_gives_the_same_numbers(network: str) -> None:
    """With a last batch of another size, a penalty in the loss, clipping, a schedule, and optimizers with a memory."""
    study = tiny(
        network=network,
        activation="kaf,D=5",
        strategy=["decay-all", "loss-penalty", "decay-to-init", "proximal-l1", "two-optimizers"],
        optimizer=["sgd", "adamw"],
        schedule="cosine",
        clip_norm=0.5,
        batch_size=48,
        seeds=2,
        epochs=3,
    )
    data = load(study.runs()[0], CPU)
    torch.set_num_threads(1)
    wanted = records(Training(study.runs(), data))
    training = Training(study.runs(), data)
    assert isinstance(training.net, StackedModels)
    recording = Recording(training)
    training.recorded_step = RecordedStep(training._gradients, training.net, 48, recording)
    assert records(training) == wanted
    assert recording.replays == 3 * (len(data.train.y) // 48)
    assert len(data.train.y) % 48 > 1  # a smaller batch between them


def test_a_training_that_is_over_gives_its_memory_back() -> None:
    """At once, and not when Python's garbage collector comes by."""
    study = tiny(activation="prelu", strategy="decay-all", batch_size=64)
    training = Training(study.runs(), load(study.runs()[0], CPU))
    assert isinstance(training.net, StackedModels)
    training.recorded_step = RecordedStep(training._gradients, training.net, 64, lambda work: (lambda: None, work()))
    gc.disable()
    try:
        training.advance()
        assert training.recorded_step.replay is not None
        leaf = weakref.ref(next(iter(training.net._leaves.values())))
        del training
        assert leaf() is None
    finally:
        gc.enable()


def test_only_whole_batches_are_recorded() -> None:
    """A training that is resumed may begin with the last batch of an epoch."""
    study = tiny(activation="prelu", strategy="decay-all", batch_size=48)
    data = load(study.runs()[0], CPU)
    training = Training(study.runs(), data)
    assert isinstance(training.net, StackedModels)
    recording = Recording(training)
    training.recorded_step = RecordedStep(training._gradients, training.net, 48, recording)
    for size in (30, 48, 30, 48):
        training.recorded_step(data.train.x[None, :size], data.train.y[None, :size])
    assert recording.replays == 2


def test_what_cannot_be_recorded_is_done_as_it_is() -> None:
    study = tiny(activation="prelu", seeds=2)
    data = load(study.runs()[0], CPU)
    torch.set_num_threads(1)
    wanted = records(Training(study.runs(), data))
    training = Training(study.runs(), data)

    asked = []

    def refuse(work: Callable[[], Any]) -> Any:
        asked.append(work)
        raise RuntimeError("operation not permitted when stream is capturing")

    assert isinstance(training.net, StackedModels)
    training.recorded_step = RecordedStep(training._gradients, training.net, 64, refuse)
    assert records(training) == wanted
    assert len(asked) == 1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("stride", "padding", "kernel"), [((1, 1), (1, 1), (3, 3)), ((2, 1), (0, 2), (5, 2))])
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
