"""Roles of modules that nobody knows, whatever way they are written and called."""

import sys
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from decaybench import param_groups, roles
from decaybench.errors import UsageError


class Unknown(nn.Module):
    """Of a type nobody knows."""

    def __init__(self, function: Callable[..., Tensor], start: float = 0.7) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((3,), start))
        self.function = function

    def forward(self, x: Tensor, *more: object, **named: object) -> Tensor:
        return self.function(x, self.p, *more, **named)


class Caller(nn.Module):
    """A network that calls its activation in some way."""

    def __init__(self, activation: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.activation, self.call = nn.Linear(5, 3), activation, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.activation, self.first(x))


def swish(x: Tensor, p: Tensor, power: float = 1.0) -> Tensor:
    return x * torch.sigmoid(p * x) ** power


def in_place(x: Tensor, p: Tensor) -> Tensor:
    return x.mul_(torch.sigmoid(p * x))


def role(activation: nn.Module, call: Callable[[nn.Module, Tensor], Tensor] = lambda a, x: a(x)) -> str:
    net = Caller(activation, call)
    example = torch.randn(8, 5)
    before, state = example.clone(), [p.detach().clone() for p in net.parameters()]
    (found,) = {v for k, v in roles(net, example).items() if k.startswith("activation.")}
    assert torch.equal(example, before)  # nobody's tensors are touched
    assert all(torch.equal(a, b) for a, b in zip(state, net.parameters(), strict=True))
    return found


def test_an_activation_that_works_in_place() -> None:
    assert role(Unknown(in_place)) == "activation"


@pytest.mark.parametrize(
    "call",
    [
        lambda a, x: a(x=x),
        lambda a, x: a(x, 2.0),
        lambda a, x: a(x, power=2.0),
        lambda a, x: a(a(x)),
        lambda a, x: a(x.to(torch.float32), torch.tensor(2.0)),
    ],
)
def test_an_activation_is_one_however_it_is_called(call: Callable[[nn.Module, Tensor], Tensor]) -> None:
    assert role(Unknown(swish), call) == "activation"


def test_a_module_whose_forward_is_called_by_hand_is_known_by_its_operations() -> None:
    assert role(Unknown(swish), lambda a, x: a.forward(x)) == "activation"


@pytest.mark.parametrize("call", [lambda a, x: torch.relu(x), lambda a, x: x])
def test_what_is_never_called_stays_unknown_and_is_no_silent_weight(call: Callable) -> None:
    assert role(Unknown(swish), call) == "unknown"
    with pytest.raises(UsageError, match=r"activation\.p is unknown"):
        param_groups(Caller(Unknown(swish), call), 0.1, example=torch.randn(8, 5))


@pytest.mark.parametrize(
    ("function", "start", "expected"),
    [
        (lambda x, p: torch.where(x > 0, x, p * x), 1.0, "activation"),  # starts as the identity
        (lambda x, p: torch.minimum(x, p), 6.0, "activation"),
        (lambda x, p: p * x, 0.0, "scale"),  # a LayerScale that starts at zero
        (lambda x, p: p * x, 1e-6, "scale"),
        (lambda x, p: x + p, 0.0, "bias"),
        (lambda x, p: (x, p), 0.0, "unknown"),
        (lambda x, p: x / x.norm() * p, 0.0, "norm"),
    ],
)
def test_where_a_parameter_starts_hides_nothing(function: Callable, start: float, expected: str) -> None:
    assert role(Unknown(function, start), lambda a, x: torch.zeros(1) if a(x) is None else x) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("function", "expected"), [(lambda x, p: p * x, "scale"), (swish, "activation")])
def test_rounding_is_no_nonlinearity(dtype: torch.dtype, function: Callable, expected: str) -> None:
    net = Caller(Unknown(function), lambda a, x: a(1000 * x)).to(dtype)
    assert roles(net, torch.randn(8, 5, dtype=dtype))["activation.p"] == expected


def test_parameters_in_a_list_belong_to_the_module_that_has_the_list() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ps = nn.ParameterList([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))])
            self.named = nn.ParameterDict({"a": nn.Parameter(torch.ones(3))})

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(self.ps[0] * x + self.ps[1]) * self.named["a"]

    assert role(Listed()) == "activation"


def test_a_subclass_of_a_layer_of_torch_may_learn_more_than_the_layer() -> None:
    class Fused(nn.Linear):
        def __init__(self) -> None:
            super().__init__(5, 3)
            self.beta = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return swish(super().forward(x), self.beta)

    assert roles(Fused()) == {"weight": "weight", "bias": "bias", "beta": "unknown"}


def test_a_module_whose_train_returns_nothing() -> None:
    class Odd(Unknown):
        def train(self, mode: bool = True) -> None:  # type: ignore[override]
            super().train(mode)

    assert role(Odd(swish)) == "activation"


def test_a_parameter_of_two_owners_has_the_role_that_is_known() -> None:
    first, second = Unknown(swish), nn.Linear(3, 1)
    first.p = nn.Parameter(torch.ones(1, 3))
    second.weight = first.p
    assert roles(nn.Sequential(first, second))["0.p"] == "weight"
    head, embedding = nn.Linear(4, 9, bias=False), nn.Embedding(9, 4)
    head.weight = embedding.weight
    assert roles(nn.Sequential(head, embedding)) == {"0.weight": "embedding"}


@pytest.mark.parametrize("module", ["kafnets", "models.kafnets", "decaybench_user_0123.kafnets"])
def test_the_kaf_authors_class_wherever_its_file_lies(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = types.ModuleType(module)
    monkeypatch.setitem(sys.modules, module, made)
    kaf = type("KAF", (nn.Module,), {"__module__": module})()
    kaf.alpha = nn.Parameter(torch.ones(1, 3, 20))
    assert roles(nn.Sequential(kaf)) == {"0.alpha": "activation"}


def marked() -> nn.Module:
    net = Caller(Unknown(swish), lambda a, x: a(x))
    net.activation.p._optim = {"weight_decay": 0.0}
    return net


def test_a_mark_settles_what_an_unknown_role_leaves_open() -> None:
    from decaybench import penalty
    from decaybench.audit.audit import audit

    (spared,) = [g["param_names"] for g in param_groups(marked(), 0.1) if g["weight_decay"] == 0]
    assert spared == ["activation.p"]
    net = marked()
    weights = [net.first.weight, net.first.bias]
    expected = 0.5 * 0.1 * sum(float(w.detach().square().sum()) for w in weights)
    assert float(penalty(net, l2=0.1).detach()) == pytest.approx(expected)
    assert not {r.name: r for r in audit(net).rows}["activation.p"].decayed["decaybench"]


def test_no_weight_decay_reaches_through_wrappers_and_second_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)
            self.head.weight = self.embedding.weight
            self.layer = torch.compile(nn.Linear(4, 4))

        def no_weight_decay(self) -> set[str]:
            return {"head.weight", "layer.bias"}

    spared = [n for g in param_groups(Tied(), 0.1) if not g["weight_decay"] for n in g["param_names"]]
    assert spared == ["embedding.weight", "layer._orig_mod.bias"]
    named = [n for g in param_groups(nn.Sequential(Tied()), 0.1, extra=["0.head.weight"]) for n in g["param_names"]]
    assert "0.embedding.weight" in named


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exclude": ("activations",)}, "Unknown role 'activations': did you mean 'activation'"),
        ({"only": ("weights",)}, "Unknown role 'weights'"),
        ({"exclude": "activation"}, "take several roles"),
        ({"unknown": "ignore"}, "Unknown value of unknown= 'ignore'"),
    ],
)
def test_a_typing_error_is_no_silent_decay(arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        param_groups(nn.PReLU(), 0.1, **arguments)


def test_complex_parameters_have_a_real_penalty() -> None:
    from decaybench import penalty

    net = nn.Linear(2, 1, bias=False, dtype=torch.complex64)
    value = penalty(net, l1=0.0, l2=1.0)
    assert not value.is_complex()
    assert float(value.detach()) == pytest.approx(0.5 * float(net.weight.detach().abs().square().sum()))
