"""A trial gives somebody else's loop what the strategy would do by hand, and says what went wrong in one sentence."""

import copy
import json
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.optim
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import decaybench
from decaybench.errors import UsageError
from decaybench.registry.spec import Spec
from decaybench.results.record import loads
from decaybench.study.config import ScriptConfig
from decaybench.trials.optimizers import Several
from decaybench.trials.protocol import ENVIRONMENT, Task

DECAY, LR, STEPS = 0.3, 0.05, 12
X = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(2))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.PReLU(5), nn.Linear(5, 3))


def driven(monkeypatch: pytest.MonkeyPatch, folder: Path, strategy: str = "decay-all", **fields: Any) -> Task:
    """Makes this process one that a study has started."""
    config = ScriptConfig(
        script="train.py", source="0" * 12, strategy=Spec.make("strategy", strategy, {}), weight_decay=DECAY, seed=3
    )
    metrics = fields.get("metrics", ())
    task = Task(config.model_dump(), metrics, str(folder), os.getpid(), platform.node())
    monkeypatch.setenv(ENVIRONMENT, str(task.write()))
    return task


def trained(strategy: str, make: Callable[..., Any], **options: Any) -> nn.Module:
    """Trains by a trial."""
    model = network()
    trial = decaybench.trial(model, strategy=strategy, weight_decay=DECAY)
    optimizer = trial.optimizer(make, **options)
    for _ in range(STEPS):
        loss = F.cross_entropy(model(X), Y) + trial.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.after_step()
    return model


def by_hand(strategy: str, make: Callable[..., Any], **options: Any) -> nn.Module:
    """Trains as the thread's answers say it, without decaybench."""
    model = network()
    slopes, start = [model[1].weight], model[1].weight.detach().clone()
    weights = [p for p in model.parameters() if p is not slopes[0]]
    if strategy == "exclude-alpha":
        groups = [{"params": weights, "weight_decay": DECAY}, {"params": slopes, "weight_decay": 0.0}]
        optimizers = [make(groups, **options)]
    elif strategy == "two-optimizers":
        optimizers = [make(weights, weight_decay=DECAY, **options), make(slopes, weight_decay=0.0, **options)]
    else:
        decay = DECAY if strategy in ("decay-all", "decay-to-init") else 0.0
        optimizers = [make(model.parameters(), weight_decay=decay, **options)]
    for _ in range(STEPS):
        loss = F.cross_entropy(model(X), Y)
        if strategy == "loss-penalty":
            loss = loss + 0.5 * DECAY * sum(w.square().sum() for w in weights)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        if strategy == "decay-to-init":
            slopes[0].data.sub_(start)
        for optimizer in optimizers:
            optimizer.step()
        if strategy == "decay-to-init":
            slopes[0].data.add_(start)
        if strategy == "proximal-l1":
            for p in model.parameters():
                p.data = p.data.sign() * (p.data.abs() - options["lr"] * DECAY).clamp(min=0)
    return model


HAND = ["no-decay", "decay-all", "exclude-alpha", "loss-penalty", "two-optimizers", "decay-to-init", "proximal-l1"]


@pytest.mark.parametrize("strategy", HAND)
@pytest.mark.parametrize(
    ("make", "options"),
    [(torch.optim.SGD, {"lr": LR, "momentum": 0.9}), (torch.optim.AdamW, {"lr": LR}), (timm.optim.Lamb, {"lr": LR})],
    ids=["SGD", "AdamW", "timm's Lamb"],
)
def test_a_trial_does_what_the_strategy_does_by_hand(strategy: str, make: Any, options: dict[str, Any]) -> None:
    ours_all, theirs_all = trained(strategy, make, **options), by_hand(strategy, make, **options)
    for ours, theirs in zip(ours_all.parameters(), theirs_all.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_the_strategies_differ() -> None:
    ends = {s: trained(s, torch.optim.SGD, lr=LR)[1].weight.detach() for s in HAND}
    assert not torch.allclose(ends["decay-all"], ends["exclude-alpha"])
    assert not torch.allclose(ends["decay-to-init"], ends["decay-all"])
    assert torch.allclose(ends["two-optimizers"], ends["exclude-alpha"])


def test_without_a_study_the_script_runs_as_before() -> None:
    model, other = network(), network()
    trial = decaybench.trial(model)
    optimizer = trial.optimizer(torch.optim.AdamW, lr=LR)
    plain = torch.optim.AdamW(other.parameters(), lr=LR)
    for net, opt in ((model, optimizer), (other, plain)):
        for _ in range(STEPS):
            opt.zero_grad()
            F.cross_entropy(net(X), Y).backward()
            opt.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert trial.weight_decay == 0.01  # AdamW's own
    assert trial.penalty() == 0.0
    assert trial.weight_decay == 0.01
    trial.log(0, validation_loss=1.0)
    assert trial.finish(test_loss=0.5) is None
    assert decaybench.run_seed() == 0


def test_muon_for_matrices_beside_adamw() -> None:
    model = network()
    trial = decaybench.trial(model, strategy="exclude-alpha", weight_decay=DECAY)
    optimizer = trial.optimizers(
        lambda name, p: "muon" if p.ndim == 2 else "adamw",
        muon=partial(torch.optim.Muon, lr=0.02),
        adamw=partial(torch.optim.AdamW, lr=1e-3),
    )
    assert isinstance(optimizer, Several)
    held = {
        (type(o).__name__, g["weight_decay"]): sorted(tuple(p.shape) for p in g["params"])
        for o in optimizer.optimizers
        for g in o.param_groups
    }
    assert held == {("Muon", DECAY): [(3, 5), (5, 6)], ("AdamW", DECAY): [(3,), (5,)], ("AdamW", 0.0): [(5,)]}
    before = copy.deepcopy(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    schedule.step()
    assert {g["lr"] for o in optimizer.optimizers for g in o.param_groups} == {0.01, 5e-4}
    assert all(not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_several_optimizers_are_saved_and_restored_together() -> None:
    def one() -> tuple[nn.Module, Any]:
        model = network()
        return model, decaybench.trial(model, strategy="two-optimizers", weight_decay=DECAY).optimizer(
            torch.optim.Adam, lr=LR
        )

    def step(model: nn.Module, optimizer: Any, times: int) -> None:
        for _ in range(times):
            optimizer.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            optimizer.step()

    (model, optimizer), (other, resumed) = one(), one()
    step(model, optimizer, 3)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer, 3)
    step(other, resumed, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_closure_is_called_once_for_several_optimizers() -> None:
    model = network()
    optimizer = decaybench.trial(model, strategy="two-optimizers", weight_decay=0.1).optimizer(torch.optim.SGD, lr=LR)
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    assert len(calls) == 1


def test_a_driven_trial_leaves_a_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    task = driven(monkeypatch, tmp_path, metrics=("score:max", "validation_loss"))
    assert decaybench.run_seed() == 3
    model = network()
    trial = decaybench.trial(model, strategy="no-decay", weight_decay=9.0)  # the study's count
    optimizer = trial.optimizer(torch.optim.SGD, lr=LR, weight_decay=7.0)
    assert {g["weight_decay"] for g in optimizer.param_groups} == {DECAY}
    for epoch in range(3):
        trial.note_batch(X, Y)
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        trial.log(epoch, validation_loss=torch.tensor(1.0 - 0.1 * epoch), score=epoch)
    correct = np.array([True, False, True, True])
    trial.finish(test_correct=correct, test_losses=[0.1, 2.0, 0.3, 0.2], test_mae=torch.tensor([1.0, 2.0]))
    lines = [json.loads(line) for line in task.files.log.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    record = loads(task.files.outcome.read_bytes(), ScriptConfig.model_validate(task.config).run_id)
    assert record.history["validation_loss"] == pytest.approx([1.0, 0.9, 0.8])
    assert record.final("test_accuracy") == 0.75
    assert record.final("test_mae") == 1.5
    assert dict(record.metrics) == {
        "validation_loss": "lower",
        "score": "higher",
        "test_accuracy": "higher",
        "test_loss": "lower",
        "test_mae": "lower",
    }
    np.testing.assert_array_equal(record.outcomes["test_accuracy"], correct)
    np.testing.assert_allclose(record.outcomes["test_loss"], [0.1, 2.0, 0.3, 0.2], rtol=1e-6)
    assert set(record.fingerprints) == {"initial", "batches", "final"}
    (layer,) = record.layers
    assert layer.type == "PReLU"
    assert len(layer.quantiles or ()) == 4  # the start, and each log
    assert layer.distance_from_start is not None
    assert layer.distance_from_start > 0


def start(trial: decaybench.Trial, **options: Any) -> Any:
    """Makes the optimizer and a step."""
    optimizer = trial.optimizer(torch.optim.SGD, lr=LR, **options)
    F.cross_entropy(trial._model(X), Y).backward()
    optimizer.step()
    return optimizer


def change_groups(trial: decaybench.Trial) -> None:
    start(trial).param_groups[0]["weight_decay"] = 0.5
    trial.finish(loss=1.0)


def new_group(trial: decaybench.Trial) -> None:
    start(trial).add_param_group({"params": [nn.Parameter(torch.ones(2))], "weight_decay": 0.7})
    trial.finish(loss=1.0)


def new_layer(trial: decaybench.Trial) -> None:
    start(trial)
    trial._model.append(nn.Linear(3, 3))  # type: ignore[operator]
    trial.finish(loss=1.0)


def twice(trial: decaybench.Trial) -> None:
    start(trial)
    trial.finish(loss=1.0)
    trial.finish(loss=1.0)


def finish(**metrics: Any) -> Callable[[decaybench.Trial], None]:
    def done(trial: decaybench.Trial) -> None:
        start(trial)
        trial.finish(**metrics)

    return done


def log(*entries: tuple[float, dict[str, Any]]) -> Callable[[decaybench.Trial], None]:
    def done(trial: decaybench.Trial) -> None:
        start(trial)
        for epoch, metrics in entries:
            trial.log(epoch, **metrics)

    return done


@pytest.mark.parametrize(
    ("do", "said"),
    [
        (lambda t: t.finish(loss=1.0), "no optimizer was made with trial.optimizer"),
        (lambda t: t.after_step(), "no optimizer was made"),
        (lambda t: (start(t), start(t)), "was called before"),
        (lambda t: t.optimizer(lambda g: torch.optim.SGD([g[0]["params"][0]], lr=1.0)), "holds 1 of the 5 parameters"),
        (lambda t: t.optimizer(torch.optim.LBFGS), "LBFGS has no weight_decay"),
        (
            lambda t: t.optimizer(
                lambda g: torch.optim.SGD([p for x in g for p in x["params"]], lr=1.0, weight_decay=0.7)
            ),
            "SGD decays by 0.7 what the strategy decays by 0.3",
        ),
        (finish(loss=[1.0, 2.0]), "are test_losses and test_correct, not loss"),
        (finish(test_correct=[True], test_accuracy=[True]), "test_accuracy is no number"),
        (lambda t: t.optimizer(lambda g: 3), "int is no torch.optim.Optimizer"),
        (lambda t: t.optimizers(lambda n, p: "x", a=torch.optim.SGD), "0.weight belongs to 'x', and there are a"),
        (change_groups, "was changed from 0.3 to 0.5"),
        (new_layer, "came after trial.optimizer, or was frozen then"),
        (twice, "was called twice"),
        (finish(), "no metric was logged or given"),
        (finish(loss="low"), "loss is no number"),
        (finish(score=float("nan")), "score is nan, which is no result"),
        (finish(seeds=3.0), "no metric can be called seeds"),
        (finish(test_accuracy=93.2), "outside 0 … 1; percentages are written as fractions"),
        (finish(test_correct=[0, 1, 2]), "holds other values than true and false"),
        (finish(test_correct=[True, True], test_accuracy=0.5), "the mean of its examples is 1"),
        (finish(test_losses=[[1.0]]), "must be one number an example"),
        (finish(**{"bad name": 1.0}), "write a name such as validation_loss"),
        (log((1, {"loss": 1.0}), (1, {"loss": 1.0})), "epochs must grow"),
        (finish(score=torch.ones(2, 2)), "must be one number an example"),
        (finish(score=[[1.0], [1.0, 2.0]]), "the values of score are no array"),
        (
            lambda t: (t.optimizer(torch.optim.SGD, lr=1.0), t.finish(loss=1.0)),
            "has made no step, so nothing was trained",
        ),
        (lambda t: t.log(float("nan"), loss=1.0), "epoch is nan, which is no result"),
        (lambda t: t.note_batch([1, 2]), "note_batch takes tensors, not list"),
        (new_group, "A param group was added after trial.optimizer made them"),
        (lambda t: decaybench.trial(network()), "decaybench.trial was called twice"),
        (lambda t: t.check_seed(42, "TrainingArguments"), "TrainingArguments(seed=42): the study asks for seed 3"),
    ],
)
def test_what_a_script_does_wrong_is_one_sentence_and_no_result(
    do: Callable[[decaybench.Trial], Any], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task = driven(monkeypatch, tmp_path)
    trial = decaybench.trial(network())
    with pytest.raises(UsageError) as raised:
        do(trial)
    assert said in str(raised.value)
    assert task.files.error.read_text() == str(raised.value)
    assert not task.files.outcome.exists()


def test_another_seed_and_a_missing_metric_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    task = driven(monkeypatch, tmp_path, metrics=("score:max",))
    with pytest.raises(UsageError, match=r"the study asks for seed 3; give decaybench.run_seed\(\)"):
        decaybench.trial(network(), seed=4)
    task.files.begun.unlink()
    trial = decaybench.trial(network(), seed=3)
    start(trial)
    with pytest.raises(UsageError, match="the study compares score, which was neither logged nor given"):
        trial.finish(loss=1.0)


def test_an_unknown_role_needs_an_example() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.ones(5))

        def forward(self, s: Tensor) -> Tensor:
            return torch.where(s > 0, s, self.slope * s)

    model = nn.Sequential(nn.Linear(6, 5), Own(), nn.Linear(5, 3))
    with pytest.raises(UsageError, match=r"the role of 1.slope is unknown; pass example="):
        decaybench.trial(model)
    trial = decaybench.trial(model, strategy="exclude-alpha", weight_decay=DECAY, example=X)
    groups = start(trial).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(4, DECAY), (1, 0.0)]


def test_a_loss_that_is_not_finite_is_where_the_run_diverged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = driven(monkeypatch, tmp_path)
    trial = decaybench.trial(network())
    start(trial)
    trial.log(1, train_loss=1.0)
    trial.log(2, train_loss=float("inf"))
    trial.finish(test_losses=[float("nan"), 1.0])
    record = loads(task.files.outcome.read_bytes(), ScriptConfig.model_validate(task.config).run_id)
    assert record.diverged == 2
    assert record.outcomes == {}
    assert "train_loss is not finite" in capsys.readouterr().out


def test_only_the_first_process_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    task = driven(monkeypatch, tmp_path)
    monkeypatch.setenv("RANK", "1")
    trial = decaybench.trial(network())
    start(trial)
    trial.log(0, loss=1.0)
    assert trial.finish(loss=1.0) is None
    assert not task.files.outcome.exists()
    assert not task.files.begun.exists()


def test_a_penalty_that_nobody_added_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driven(monkeypatch, tmp_path, strategy="loss-penalty")
    trial = decaybench.trial(network())
    start(trial)
    with pytest.raises(UsageError, match=r"adds a term to the loss, and trial.penalty was never called"):
        trial.finish(loss=1.0)


def test_what_nobody_compares_costs_no_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = driven(monkeypatch, tmp_path, metrics=("loss",))
    trial = decaybench.trial(network())
    start(trial)
    trial.log(1, validation_acc=93.0, loss=1.0)
    trial.log(1, other=2.0)  # another part of the same epoch
    trial.finish(score=torch.ones(5, dtype=torch.bfloat16))
    record = loads(task.files.outcome.read_bytes(), ScriptConfig.model_validate(task.config).run_id)
    assert set(record.history) == {"loss", "other", "score"}
    assert dict(record.metrics) == {"loss": "lower"}  # nothing says what is better of the others
    assert "validation_acc = 93 is no fraction and is left out" in capsys.readouterr().out


@pytest.mark.parametrize("strategy", ["decay-to-init", "two-optimizers", "proximal-l1", "loss-penalty"])
def test_a_step_with_a_closure_is_a_step(strategy: str) -> None:
    def end(closure: bool) -> nn.Module:
        model = network()
        trial = decaybench.trial(model, strategy=strategy, weight_decay=DECAY)
        optimizer = trial.optimizer(torch.optim.SGD, lr=LR, momentum=0.9)

        def backward() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X), Y) + trial.penalty()
            loss.backward()
            return loss

        for _ in range(STEPS):
            if closure:
                assert float(optimizer.step(backward).detach()) > 0
            else:
                backward()
                optimizer.step()
        return model

    for ours, theirs in zip(end(True).parameters(), end(False).parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("strategy", ["exclude-alpha", "two-optimizers"])
def test_schedulers_that_cycle_momentum_take_every_strategy(strategy: str) -> None:
    model = network()
    trial = decaybench.trial(model, strategy=strategy, weight_decay=DECAY)
    optimizer = trial.optimizer(torch.optim.AdamW, lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=5)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    schedule.step()
    assert all(group["betas"][0] != 0.9 for group in optimizer.param_groups)
    assert len(optimizer.state) == 5


def test_each_group_is_thresholded_by_its_own_rate() -> None:
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    trial = decaybench.trial(model, strategy="proximal-l1", weight_decay=0.1)
    optimizer = trial.optimizers(
        lambda name, p: "fast" if p.ndim == 2 else "slow",
        slow=partial(torch.optim.SGD, lr=0.001),
        fast=partial(torch.optim.SGD, lr=0.02),
    )
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, w in zip(model.parameters(), before, strict=True):
        threshold = 0.1 * (0.02 if p.ndim == 2 else 0.001)
        torch.testing.assert_close(p.detach(), w.sign() * (w.abs() - threshold).clamp(min=0))


class ScheduleFree(torch.optim.SGD):
    """An optimizer that, as schedule-free ones do, has two modes and keeps copies of parameters."""

    def train(self) -> None: ...

    def eval(self) -> None: ...


@pytest.mark.parametrize("strategy", ["decay-to-init", "proximal-l1", "exclude-alpha", "two-optimizers"])
def test_strategies_that_move_parameters_refuse_optimizers_that_keep_copies(strategy: str) -> None:
    trial = decaybench.trial(network(), strategy=strategy, weight_decay=DECAY)
    if strategy in ("decay-to-init", "proximal-l1"):
        with pytest.raises(UsageError, match=f"{strategy} moves parameters between steps, and ScheduleFree keeps"):
            trial.optimizer(ScheduleFree, lr=LR)
    else:
        trial.optimizer(ScheduleFree, lr=LR).train()
