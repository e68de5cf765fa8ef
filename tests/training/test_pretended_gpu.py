"""The CUDA path on a pretended GPU: recorded, without waiting, equal to the CPU; and mistakes are noticed."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from decaybench.activations import compiled
from decaybench.activations.kaf import functional, triton
from decaybench.registry import STRATEGIES
from decaybench.results.record import Record
from decaybench.training.data import load
from decaybench.training.stacked.cuda_graph import RecordedStep
from decaybench.training.trainer import Finished, Training
from helpers import CPU, tiny
from pretended_gpu import PretendedGpu, pretended_gpu

CUDA = torch.device("cuda:0")


@contextlib.contextmanager
def kernels() -> Iterator[None]:
    """Lets the compiled C stand in for the KAF's Triton kernels, each as one launch."""

    def put(*tensors: Tensor) -> None:
        assert PretendedGpu.now is not None
        for tensor in tensors:
            PretendedGpu.now.put(tensor)

    def launch(work: Callable[..., Any], *tensors: Tensor) -> None:
        assert PretendedGpu.now is not None
        PretendedGpu.now.launch(work, *tensors)

    def forward(s: Tensor, shape: Any, alpha: Tensor, name: str, precision: float, boundary: float, p: Any) -> Tensor:
        out, alpha = torch.empty_like(s), alpha.contiguous()
        put(out)

        def work(s: Tensor, alpha: Tensor, out: Tensor) -> None:
            compiled.call(compiled.library(s.dtype).kaf_forward, s, alpha, out, shape=shape, grid=functional._grid(p))

        launch(work, s, alpha, out)
        return out

    def backward(
        grad: Tensor, s: Tensor, shape: Any, alpha: Tensor, name: str, precision: float, boundary: float, p: Any
    ) -> tuple[Tensor, Tensor]:
        alpha = alpha.contiguous()
        down, to = torch.empty_like(s), torch.empty_like(alpha)
        put(down, to)

        def work(grad: Tensor, s: Tensor, alpha: Tensor, down: Tensor, to: Tensor) -> None:
            library = compiled.library(s.dtype)
            compiled.call(library.kaf_backward, grad, s, alpha, down, to, shape=shape, grid=functional._grid(p))

        launch(work, grad, s, alpha, down, to)
        return down, to

    with mock.patch.multiple(triton, forward=forward, backward=backward, works=lambda device: True):
        yield


def records(training: Training) -> dict[str, Record]:
    found: dict[str, Record] = {}
    while not training.finished:
        found |= {e.config.run_id: e.record for e in training.advance() if isinstance(e, Finished)}
    return found


def study(activation: str, optimizer: str, **more: Any) -> Any:
    fields = {
        "strategy": list(STRATEGIES),
        "network": "mlp,width=8",
        "schedule": "cosine",
        "clip_norm": 0.5,
        "batch_size": 48,
        "seeds": 2,
    }
    return tiny(activation=activation, optimizer=optimizer, **{**fields, **more}).runs()


QUICK = {("prelu", "sgd"), ("kaf,D=5", "adamw")}
EVERY = itertools.product(
    ["prelu", "prelu,shared=true", "kaf,D=5", "swish", "xielu"], ["sgd", "adam", "adamw", "rmsprop"]
)


@pytest.mark.parametrize(
    ("activation", "optimizer"), [pytest.param(*p, marks=() if p in QUICK else pytest.mark.slow) for p in EVERY]
)
def test_a_step_is_recorded_waits_for_nothing_and_gives_what_a_cpu_gives(activation: str, optimizer: str) -> None:
    runs = study(activation, optimizer)
    wanted = records(Training(runs, load(runs[0], CPU)))
    with pretended_gpu() as gpu, kernels():
        training = Training(runs, load(runs[0], CUDA))
        training.advance()
        assert training.recorded_step is not None
        assert training.recorded_step.replay is not None, training.recorded_step.reason
        before = len(gpu.notes)
        training.advance()
        assert gpu.notes[before:] == []
        found = records(training)
    assert found.keys() == wanted.keys()
    for run_id, record in wanted.items():
        assert found[run_id].history["train_loss"] == pytest.approx(record.history["train_loss"], rel=1e-5)
        assert found[run_id].history["test_loss"] == pytest.approx(record.history["test_loss"], rel=1e-5)


def test_convolutions_too() -> None:
    runs = study("prelu", "sgd", network="forum,width=4", seeds=1, strategy=["decay-all", "loss-penalty"], epochs=1)
    wanted = records(Training(runs, load(runs[0], CPU)))
    with pretended_gpu(), kernels():
        training = Training(runs, load(runs[0], CUDA))
        found = records(training)
        assert training.recorded_step is not None
        assert training.recorded_step.replay is not None, training.recorded_step.reason
    for run_id, record in wanted.items():
        assert found[run_id].history["train_loss"] == pytest.approx(record.history["train_loss"], rel=1e-4)


def noticed(runs: Any, wrong: Any = None) -> str:
    """Trains two steps with a mistake on a pretended GPU.

    Returns:
        What would cost time there, or be wrong; empty where nothing would.
    """
    wanted = _losses(Training(runs, load(runs[0], CPU)))
    with pretended_gpu() as gpu, kernels(), wrong or contextlib.nullcontext():
        training = Training(runs, load(runs[0], CUDA))
        try:
            training.advance()
            if training.recorded_step is None or training.recorded_step.replay is None:
                return f"not recorded: {training.recorded_step.reason if training.recorded_step else ''}"
            before = len(gpu.notes)
            training.advance()
            if gpu.notes[before:]:
                return f"{gpu.notes[before].what}: {gpu.notes[before].detail}"
            with gpu.unseen():
                got = training._loss.tolist()
        except Exception as error:
            return f"{type(error).__name__}: {error.__cause__ or error}"
    return "" if got == pytest.approx(wanted, rel=1e-4) else f"other numbers: {got} instead of {wanted}"


def _losses(training: Training) -> list[float]:
    for _ in range(2):
        training.advance()
    return list(training._loss.tolist())


def mistake(change: Callable[[Any], Any]) -> Any:
    """Puts a mistake around the gradients of a step."""
    real = Training._gradients

    def wrong(self: Training, x: Tensor, y: Tensor) -> Any:
        return change(lambda: real(self, x, y))

    return mock.patch.object(Training, "_gradients", wrong)


def _to_python(step: Callable[[], Any]) -> Any:
    out, loss = step()
    assert float(loss.sum()) == float(loss.sum())
    return out, loss


def _on_the_cpu(step: Callable[[], Any]) -> Any:
    out, loss = step()
    return out, loss + torch.zeros(len(loss))


def _by_a_mask(step: Callable[[], Any]) -> Any:
    out, loss = step()
    return out, loss.masked_fill(torch.zeros_like(loss, dtype=torch.bool), 0.0) + loss[loss > 1e9].sum()


def _counted_in_python(step: Callable[[], Any]) -> Any:
    out, loss = step()
    COUNT["steps"] += 1
    return out, loss * COUNT["steps"]


COUNT = {"steps": 0}


def _uploaded(step: Callable[[], Any]) -> Any:
    out, loss = step()
    return out, loss * torch.tensor(1.0, device=loss.device)


def _synchronized(step: Callable[[], Any]) -> Any:
    torch.cuda.synchronize()
    return step()


def _nonzero(step: Callable[[], Any]) -> Any:
    out, loss = step()
    return out, loss + 0 * loss.nonzero().sum()


def _downloaded(step: Callable[[], Any]) -> Any:
    out, loss = step()
    loss.cpu()
    return out, loss


def _listed(step: Callable[[], Any]) -> Any:
    out, loss = step()
    loss.tolist()
    return out, loss


MISTAKES = [
    _to_python,
    _on_the_cpu,
    _by_a_mask,
    _counted_in_python,
    _uploaded,
    _synchronized,
    _nonzero,
    _downloaded,
    _listed,
]


@pytest.mark.parametrize("wrong", MISTAKES, ids=lambda f: f.__name__.strip("_"))
def test_a_mistake_in_the_recorded_part_is_noticed(wrong: Callable[..., Any]) -> None:
    runs = study("prelu", "sgd", strategy=["decay-all", "exclude-alpha"], epochs=4)
    COUNT["steps"] = 0
    assert noticed(runs, mistake(wrong))


def test_without_a_mistake_nothing_is_noticed() -> None:
    runs = study("prelu", "sgd", strategy=["decay-all", "exclude-alpha"], epochs=4)
    assert noticed(runs, mistake(lambda step: step())) == ""


def test_mistakes_outside_the_recording_are_noticed() -> None:
    runs = study("prelu", "sgd", strategy=["decay-all", "exclude-alpha"], epochs=4)
    real = Training._batch

    def from_the_cpu(self: Training) -> tuple[Tensor, Tensor]:
        x, y = real(self)
        return x.cpu().to(x.device), y

    assert noticed(runs, mock.patch.object(Training, "_batch", from_the_cpu)).startswith("download")
    summed = Training._step

    def looked_at(self: Training, x: Tensor, y: Tensor) -> None:
        summed(self, x, y)
        self._loss.max().item()

    assert noticed(runs, mock.patch.object(Training, "_step", looked_at)).startswith("wait")


def test_a_step_that_cannot_be_recorded_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = study("prelu", "sgd", strategy=["decay-all"], epochs=1)
    with pretended_gpu(), kernels(), mistake(_synchronized):
        training = Training(runs, load(runs[0], CUDA))
        training.advance()
        assert training.recorded_step is not None
        assert training.recorded_step.replay is None
        assert "operation not permitted when stream is capturing" in training.recorded_step.reason


def test_too_little_memory_within_a_capture_is_what_it_is() -> None:
    def record(work: Callable[[], Any]) -> Any:
        raise RuntimeError("CUDA error: out of memory")

    runs = study("prelu", "sgd", strategy=["decay-all"], epochs=1)
    with pretended_gpu(), kernels():
        training = Training(runs, load(runs[0], CUDA))
        assert isinstance(training.recorded_step, RecordedStep)
        training.recorded_step._record = record
        with pytest.raises(torch.OutOfMemoryError):
            training.advance()
