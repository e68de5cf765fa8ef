"""``decaybench verify``: every known fact is measured, and the measurements agree with closed forms and with torch."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from decaybench.cli import app
from decaybench.verify import claims as claims
from decaybench.verify.conditions import Condition, cause, conditions
from decaybench.verify.lockstep import MethodComparison, MethodRun, compare
from decaybench.verify.methods import DEFAULT, method
from decaybench.verify.model import forum

LR, DECAY = 0.1, 0.01


@pytest.fixture(scope="module")
def rows() -> list[MethodComparison]:
    tested = forum(20, DECAY)
    return [row for condition in conditions(DEFAULT) for row in compare(tested, condition)]


def verify(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["verify", *arguments])


@pytest.mark.parametrize("fact", claims.CLAIMS, ids=lambda fact: fact.text)
def test_every_known_fact_holds(rows: list[MethodComparison], fact: claims.Claim) -> None:
    row = fact.measured(rows)
    assert row is not None
    assert (row.verdict != "different") == fact.same
    assert (row.max_difference > 1e-6) != fact.same  # no verdict is near its bound
    assert row.max_difference < 1e-12 or not fact.same


def test_two_optimizers_are_param_groups_bit_by_bit_and_the_answer_says_where_that_ends(
    rows: list[MethodComparison],
) -> None:
    pair = [r for r in rows if (r.left, r.right) == ("exclude-alpha", "two-optimizers")]
    for row in pair:
        ends = row.clipping == "per optimizer" or "first only" in row.optimizer
        assert row.verdict == ("different" if ends else "identical"), row
        assert (row.max_difference == 0) != ends
    text = claims.answer(rows)
    assert text.startswith("Are two optimizers problematic? No: identical to param groups, largest difference 0 (sgd, ")
    assert "each optimizer clips by the norm of its own gradients" in text
    assert "the second optimizer's learning rate is not scheduled" in text


def test_what_is_measured_is_what_the_reasons_predict(rows: list[MethodComparison]) -> None:
    by_label = {(c.label, c.clipping): c for c in conditions(DEFAULT)}
    several = {"two-optimizers": 2}
    for row in rows:
        condition = by_label[row.optimizer, row.clipping]
        counts = several.get(row.left, 1), several.get(row.right, 1)
        why = cause(method(row.left), method(row.right), condition, counts)
        assert (why is not None) == (row.verdict == "different"), row
        assert (row.parted is not None) == (row.verdict == "different")
        if why:
            assert row.reason == why


def test_the_answer_changes_when_two_optimizers_are_not_the_same() -> None:
    tested = forum(3, DECAY)
    methods = ("exclude-alpha", "two-optimizers,alpha_lr=0.01")
    (row,) = compare(tested, Condition("sgd", methods=methods))
    assert row.verdict == "different"
    assert "alpha_lr=0.01" in row.reason
    assert "never identical" in claims.answer([row])


def test_decoupled_with_adam_is_adamw_of_torch() -> None:
    tested = forum(5, DECAY)
    side = MethodRun(method("decoupled"), tested, Condition("adam"))
    theirs = copy.deepcopy(tested.model)
    spared = [p for n, p in theirs.named_parameters() if n in tested.alphas]
    decayed = [p for n, p in theirs.named_parameters() if n not in tested.alphas]
    groups = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=DECAY)
    for step in range(5):
        side.step(step, 0.0)
        optimizer.zero_grad()
        tested.loss(theirs, step).backward()
        optimizer.step()
    for ours, other in zip(side.model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-15)


def weights(tested) -> Iterator[torch.Tensor]:
    return (p.detach() for n, p in tested.model.named_parameters() if n not in tested.alphas)


def test_the_forgotten_half_differs_by_lr_lambda_w_after_one_step() -> None:
    tested = forum(1, DECAY, LR)
    (row,) = compare(tested, Condition("sgd", methods=("loss-penalty", "forgotten-half")))
    largest = max(float(w.abs().max()) for w in weights(tested))
    assert row.max_difference == pytest.approx(LR * DECAY * largest, rel=1e-9)


def test_what_has_no_gradient_is_decayed_by_the_penalty_only_by_the_closed_form() -> None:
    tested = forum(7, DECAY, LR)
    condition = Condition("sgd", unused=True, methods=("exclude-alpha", "loss-penalty"))
    (row,) = compare(tested, condition)
    unused = [
        p.detach()
        for n, p in MethodRun(method("no-decay"), tested, condition).model.named_parameters()
        if "unused" in n
    ]
    largest = max(float(w.abs().max()) for w in unused)
    assert row.max_difference == pytest.approx(largest * (1 - (1 - LR * DECAY) ** 7), rel=1e-9)


def test_clipping_by_itself_scales_the_slopes_by_their_own_norm() -> None:
    tested = forum(1, 0.0, LR)
    condition = Condition("sgd", "per optimizer", methods=("exclude-alpha", "two-optimizers"))
    (row,) = compare(tested, condition)
    named = dict(tested.model.named_parameters())
    gradients = dict(
        zip(
            named,
            torch.autograd.grad(tested.loss(tested.model, 0), list(named.values())),
            strict=True,
        )
    )

    def norm(names) -> float:
        return sum(float(gradients[n].square().sum()) for n in names) ** 0.5

    alphas = set(tested.alphas)
    limit = norm(named) / 2
    joint = {n: gradients[n] * limit / (norm(named) + 1e-6) for n in named}
    expected = 0.0
    for part in (alphas, set(named) - alphas):
        scale = min(1.0, limit / (norm(part) + 1e-6))
        expected = max(expected, *(float((LR * (gradients[n] * scale - joint[n])).abs().max()) for n in part))
    assert row.max_difference == pytest.approx(expected, rel=1e-9)


def test_weight_decay_without_gradient_follows_the_closed_form() -> None:
    first, second = claims.shrinkage()
    assert first.verdict in ("equal", "identical")
    assert second.verdict in ("equal", "identical")
    assert first.reason.endswith("×0.142")  # the published 0.14
    assert second.reason.endswith("×0.954")


@pytest.mark.slow
def test_the_command_prints_the_answer_first_and_json_has_the_keys() -> None:
    done = verify("--steps", "3")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("Are two optimizers problematic? No: identical to param groups")
    assert " NO " not in done.stdout
    found = json.loads(verify("--steps", "2", "--format", "json").stdout)
    keys = ["optimizer", "clipping", "left", "right", "max_difference", "verdict", "reason"]
    assert all(list(row) == keys for row in found)
    assert {row["verdict"] for row in found} == {"identical", "equal", "different"}
    assert {row["clipping"] for row in found} == {"none", "joint", "per optimizer"}
    assert {"sgd", "sgd+momentum", "adam", "adamw", "rmsprop"} < {row["optimizer"] for row in found}


def test_any_strategies_can_be_compared() -> None:
    done = verify("--steps", "2", "--strategy", "decay-all", "--strategy", "exclude-1d", "--format", "json")
    found = [row for row in json.loads(done.stdout) if row["left"] == "decay-all" and row["right"] == "exclude-1d"]
    assert {row["verdict"] for row in found} == {"different"}
    assert all("decays every parameter, exclude-1d what has two dimensions or more" in row["reason"] for row in found)


NET = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(6, 4), nn.PReLU(4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))

def plain():
    return nn.Linear(6, 2)

class Pair(nn.Linear):
    def forward(self, x):
        return x, x

def pair():
    return Pair(6, 2)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


@pytest.mark.slow
def test_ones_own_model_with_dropout_and_batch_norm(here: Path) -> None:
    done = verify("--target", "net.py:net", "--input", "8,6", "--steps", "4")
    assert done.exit_code == 0, done.output
    assert "No: identical to param groups, largest difference 0" in done.stdout
    without = verify("--target", "net.py:plain", "--input", "8,6", "--steps", "1")
    assert "this model has no activation parameters" in without.stderr
    assert without.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "decay-all"], "a comparison needs two different ones"),
        (["--strategy", "decay-all", "--strategy", "decay-al"], "did you mean 'decay-all'"),
        (["--target", "net.py:net"], "--target and --input belong together"),
        (["--target", "net.py:nets", "--input", "8,6"], "did you mean 'net'"),
        (["--target", "net.py:net", "--input", "8,7"], "The model, given an example input of (8, 7), fails"),
        (["--target", "net.py:pair", "--input", "8,6"], "The model returns tuple; verify needs one tensor."),
        (["--steps", "0"], "Invalid value for '--steps'"),
        (["--lr", "1e200"], "training diverges; give a smaller --lr"),
    ],
    ids=str,
)
def test_bad_input_is_one_clear_sentence(here: Path, arguments: list[str], message: str) -> None:
    done = verify(*arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output


def test_a_subject_is_left_as_it_was() -> None:
    tested = forum(2, DECAY)
    before = [p.detach().clone() for p in tested.model.parameters()]
    compare(tested, Condition("adam"))
    assert all(torch.equal(p, q) for p, q in zip(before, tested.model.parameters(), strict=True))
    assert isinstance(tested.model, nn.Module)
