"""Tasks, losses and their data sets, against the library functions and the sources that they come from."""

import os
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.nn import functional as F

from decaybench import Arrays, registry
from decaybench.datasets.arrays import checked
from decaybench.datasets.vectors import LETTERS, R_PACKAGE, letter, mnist1d, python_source
from decaybench.errors import UsageError
from decaybench.networks.gpt import gpt
from decaybench.parameter_roles.roles import roles
from decaybench.registry.spec import Spec
from decaybench.study.study import read_grid
from decaybench.training.data import load
from decaybench.training.model import build_model
from decaybench.training.stacked.cohorts import capacity
from decaybench.training.tasks import METRICS, make_task
from decaybench.training.trainer import Finished, Training, train
from helpers import CPU, one

R, K, B, T = 3, 5, 7, 4


def outputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_losses_of_examples_are_those_of_torch() -> None:
    out, y = outputs(R, K, B), torch.randint(0, K, (R, B))
    for smoothing in (0.0, 0.3):
        task = make_task("classification", Spec.make("loss", "cross-entropy", {"smoothing": smoothing}))
        for r in range(R):
            expected = F.cross_entropy(out[r].T, y[r], reduction="none", label_smoothing=smoothing)
            torch.testing.assert_close(task.loss(out, y)[r], expected)
            torch.testing.assert_close(task.reported(out, y)[r], F.cross_entropy(out[r].T, y[r], reduction="none"))
    torch.testing.assert_close(
        make_task("classification", Spec.make("loss", "focal", {"gamma": 0.0})).loss(out, y),
        make_task("classification").loss(out, y),
    )
    p = out.softmax(1).gather(1, y[:, None])[:, 0]
    focal = make_task("classification", Spec.make("loss", "focal", {})).loss(out, y)
    torch.testing.assert_close(focal, -((1 - p) ** 2) * p.log())


def test_losses_of_numbers_and_of_sequences_are_those_of_torch() -> None:
    out, y = outputs(R, 1, B), torch.randn(R, B)
    torch.testing.assert_close(make_task("regression").loss(out, y), F.mse_loss(out[:, 0], y, reduction="none"))
    huber = make_task("regression", Spec.make("loss", "huber", {"delta": 0.5}))
    torch.testing.assert_close(huber.loss(out, y), F.huber_loss(out[:, 0], y, reduction="none", delta=0.5))
    torch.testing.assert_close(METRICS["mae"](out, y), F.l1_loss(out[:, 0], y, reduction="none"))
    out, y = outputs(R, K, B, T), torch.randint(0, K, (R, B, T))
    for r in range(R):
        expected = F.cross_entropy(out[r].movedim(0, -1).reshape(-1, K), y[r].reshape(-1), reduction="none").view(B, T)
        torch.testing.assert_close(make_task("next-token").loss(out, y)[r], expected.mean(1))
        torch.testing.assert_close(METRICS["accuracy"](out, y)[r], (out[r].argmax(0) == y[r]).float().mean(1))


@pytest.mark.parametrize("name", registry.LOSSES)
def test_a_loss_that_does_not_fit_its_task_names_those_that_do(name: str) -> None:
    for task in registry.TASKS:
        if task not in registry.LOSSES[name].tasks:
            with pytest.raises(UsageError, match=f"the data set is for {task}, which is trained with"):
                make_task(task, Spec.make("loss", name, {}))


def study(dataset: str, **fields: object) -> list:
    given = {"dataset": dataset, "strategy": "exclude-alpha", "weight_decay": 0.1, "activation": "prelu", "seeds": 1}
    return read_grid(None, {**given, "epochs": 3, **fields}).runs()


def test_a_linear_regression_finds_the_closed_form(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A network without a hidden layer, trained long enough on diabetes, is the least-squares fit."""
    monkeypatch.chdir(tmp_path)
    code = "import torch\ndef linear(shape, outputs, activation):\n"
    code += "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(shape[0], outputs))\n"
    (tmp_path / "net.py").write_text(code)
    fields = {"activation": "relu", "weight_decay": 0.0, "epochs": 200, "batch_size": 32}
    (config,) = study("diabetes", network="net.py:linear", **fields)
    config = config.model_copy(update={"lr": 0.005})
    data = load(config, CPU)
    assert (data.outputs, data.task) == (1, "regression")
    *_, last = train([config], data)
    assert isinstance(last, Finished)
    x = torch.cat([data.train.x.flatten(1), torch.ones(len(data.train.y), 1)], 1)
    w = torch.linalg.lstsq(x, data.train.y[:, None]).solution
    tested = torch.cat([data.test.x.flatten(1), torch.ones(len(data.test.y), 1)], 1)
    error = (tested @ w)[:, 0] - data.test.y
    assert last.record.final("test_loss") == pytest.approx(float(error.square().mean()), rel=0.05)
    assert last.record.final("test_mae") == pytest.approx(float(error.abs().mean()), rel=0.05)
    assert dict(last.record.metrics) == registry.TASKS["regression"].recorded
    np.testing.assert_allclose(last.record.outcomes["test_mae"].mean(), last.record.final("test_mae"), rtol=1e-5)


@pytest.mark.parametrize("dataset", ["diabetes", "synthetic"])
def test_regressions_train_together_as_alone(dataset: str) -> None:
    configs = read_grid(
        None,
        {
            "dataset": dataset,
            "network": "mlp,width=8",
            "activation": "prelu",
            "strategy": ["decay-all", "exclude-alpha"],
            "weight_decay": 0.1,
            "seeds": 2,
            "epochs": 2,
            "loss": "huber" if dataset == "diabetes" else "cross-entropy,smoothing=0.2",
        },
    ).runs()
    data = load(configs[0], CPU)
    assert capacity(configs[0], data, CPU) > 1
    together = {e.config.run_id: e.record for e in train(configs, data) if isinstance(e, Finished)}
    for config in configs:
        alone = next(e.record for e in _all(Training([config], data, stacked=False)) if isinstance(e, Finished))
        for name, series in alone.history.items():
            assert together[config.run_id].history[name] == pytest.approx(series, rel=1e-4, abs=1e-5)


def _all(training: Training) -> list:
    events: list = []
    while not training.finished:
        events += training.advance()
    return events


def test_gpt_sees_no_token_that_comes_later() -> None:
    torch.manual_seed(0)
    net = gpt((6,), 11, lambda channels: nn.PReLU(channels), width=16).double()
    x = torch.randint(0, 11, (2, 6))
    out = net(x)
    assert out.shape == (2, 11, 6)
    other = x.clone()
    other[:, 4:] = (x[:, 4:] + 1) % 11
    torch.testing.assert_close(net(other)[:, :, :4], out[:, :, :4])
    assert not torch.allclose(net(other)[:, :, 4:], out[:, :, 4:])


@pytest.mark.parametrize("activation", registry.ACTIVATIONS)
def test_gpt_takes_every_activation_and_roles_are_known(activation: str) -> None:
    (config,) = study("python-source,windows=200,context=8", network="gpt,width=16,heads=2", activation=activation)
    model = build_model(config, (8,), 256, "next-token")
    found = roles(model)
    assert "unknown" not in found.values()
    learned = any(name.endswith(".act.weight") or ".act." in name for name in found)
    assert learned == any(role == "activation" for role in found.values())


def test_gpt_learns_what_follows_what() -> None:
    (config,) = study("python-source,windows=400,context=16", network="gpt,width=32", activation="xielu", epochs=4)
    config = config.model_copy(update={"optimizer": Spec.make("optimizer", "adamw", {}), "lr": 3e-3})
    data = load(config, CPU)
    assert data.train.x.dtype == torch.long
    *_, last = train([config], data)
    assert isinstance(last, Finished)
    losses = last.record.history["test_loss"]
    assert losses[-1] < losses[0] < np.log(256)
    assert last.record.outcomes["test_accuracy"].dtype == np.float32  # a share of the tokens of each window


def test_wrong_networks_and_augmentations_are_said() -> None:
    with pytest.raises(UsageError, match=r"cannot be trained on python-source.*these can: gpt"):
        build_model(study("python-source", network="mlp")[0], (64,), 256, "next-token")
    with pytest.raises(UsageError, match="which holds images or vectors; these can: forum, mlp"):
        build_model(study("digits", network="gpt")[0], (1, 8, 8), 10)
    with pytest.raises(UsageError, match="augment = flip: diabetes holds no images"):
        load(study("diabetes", network="mlp", augment="flip")[0], CPU)


def test_data_of_ones_own_say_what_they_are_for() -> None:
    x, numbers = np.zeros((4, 3, 1, 1)), np.array([0.5, 1.5, 2.5, 3.5])
    assert checked(Arrays(x, numbers, x, numbers, task="regression"), "mine").task == "regression"
    with pytest.raises(UsageError, match=r"must hold whole numbers from 0 .or give decaybench.Arrays with task="):
        checked((x, numbers, x, numbers), "mine")
    with pytest.raises(UsageError, match=r"Unknown task of the data set mine 'regresion': did you mean 'regression'"):
        checked(Arrays(x, numbers, x, numbers, task="regresion"), "mine")
    with pytest.raises(UsageError, match="holds NaN"):
        checked(Arrays(x, numbers * np.nan, x, numbers, task="regression"), "mine")
    tokens = np.arange(12).reshape(4, 3)
    assert checked(Arrays(tokens, tokens, tokens, tokens, task="next-token"), "mine").task == "next-token"
    with pytest.raises(UsageError, match=r"allowed are \(N, T\) and \(N, T\)"):
        checked(Arrays(tokens, tokens[:, 0], tokens, tokens, task="next-token"), "mine")
    with pytest.raises(UsageError, match="not whole numbers"):
        checked(Arrays(tokens * 1.0, tokens, tokens, tokens, task="next-token"), "mine")


def test_diabetes_is_that_of_scikit_learn() -> None:
    data = registry_data("diabetes")
    bunch = load_diabetes()
    ours = np.concatenate([data.train_x, data.test_x])[:, :, 0, 0]
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, bunch.data.astype(np.float32).tolist()))
    assert sorted(np.concatenate([data.train_y, data.test_y])) == sorted(bunch.target)


def registry_data(name: str) -> Arrays:
    from decaybench.registry.imports import load as load_target

    made: Arrays = load_target(registry.DATASETS[name].target)()
    return made


def test_mnist1d_is_that_of_its_authors() -> None:
    from mnist1d.data import get_dataset_args, make_dataset

    theirs, ours = make_dataset(get_dataset_args()), mnist1d()
    np.testing.assert_array_equal(ours.train_x[:, 0, 0], theirs["x"].astype(np.float32))
    np.testing.assert_array_equal(ours.test_y, theirs["y_test"])
    assert (len(ours.train_y), len(ours.test_y)) == (4000, 1000)


@pytest.mark.slow
def test_letter_is_the_table_of_uci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECAYBENCH_DATA", str(_letters().parent))
    data = letter()
    assert (data.train_x.shape, data.test_x.shape, data.classes) == ((16000, 16, 1, 1), (4000, 16, 1, 1), 26)
    assert data.train_x[0, :, 0, 0].tolist() == [2, 8, 3, 5, 1, 8, 13, 0, 6, 6, 10, 8, 0, 8, 0, 8]  # UCI's first: T
    assert data.train_y[0] == ord("T") - ord("A")
    assert data.test_y[-1] == ord("A") - ord("A")  # and its last: A
    assert data.train_x.min() == 0
    assert data.train_x.max() == 15


def _letters() -> Path:
    """Finds the file where Debian's package puts it, or where CI unpacks that."""
    for folder in (R_PACKAGE, Path(os.environ.get("LETTERS", ""))):
        if (folder / LETTERS).is_file():
            return folder / LETTERS
    raise AssertionError("unpack r-cran-mlbench, as .ci/run does, and name its folder in LETTERS")


def test_letter_that_is_not_there_or_something_else_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DECAYBENCH_DATA", str(tmp_path))
    monkeypatch.setattr("decaybench.datasets.vectors.R_PACKAGE", tmp_path)
    with pytest.raises(UsageError, match="apt-get install r-cran-mlbench"):
        letter()
    (tmp_path / LETTERS).write_bytes(b"no table")
    with pytest.raises(Exception, match="is not the file of mlbench"):
        letter()


def test_python_source_is_the_bytes_of_the_standard_library() -> None:
    data = python_source(context=32, windows=300)
    whole = b"\0".join(
        path.read_bytes()
        for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
        if "test" not in str(path)
    )
    for x, y in [*zip(data.test_x[:20], data.test_y[:20], strict=True)]:
        np.testing.assert_array_equal(x[1:], y[:-1])
        assert bytes([*x.tolist(), int(y[-1])]) in whole
    assert len(data.train_x) == 300
    assert len(data.test_x) > 50
    again = python_source(context=32, windows=300)
    np.testing.assert_array_equal(again.train_x, data.train_x)


OWN = """
import torch
from torch.nn import functional as F


def smooth(out, y, eps=0.1):
    return F.cross_entropy(out, y, reduction="none", label_smoothing=eps)


def mean(out, y):
    return F.cross_entropy(out, y)


def make(params, lr, weight_decay):
    return torch.optim.NAdam(params, lr=lr, weight_decay=weight_decay)


def none(params, lr, weight_decay):
    return 3


def half(epoch, epochs):
    return 0.5
"""


def test_losses_optimizers_and_schedules_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)

    def trained(**fields: object) -> list[float]:
        config = one(epochs=2, **fields)
        *_, last = train([config], load(config, CPU))
        assert isinstance(last, Finished)
        return last.record.history["test_loss"]  # type: ignore[return-value]

    assert trained(loss="mine.py:smooth") == pytest.approx(trained(loss="cross-entropy,smoothing=0.1"), rel=1e-5)
    assert trained(schedule="mine.py:half", lr=0.1) == pytest.approx(trained(lr=0.05), rel=1e-5)
    assert trained(optimizer="mine.py:make", lr=0.01) != trained(optimizer="adam", lr=0.01)
    assert len(trained(optimizer="timm:lamb", lr=0.01)) == 2
    with pytest.raises(UsageError, match="it must give one number an example"):
        trained(loss="mine.py:mean")
    with pytest.raises(UsageError, match="returned int, not a torch optimizer"):
        trained(optimizer="mine.py:none")
    with pytest.raises(UsageError, match="The optimizer timm:nothing"):
        trained(optimizer="timm:nothing")
    assert capacity(one(optimizer="timm:lamb"), load(one(), CPU), CPU) == 0  # it looks at a whole tensor
