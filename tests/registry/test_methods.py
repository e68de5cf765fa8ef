"""Strategies that count as one method are one: measured in lockstep, for every optimizer, with and without clipping."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from decaybench.registry.methods import method_of
from decaybench.registry.spec import parse
from decaybench.verify.conditions import OPTIMIZERS, Condition
from decaybench.verify.lockstep import ModelUnderTest, compare
from decaybench.verify.model import forum

NAMES = (
    *("no-decay", "decay-all", "exclude-alpha", "exclude-1d", "exclude-bias", "exclude-norm-bias", "alpha-only"),
    *("loss-penalty", "loss-penalty,on=all", "loss-penalty,on=activation", "loss-penalty,penalty=l1"),
    *("loss-penalty,penalty=elastic-net,l1_ratio=0", "loss-penalty,penalty=elastic-net"),
    *("two-optimizers", "two-optimizers,alpha_lr=0.001", "decay-to-init", "proximal-l1"),
    *("exclude-alpha,layer=0", "alpha-only,layer=1"),
)


def without_alphas(steps: int, decay: float) -> ModelUnderTest:
    """A network in which nothing of the activations is learned."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)).double()
    for p in model.parameters():
        p.data.add_(0.3)
    batches = [torch.randn(4, 6, dtype=torch.float64) for _ in range(steps)]
    return ModelUnderTest(model, frozenset(), batches, decay)


def method(name: str, optimizer: str, clipped: bool, learned: bool, decay: float) -> tuple[str, str]:
    (strategy,), (spec,) = parse("strategy", name), parse("optimizer", OPTIMIZERS[optimizer])
    return method_of(
        {
            "strategy": strategy.model_dump(),
            "optimizer": spec.model_dump(),
            "network": {"name": "forum", "options": {}, "source": None},
            "activation": {"name": "prelu" if learned else "relu", "options": {}, "source": None},
            "clip_norm": 1.0 if clipped else None,
            "weight_decay": decay,
        }
    )


@pytest.mark.parametrize("decay", [0.01, 0.0])
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("clipping", ["none", "joint"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_method_means_the_same_numbers(optimizer: str, clipping: str, learned: bool, decay: float) -> None:
    tested = forum(6, decay) if learned else without_alphas(6, decay)
    tested = replace(tested, decay=decay)
    rows = compare(tested, Condition(optimizer, clipping, methods=NAMES))
    keys = {name: method(name, optimizer, clipping != "none", learned, decay) for name in NAMES}
    found = {(row.left, row.right): row for row in rows}
    merged = 0
    for left, right in itertools.combinations(NAMES, 2):
        if keys[left] == keys[right]:
            merged += 1
            assert found[left, right].verdict != "different", found[left, right]
    assert merged >= (1 if decay else 10)


def test_what_differs_is_not_merged() -> None:
    """The three of the thread under SGD, and where each of them ends."""
    three = ("exclude-alpha", "loss-penalty", "two-optimizers")
    assert len({method(name, "sgd", False, True, 0.1) for name in three}) == 1
    assert len({method(name, "adam", False, True, 0.1) for name in three}) == 1
    for optimizer, clipped in (("adamw", False), ("sgd", True)):
        keys = [method(name, optimizer, clipped, True, 0.1) for name in three]
        assert keys[0] == keys[2] != keys[1]
    assert method("two-optimizers,alpha_lr=0.001", "sgd", False, True, 0.1)[0] == "two-optimizers"
    assert method("loss-penalty,penalty=l1", "sgd", False, True, 0.1)[0] == "loss-penalty"
    assert method("exclude-alpha", "sgd", False, True, 0.1) != method("decay-all", "sgd", False, True, 0.1)


def test_a_users_own_code_is_merged_with_nothing() -> None:
    (strategy,) = parse("strategy", "loss-penalty")
    config = {
        "strategy": strategy.model_dump(),
        "optimizer": {"name": "sgd", "options": {}, "source": None},
        "network": {"name": "mine.py:net", "options": {}, "source": "a"},  # a layer may be unused
        "activation": {"name": "prelu", "options": {}, "source": None},
        "weight_decay": 0.1,
    }
    assert method_of(config)[0] == "loss-penalty"
    own = {"name": "mine.py:way", "options": {}, "source": "b"}
    assert method_of({**config, "strategy": own})[0] == "mine.py:way"


def test_a_network_of_ones_own_may_hold_slopes_where_the_activation_learns_nothing() -> None:
    config = {
        "strategy": {"name": "exclude-alpha", "options": {}, "source": None},
        "optimizer": {"name": "sgd", "options": {}, "source": None},
        "network": {"name": "mine.py:net", "options": {}, "source": "a"},
        "activation": {"name": "relu", "options": {}, "source": None},
        "clip_norm": None,
        "weight_decay": 0.1,
    }
    assert method_of(config)[0] == "exclude-alpha"
    ours = {**config, "network": {"name": "forum", "options": {}, "source": None}}
    assert method_of(ours)[0] == "decay-all"
    gain = {"name": "relu", "options": {"gain": True}, "source": None}
    assert method_of({**ours, "activation": gain})[0] == "exclude-alpha"
