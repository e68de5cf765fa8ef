"""Roles go by the type of the owner, never by rank or name."""

import copy

import pytest
import torch
from torch import nn

from decaybench import mark_activation, registry, roles
from decaybench.activations.kaf.module import KAF
from decaybench.parameter_roles.roles import activation_layers
from decaybench.registry.build import construct
from decaybench.registry.spec import parse


class Named(nn.Module):
    """Names that try to mislead: an alpha that is no activation, a weight that is."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Linear(2, 2)
        self.weight = nn.PReLU(2)
        self.bias = nn.LayerNorm(2)
        self.odd = nn.Parameter(torch.ones(2))


def test_owners_decide() -> None:
    assert roles(Named()) == {
        "odd": "unknown",
        "alpha.weight": "weight",
        "alpha.bias": "bias",
        "weight.weight": "activation",
        "bias.weight": "norm",
        "bias.bias": "norm",
    }


@pytest.mark.parametrize("name", registry.ACTIVATIONS)
def test_what_an_activation_of_the_registry_learns_is_an_activations(name: str) -> None:
    (spec,) = parse("activation", name)
    module = construct("activation", spec, 3)
    assert set(roles(module).values()) <= {"activation"}
    assert set(roles(nn.Sequential(nn.Linear(2, 3), module)).values()) <= {"weight", "bias", "activation"}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv1d(1, 1, 1), {"weight": "weight", "bias": "bias"}),
        (nn.ConvTranspose2d(1, 1, 1), {"weight": "weight", "bias": "bias"}),
        (nn.Bilinear(1, 1, 1), {"weight": "weight", "bias": "bias"}),
        (nn.BatchNorm2d(1), {"weight": "norm", "bias": "norm"}),
        (nn.GroupNorm(1, 1), {"weight": "norm", "bias": "norm"}),
        (nn.RMSNorm(1), {"weight": "norm"}),
        (nn.InstanceNorm1d(1, affine=True), {"weight": "norm", "bias": "norm"}),
        (nn.Embedding(1, 1), {"weight": "embedding"}),
        (KAF(2), {"alpha": "activation"}),
        (
            nn.LSTM(1, 1),
            dict(
                zip(
                    ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"],
                    ["weight", "weight", "bias", "bias"],
                    strict=True,
                )
            ),
        ),
        (
            nn.MultiheadAttention(2, 1),
            {"in_proj_weight": "weight", "in_proj_bias": "bias", "out_proj.weight": "weight", "out_proj.bias": "bias"},
        ),
    ],
    ids=lambda x: type(x).__name__,
)
def test_torch_modules(module: nn.Module, expected: dict[str, str]) -> None:
    assert roles(module) == expected


def test_shared_parameters_are_listed_once_and_activation_wins() -> None:
    shared = nn.PReLU()
    assert roles(nn.Sequential(shared, nn.Linear(1, 1), shared)) == {
        "0.weight": "activation",
        "1.weight": "weight",
        "1.bias": "bias",
    }


@mark_activation
class Gate(nn.Module):
    """An activation built of other modules."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.beta = nn.Parameter(torch.ones(1))


def test_everything_inside_a_marked_module_is_activation() -> None:
    model = nn.Sequential(nn.Linear(2, 2), Gate())
    wanted = {"0.weight": "weight", "0.bias": "bias"}
    wanted |= dict.fromkeys(["1.inner.weight", "1.inner.bias", "1.beta"], "activation")
    for copied in (model, copy.deepcopy(model)):
        assert roles(copied) == wanted
        assert list(activation_layers(copied)) == ["1"]
    assert roles(Gate()) == dict.fromkeys(["beta", "inner.weight", "inner.bias"], "activation")


def test_one_parameter_can_be_marked() -> None:
    model = Named()
    mark_activation(model.odd)
    assert roles(model)["odd"] == "activation"


def test_meta_device() -> None:
    with torch.device("meta"):
        assert roles(nn.Sequential(nn.Linear(2, 2), nn.PReLU()))["1.weight"] == "activation"
