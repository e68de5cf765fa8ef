"""Resuming an optimizer whose parameters are grouped in another way."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from decaybench import param_groups, regroup_state
from decaybench.errors import UsageError

KINDS = [
    lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.PReLU(8), nn.Linear(8, 2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(torch.randn(16, 4, generator=draw)), torch.randn(16, 2, generator=draw)).backward()
        optimizer.step()


def regrouped(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """The groups of `param_groups`, with the decay that everything had: only the grouping differs."""
    return [{**group, "weight_decay": decay} for group in param_groups(model, decay)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_goes_on_as_if_nothing_had_happened(kind: Any) -> None:
    undisturbed, moved = net(), net()
    one, old = kind(undisturbed.parameters()), kind(moved.parameters())
    train(undisturbed, one, 10, 1)
    train(moved, old, 10, 1)
    for group in (*one.param_groups, *old.param_groups):
        group["lr"] *= 0.3  # a schedule was at work
    saved = copy.deepcopy(old.state_dict())
    new = kind(regrouped(moved, 0.1))
    new.load_state_dict(regroup_state(saved, new, [name for name, _ in moved.named_parameters()]))
    assert len(new.param_groups) == 2
    assert {group["lr"] for group in new.param_groups} == {one.param_groups[0]["lr"]}
    train(undisturbed, one, 10, 2)
    train(moved, new, 10, 2)
    for a, b in zip(undisturbed.parameters(), moved.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_new_groups_decide_what_is_decayed_and_the_saved_state_stays() -> None:
    model = net()
    old = torch.optim.AdamW(model.named_parameters(), lr=0.01, weight_decay=0.1)  # torch then keeps the names itself
    train(model, old, 3, 1)
    saved = old.state_dict()
    before = copy.deepcopy(saved)
    new = torch.optim.AdamW(param_groups(model, 0.1), lr=0.5)
    state = regroup_state(saved, new)
    assert str(saved) == str(before)
    new.load_state_dict(state)
    assert sorted(group["weight_decay"] for group in new.param_groups) == [0.0, 0.1]
    assert {group["lr"] for group in new.param_groups} == {0.01}
    slopes = next(g for g in new.param_groups if g["weight_decay"] == 0.0)["params"][0]
    assert torch.equal(new.state[slopes]["exp_avg"], old.state[model[1].weight]["exp_avg"])


def test_names_of_wrapped_models_are_the_same_names() -> None:
    model = net()
    old = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, old, 2, 1)
    new = torch.optim.SGD(param_groups(model, 0.1), lr=0.1, momentum=0.9)
    names = [f"_orig_mod.{name}" for name, _ in model.named_parameters()]
    new.load_state_dict(regroup_state(old.state_dict(), new, names))
    assert torch.equal(new.state[model[1].weight]["momentum_buffer"], old.state[model[1].weight]["momentum_buffer"])


def test_what_cannot_be_moved_is_one_sentence() -> None:
    model = net()
    old = torch.optim.SGD(model.parameters(), lr=0.1)
    new = torch.optim.SGD(param_groups(model, 0.1), lr=0.1)
    with pytest.raises(UsageError, match="so give names="):
        regroup_state(old.state_dict(), new)
    with pytest.raises(UsageError, match="has 5 parameters, and 2 names were given"):
        regroup_state(old.state_dict(), new, ["a", "b"])
    with pytest.raises(UsageError, match=r"the saved optimizer has no parameter 0\.weight; it has a, b, c …"):
        regroup_state(old.state_dict(), new, ["a", "b", "c", "d", "e"])
    with pytest.raises(UsageError, match="groups have no param_names"):
        names = [name for name, _ in model.named_parameters()]
        regroup_state(old.state_dict(), torch.optim.SGD(model.parameters(), lr=0.1), names)


def test_names_that_could_be_confused_are_kept_apart() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.module = nn.PReLU(3), nn.Module()
            self.module.act = nn.PReLU(3)

    model = Twice()
    names = [name for name, _ in model.named_parameters()]
    old = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.act.weight.grad, model.module.act.weight.grad = torch.ones(3), 2 * torch.ones(3)
    old.step()
    new = torch.optim.SGD(param_groups(model, 0.1), lr=0.1, momentum=0.9)
    new.load_state_dict(regroup_state(old.state_dict(), new, names))
    for p in model.parameters():
        assert torch.equal(new.state[p]["momentum_buffer"], old.state[p]["momentum_buffer"])
    with pytest.raises(UsageError, match="a name occurs twice"):
        regroup_state(old.state_dict(), new, [names[0]] * 2)


def test_a_state_of_another_shape_or_kind_is_refused() -> None:
    model = net()
    old = torch.optim.Adam(model.parameters(), lr=0.1)
    train(model, old, 1, 1)
    new = torch.optim.Adam(param_groups(model, 0.1), lr=0.1)
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(UsageError, match="are names= in the order of the saved optimizer"):
        regroup_state(old.state_dict(), new, names[::-1])
    with pytest.raises(UsageError, match=r"what optimizer\.state_dict\(\) returns"):
        regroup_state({"optimizer": old.state_dict()}, new, names)
    with pytest.raises(UsageError, match="names= are texts"):
        regroup_state(old.state_dict(), new, list(model.parameters()))
    with pytest.raises(UsageError, match="LBFGS keeps one state"):
        regroup_state(old.state_dict(), torch.optim.LBFGS(model.parameters()), names)
