"""What is watched is what a closed form says, and watching changes nothing."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

import decaybench
from decaybench.cli import app
from decaybench.errors import UsageError
from decaybench.results.store import StudyFolder

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 1))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        F.mse_loss(model(X)[:, 0], X.relu().sum(1)).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_the_pull_of_decay_beside_that_of_the_gradient(kind: type[torch.optim.Optimizer], tmp_path: Path) -> None:
    lr, decay = 0.01, 0.3
    model, twin = network(), network()
    groups = [{"params": model[0].parameters()}, {"params": [*model[1:].parameters()], "weight_decay": 0.0}]
    optimizer = kind(groups, lr=lr, weight_decay=decay)  # type: ignore[call-arg]
    watcher = decaybench.watch(model, optimizer, every=2, results=tmp_path, name="w")
    steps(model, optimizer, 1)
    record = watcher.finish()
    assert record is not None
    found = {row["name"]: row["ratio"][0] for row in record.extra["watched"]["parameters"]}
    plain = kind(twin.parameters(), lr=lr, weight_decay=0.0)  # type: ignore[call-arg]
    before = [p.detach().clone() for p in twin.parameters()]
    steps(twin, plain, 1)
    for (name, p), w in zip(twin.named_parameters(), before, strict=True):
        pull = decay * w.norm() if name.startswith("0.") else torch.tensor(0.0)
        rest = (p.detach() - w).norm() / lr if kind is torch.optim.AdamW else p.grad.norm()  # type: ignore[union-attr]
        assert found[name] == pytest.approx(float(pull / rest), rel=0.02)


def test_watching_changes_no_number_and_looks_as_often_as_asked(tmp_path: Path) -> None:
    plain, watched = network(), network()
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1) for m in (plain, watched)]
    watcher = decaybench.watch(watched, optimizers[1], every=10, results=tmp_path, name="w", seed=4)
    for model, optimizer in zip((plain, watched), optimizers, strict=True):
        steps(model, optimizer, 35)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    record = watcher.finish()
    assert record is not None
    assert record.extra["watched"]["steps"] == [1, 11, 21, 31]
    (layer,) = record.layers
    assert len(layer.quantiles or ()) == 5
    assert layer.distance_from_relu is not None
    roles = {row["name"]: row["role"] for row in record.extra["watched"]["parameters"]}
    assert roles["1.weight"] == "activation"
    (again,) = StudyFolder(tmp_path / "w").load_records()
    assert again.run_id == record.run_id


def test_it_is_shown_as_a_table_and_as_a_heat_map(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=0.1)
    watcher = decaybench.watch(model, optimizer, every=5, results=tmp_path, name="w")
    steps(model, optimizer, 30)
    watcher.finish()
    runner = CliRunner()
    done = runner.invoke(app, ["report", str(tmp_path / "w"), "--format", "json"])
    assert done.exit_code == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["decay_over_gradient"] > 0
    for packed in (False, True):
        if packed:
            assert runner.invoke(app, ["pack", str(tmp_path / "w")]).exit_code == 0
        output = tmp_path / f"pulls{packed}.svg"
        arguments = ["report", str(tmp_path / "w"), "--figure", "pulls", "--format", "svg", "--output", str(output)]
        done = runner.invoke(app, arguments)
        assert done.exit_code == 0, done.stderr
        assert "1.weight (activation)" in output.read_text()
        assert output.read_text().count('aria-roledescription="rect mark"') == 5 * 6  # parameters × looks


def test_what_cannot_be_watched_is_said(tmp_path: Path) -> None:
    model, other = network(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="it is a number of steps, 1 or more"):
        decaybench.watch(model, optimizer, every=0, results=tmp_path)
    with pytest.raises(UsageError, match="holds no parameter of this model"):
        decaybench.watch(other, optimizer, results=tmp_path)
    watcher = decaybench.watch(model, optimizer, results=tmp_path, name="nothing")
    assert watcher.finish() is None
    assert not (tmp_path / "nothing").exists()
