"""The CUDA path on a pretended GPU: recorded, without waiting, equal to the CPU; and mistakes are noticed."""

import contextlib
import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from decaybench.activations import compiled
from decaybench.activations.kaf import functional, triton
from decaybench.errors import DecaybenchError
from decaybench.execution.job import Failure, Job, run_job
from decaybench.registry import ACTIVATIONS, STRATEGIES
from decaybench.results.record import Record
from decaybench.training import checkpoint, cuda_graph
from decaybench.training.cuda_graph import WARMUP_CALLS, CudaGraphs
from decaybench.training.data import load
from decaybench.training.rates import Rates
from decaybench.training.stacked import convolution
from decaybench.training.stacked.cohorts import capacity
from decaybench.training.stacked.stack import StackedModels
from decaybench.training.trainer import Finished, Training
from helpers import CPU, tiny
from pretended_gpu import Graph, PretendedGpu, pretended_gpu

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
    ["prelu", "prelu,shared=true", "kaf,D=5", "swish", "xielu", "rational", "relu,gain=true"],
    ["sgd", "adam", "adamw", "rmsprop"],
)


def trained(runs: Any, gpu: PretendedGpu) -> dict[str, Record]:
    """Trains runs on a pretended GPU; every step and evaluation is recorded from its third time on, and waits for
    nothing."""
    training = Training(runs, load(runs[0], CUDA))
    assert training.recorded is not None
    found: dict[str, Record] = {}
    while not training.finished:
        before, replays = len(gpu.notes), gpu.count["replays"]
        launched = gpu.count["kernels"]
        events = training.advance()
        found |= {e.config.run_id: e.record for e in events if isinstance(e, Finished)}
        assert [r.reason for r in training.recorded] == ["", ""]
        if training.epoch >= WARMUP_CALLS and not events:
            assert gpu.count["replays"] == replays + 1
            assert gpu.count["kernels"] - launched <= LAUNCHES
            assert gpu.notes[before:] == []
    step, evaluation = training.recorded
    steps = len(training._batches[runs[0].seed])
    assert step.replays >= runs[0].epochs * steps - 2 * WARMUP_CALLS
    assert evaluation.replays == 2 * (runs[0].epochs - WARMUP_CALLS)
    return found


LAUNCHES = 4  # of a step, beside its graph: rates, order, offsets, flips


def assert_equal(found: dict[str, Record], wanted: dict[str, Record], tolerance: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    for run_id, record in wanted.items():
        for key in ("train_loss", "validation_loss", "test_loss"):
            assert found[run_id].history[key] == pytest.approx(record.history[key], rel=tolerance, abs=1e-5)


@pytest.mark.parametrize(
    ("activation", "optimizer"), [pytest.param(*p, marks=() if p in QUICK else pytest.mark.slow) for p in EVERY]
)
def test_all_of_a_step_is_recorded_waits_for_nothing_and_gives_what_a_cpu_gives(
    activation: str, optimizer: str
) -> None:
    """All strategies in one cohort, gradients clipped, rates that change, and a last batch of another size."""
    runs = study(activation, optimizer, epochs=3)
    wanted = records(Training(runs, load(runs[0], CPU)))
    with pretended_gpu() as gpu, kernels():
        assert_equal(trained(runs, gpu), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["prelu", "kaf"])
def test_a_step_of_the_forum_network_starts_no_more_kernels_and_moves_no_more_bytes_than_it_did(
    activation: str,
) -> None:
    """What can be counted without a GPU; convolutions by unfolding, whatever this machine finds faster."""
    strategies = ["no-decay", "decay-all", "exclude-alpha", "loss-penalty", "two-optimizers"]
    runs = tiny(
        dataset="synthetic,samples=400,size=28",
        network="forum",
        activation=activation,
        optimizer="adamw",
        strategy=strategies,
        seeds=2,
        batch_size=128,
    ).runs()
    with (
        pretended_gpu() as gpu,
        kernels(),
        mock.patch.object(convolution, "fastest", lambda *_: convolution.unfolded),
    ):
        training = Training(runs, load(runs[0], CUDA))
        while not gpu.count["captures"]:
            training.advance()
    assert gpu.count["kernels in a graph"] <= 115
    assert gpu.count["bytes in a graph"] / len(runs) <= 70e6


SMALL = {"dataset": "synthetic,samples=40,size=16", "batch_size": 12, "epochs": 3, "seeds": 1, "validation": 0.2}
NETWORKS = [  # beside mlp; the slow ones are large
    ("forum,width=4", {}),
    ("forum,width=4", {"augment": "crop-flip", "seeds": 2}),
    ("kafnet", {}),
    ("vgg,depth=3,width=4", {}),
    ("vgg,depth=3,width=4,norm=true", {}),
    ("mlp,width=8,dropout=0.2", {}),
    ("gpt,width=16,depth=1", {"dataset": "python-source,context=16", "train_limit": 40, "batch_size": 16}),
    ("resnet18", {"batch_size": 24, "strategy": ["decay-to-init"]}),
]


@pytest.mark.parametrize("activation", ["prelu", "kaf,D=5"])
@pytest.mark.parametrize(("network", "more"), [pytest.param(*n, marks=pytest.mark.slow) for n in NETWORKS])
def test_every_network_is_recorded(network: str, more: dict[str, Any], activation: str) -> None:
    """Together, or each of the runs alone."""
    strategies = ["decay-all", "exclude-alpha", "loss-penalty", "two-optimizers", "decay-to-init", "proximal-l1"]
    fields = {**SMALL, "strategy": strategies, **more}
    runs = study(activation, "adamw", network=network, **fields)
    data = load(runs[0], CPU)
    cohorts = [runs] if capacity(runs[0], data, CUDA) else [[run] for run in runs]
    for cohort in cohorts:
        wanted = records(Training(cohort, data))
        with pretended_gpu() as gpu, kernels():
            assert_equal(trained(cohort, gpu), wanted, 1e-3)


def steps() -> Any:
    """Runs of more steps an epoch than a warm-up takes."""
    return study("prelu", "sgd", strategy=["decay-all", "exclude-alpha"], epochs=4, batch_size=24)


def noticed(runs: Any, wrong: Any = None, calls: int = WARMUP_CALLS + 1) -> str:
    """Trains some steps with a mistake on a pretended GPU, of which the last are recorded.

    Returns:
        What would cost time there, or be wrong; empty where nothing would.
    """
    wanted = _losses(Training(runs, load(runs[0], CPU)), calls)
    with pretended_gpu() as gpu, kernels(), wrong or contextlib.nullcontext():
        training = Training(runs, load(runs[0], CUDA))
        try:
            for _ in range(calls - 1):
                training.advance()
            before = len(gpu.notes)
            training.advance()
            if training.remark or not gpu.count["replays"]:
                return f"not recorded: {training.remark}"
            if gpu.notes[before:]:
                return f"{gpu.notes[before].what}: {gpu.notes[before].detail}"
            with gpu.unseen():
                got = training._sums["loss"].tolist()
        except Exception as error:
            return f"{type(error).__name__}: {error.__cause__ or error}"
    return "" if got == pytest.approx(wanted, rel=1e-4) else f"other numbers: {got} instead of {wanted}"


def _losses(training: Training, calls: int) -> list[float]:
    for _ in range(calls):
        training.advance()
    return list(training._sums["loss"].tolist())


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
    COUNT["steps"] = 0
    assert noticed(steps(), mistake(wrong))


def test_without_a_mistake_nothing_is_noticed() -> None:
    assert noticed(steps(), mistake(lambda step: step())) == ""


def test_mistakes_outside_the_recording_are_noticed() -> None:
    real = Training._step

    def looked_at(self: Training) -> None:
        real(self)
        self._sums["loss"].max().item()

    assert noticed(steps(), mock.patch.object(Training, "_step", looked_at)).startswith("wait")

    def drawn_late(self: Training) -> None:
        self._drawn = self._drawn.map(lambda t: t.cpu().to(t.device))
        real(self)

    assert noticed(steps(), mock.patch.object(Training, "_step", drawn_late)).startswith("download")


def test_a_rate_that_a_recording_does_not_read_is_noticed() -> None:
    """A number in Python is the same in every replay, whatever the schedule says."""

    def numbers(self: Rates, step: int) -> None:
        for group, lr in zip(self._groups(), self.table[step], strict=True):
            group["lr"] = lr

    runs = study(
        "prelu",
        "sgd",
        strategy=["decay-all"],
        epochs=2,
        batch_size=24,
        lr=1.0,
        schedule="step,step_size=0.4,gamma=0.01",
    )
    assert noticed(runs, mock.patch.object(Rates, "set", numbers), calls=5).startswith("other numbers")


def test_an_optimizer_that_cannot_be_recorded_is_noticed() -> None:
    def plain(params: Any, lr: float, weight_decay: float, **_: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay)

    runs = study("prelu", "adamw", strategy=["decay-all"], epochs=4)
    assert noticed(runs, mock.patch("decaybench.optimizers.adamw", plain)).startswith("not recorded")


def test_sums_that_move_are_noticed() -> None:
    """A replay adds to the memory that was recorded."""

    def anew(self: Training) -> None:
        self._sums = {name: total.clone() for name, total in self._sums.items()}
        real(self)

    real = Training._step
    assert noticed(steps(), mock.patch.object(Training, "_step", anew), calls=4).startswith("other numbers")


def test_a_stream_that_does_not_wait_is_noticed() -> None:
    def alone(self: CudaGraphs, work: Callable[[], Any]) -> Any:
        with torch.cuda.stream(cuda_graph._side_stream(CUDA)):
            return work()

    with pretended_gpu() as gpu, kernels(), mock.patch.object(CudaGraphs, "do", alone):
        runs = steps()
        training = Training(runs, load(runs[0], CUDA))
        training.advance()
        assert "race" in {note.what for note in gpu.notes}


def test_a_result_that_is_read_after_the_next_graph_is_noticed() -> None:
    """Graphs share their memory, as long as what one gives is used before the next one begins."""
    real = Training._scores

    def late(self: Training) -> Any:
        assert self.recorded is not None
        tested = self.recorded[1]("test")
        self.recorded[1]("validation")
        for name, total in tested.sums.items():
            assert not torch.isnan(total.float()).any(), name
        return real(self)

    runs = study("prelu", "sgd", strategy=["decay-all"], epochs=4)
    patched = mock.patch.object(Training, "_scores", late)
    with pretended_gpu(), kernels(), patched, pytest.raises(DecaybenchError, match="AssertionError"):
        records(Training(runs, load(runs[0], CUDA)))


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_products_of_a_recorded_step_and_evaluation_have_the_precision_of_the_run(precision: str) -> None:
    seen: list[str] = []
    real = StackedModels.__call__

    def looked_at(self: StackedModels, x: Tensor) -> Tensor:
        if x.is_cuda:
            seen.append(torch.backends.cuda.matmul.fp32_precision)
        return real(self, x)

    runs = study("prelu", "sgd", strategy=["decay-all"], epochs=3, precision=precision)
    with pretended_gpu(), kernels(), mock.patch.object(StackedModels, "__call__", looked_at):
        records(Training(runs, load(runs[0], CUDA)))
    assert set(seen) == {"tf32" if precision == "tf32" else "ieee"}


def test_a_step_that_cannot_be_recorded_says_why() -> None:
    with pretended_gpu(), kernels(), mistake(_synchronized):
        runs = study("prelu", "sgd", strategy=["decay-all"], epochs=1, batch_size=24)
        training = Training(runs, load(runs[0], CUDA))
        records(training)
        assert "operation not permitted when stream is capturing" in training.remark


def test_a_capture_that_fails_changes_nothing() -> None:
    runs = study("prelu", "adamw", epochs=3)
    wanted = records(Training(runs, load(runs[0], CPU)))
    real = Training._evaluate, Training._work

    def late(self: Training, *given: Any) -> None:
        real[1](self, *given)
        if PretendedGpu.now is not None and PretendedGpu.now.capturing is not None:
            raise RuntimeError("the last kernel cannot be captured")

    with pretended_gpu(), kernels(), mock.patch.object(Training, "_work", late):
        training = Training(runs, load(runs[0], CUDA))
        found = records(training)
        assert "the last kernel" in training.remark
    assert_equal(found, wanted)


def test_own_code_and_optimizers_of_timm_are_not_recorded_and_that_is_said(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text("from torch.nn import PReLU\n\n\ndef make(channels):\n    return PReLU(channels)\n")
    cases: list[tuple[str, dict[str, Any]]] = [("mine.py:make", {"activation": f"{own}:make"})]
    cases.append(("timm", {"optimizer": "timm:lamb"}))
    for what, fields in cases:
        fields = {"activation": "prelu", "optimizer": "sgd", "strategy": ["decay-all"], "seeds": 1, **fields}
        runs = study(**fields)
        with pretended_gpu():
            training = Training(runs, load(runs[0], CUDA))
            assert training.recorded is None
            assert what in training.remark
            assert "each kernel is started alone" in training.remark


@pytest.mark.parametrize(
    "said", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"]
)
@pytest.mark.parametrize("place", ["record", "replay"])
def test_too_little_memory_in_a_graph_is_what_it_is(place: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes as an error of CUDA, not as torch's own: then fewer runs at once may fit."""

    def full(*_: Any) -> Any:
        raise torch.AcceleratorError(said)

    with pretended_gpu(), kernels():
        monkeypatch.setattr(*((CudaGraphs, "record", full) if place == "record" else (Graph, "replay", full)))
        runs = steps()
        *_, last = run_job(Job(tuple(runs), stacked=True), load(runs[0], CUDA))
        assert last.failure is Failure.memory


def test_a_training_that_is_over_gives_its_memory_back() -> None:
    """At once, and not when Python's garbage collector comes by."""
    with pretended_gpu(), kernels():
        runs = steps()
        training = Training(runs, load(runs[0], CUDA))
        assert isinstance(training.net, StackedModels)
        gc.disable()
        try:
            for _ in range(WARMUP_CALLS + 1):
                training.advance()
            leaf = weakref.ref(next(iter(training.net._leaves.values())))
            del training
            assert leaf() is None
        finally:
            gc.enable()


@pytest.mark.parametrize(("here", "there"), [(CPU, CUDA), (CUDA, CPU), (CUDA, CUDA)])
@pytest.mark.parametrize("optimizer", ["adamw", *(pytest.param(o, marks=pytest.mark.slow) for o in ("sgd", "rmsprop"))])
def test_a_checkpoint_goes_on_on_another_device(optimizer: str, here: torch.device, there: torch.device) -> None:
    runs = study("prelu", optimizer, strategy=["exclude-alpha", "two-optimizers"], epochs=4, batch_size=24)
    wanted = records(Training(runs, load(runs[0], CPU)))
    with pretended_gpu(), kernels():
        training = Training(runs, load(runs[0], here))
        for _ in range(15):
            training.advance()
        saved = checkpoint.save(training)
        resumed = Training(runs, load(runs[0], there))
        checkpoint.restore(resumed, saved)
        assert_equal(records(resumed), wanted)


def test_without_triton_the_user_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """No C compiler, say: nothing fails, and each step takes many times as long."""

    def fails(*_: Any) -> Any:
        raise RuntimeError("Failed to find C compiler.\n Please specify via CC environment variable.")

    monkeypatch.setattr(triton, "forward", fails)
    runs = study("kaf,D=5", "sgd", strategy=["decay-all"], seeds=1)
    wanted = records(Training(runs, load(runs[0], CPU)))
    triton.hindrance.cache_clear()
    with pretended_gpu() as gpu:
        messages = list(run_job(Job(tuple(runs), stacked=True), load(runs[0], CUDA)))
    triton.hindrance.cache_clear()
    (remark,) = [m.remark for m in messages if m.remark]
    assert "Failed to find C compiler. Please specify" in remark
    (record,) = [record for m in messages for record in m.records]
    assert record.provenance["backends"] == {"KAF": "torch"}
    assert record.provenance["step"] == remark
    assert gpu.count["captures"] == 0  # since it is known to fail
    assert_equal({record.run_id: record}, wanted)


MPS = torch.device("mps:0")


@pytest.mark.parametrize("network", ["mlp,width=8", pytest.param("forum,width=4", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "activation", [pytest.param(a, marks=() if a in ("prelu", "kaf") else pytest.mark.slow) for a in ACTIVATIONS]
)
def test_a_gpu_without_float64_trains_and_describes_every_activation(activation: str, network: str) -> None:
    runs = study(activation, "adamw", network=network, strategy=["exclude-alpha"], seeds=1)
    wanted = records(Training(runs, load(runs[0], CPU)))
    with pretended_gpu(kind="mps"):
        training = Training(runs, load(runs[0], MPS))
        assert training.recorded is None
        found = records(training)
    assert_equal(found, wanted, 1e-4)
    for run_id, record in wanted.items():
        for ours, theirs in zip(found[run_id].layers, record.layers, strict=True):
            assert ours.distance_from_start == pytest.approx(theirs.distance_from_start, rel=1e-3, abs=1e-5)
