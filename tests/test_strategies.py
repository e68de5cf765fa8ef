"""The contract: with data gradients of zero, one step shrinks exactly what the strategy says, by the closed form."""

import pytest
import torch
from torch import Tensor, nn

from decaybench import registry
from decaybench.activations.kaf.module import KAF
from decaybench.activations.relu import relu
from decaybench.errors import UsageError
from decaybench.parameter_roles.roles import mark_activation, roles
from decaybench.registry.build import construct
from decaybench.strategies.plan import Plan, strategy_setup
from decaybench.training.model import build_model
from helpers import one

LR, DECAY = 0.1, 0.01


class Own(nn.Module):
    """An activation of somebody's own with a 2-D parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 2))


def network() -> nn.Module:
    """Weights, biases, a norm, and activation parameters of one and of two dimensions; none of them zero."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.PReLU(3), KAF(3, D=4), mark_activation(Own()), nn.Linear(4, 2)
    ).double()
    for p in model.parameters():
        p.data.uniform_(0.5, 1.5).mul_(torch.where(torch.rand_like(p) < 0.5, -1.0, 1.0))
    return model


# Which of the parameters above each kind means, written out by hand.
ALPHAS = {"2.weight", "3.alpha", "4.scale"}
MATRICES = {"0.weight", "3.alpha", "4.scale", "5.weight"}
EVERY = {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "3.alpha", "4.scale", "5.weight", "5.bias"}
BIASES, NORMS = {"0.bias", "5.bias"}, {"1.weight", "1.bias"}
SAYS = {"no biases": EVERY - BIASES, "no norms or biases": EVERY - BIASES - NORMS}
SAYS |= {"all": EVERY, "none": set(), "weights": EVERY - ALPHAS, "activation": ALPHAS, "matrices": MATRICES}


def step_of(optimizer: str, gradient: Tensor) -> Tensor:
    """The first step of each optimizer for a gradient, lr = 1, from the papers' formulas."""
    if optimizer == "sgd":
        return gradient
    if optimizer in ("adam", "adamw"):  # bias-corrected moments of the first step are g and g²
        return gradient / (gradient.abs() + 1e-8)
    return gradient / ((0.01 * gradient.square()).sqrt() + 1e-8)  # rmsprop: v = (1 − 0.99) g²


def l2_step(optimizer: str, w: Tensor, decoupled: bool) -> Tensor:
    if decoupled:
        return w * (1 - LR * DECAY)
    return w - LR * step_of(optimizer, DECAY * w)


def one_step(strategy: str, optimizer: str, model: nn.Module) -> Plan:
    config = one(strategy=strategy, optimizer=optimizer, lr=LR, weight_decay=DECAY)
    if strategy == "no-decay":
        config = config.model_copy(update={"weight_decay": DECAY})  # it must not decay whatever it is given
    plan: Plan = construct("strategy", config.strategy, strategy_setup(config, model))
    return plan


def take_step(plan: Plan, model: nn.Module) -> None:
    loss = sum((p * 0).sum() for p in model.parameters())  # data gradients: zero, not None
    (loss if plan.penalty is None else loss + plan.penalty()).backward()
    for o in plan.optimizers:
        o.step()
    if plan.after_step:
        plan.after_step()


def after_one_step(strategy: str, optimizer: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model = network()
    plan = one_step(strategy, optimizer, model)
    if strategy == "decay-to-init":  # what pulls to the start pulls only after it has left it
        for name, p in model.named_parameters():
            p.data.add_(1.0 if name in ALPHAS else 0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    take_step(plan, model)
    return before, {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("optimizer", [name for name, entry in registry.OPTIMIZERS.items() if entry.elementwise])
@pytest.mark.parametrize("strategy", registry.STRATEGIES)
def test_exactly_what_it_says_shrinks_by_the_closed_form(strategy: str, optimizer: str) -> None:
    before, after = after_one_step(strategy, optimizer)
    decayed = SAYS[registry.STRATEGIES[strategy].decays]
    for name, w in before.items():
        if name not in decayed:
            assert torch.equal(after[name], w), f"{name} must not move"
            continue
        if strategy == "proximal-l1":
            expected = w.sign() * (w.abs() - LR * DECAY).clamp(min=0)
        elif strategy == "decay-to-init" and name in ALPHAS:
            start = w - 1.0
            expected = start + l2_step(optimizer, torch.ones_like(w), decoupled=optimizer == "adamw")
        else:
            decoupled = optimizer == "adamw" and strategy != "loss-penalty"
            expected = l2_step(optimizer, w, decoupled)
        torch.testing.assert_close(after[name], expected, rtol=1e-9, atol=1e-12)
        distance = 1.0 if strategy == "decay-to-init" and name in ALPHAS else 0.0
        target = w - distance
        assert (
            ((after[name] - target).abs() < (w - target).abs()).all()
            if distance
            else (after[name].abs() < w.abs()).all()
        )


@pytest.mark.parametrize(
    ("strategy", "gradient"),
    [
        ("loss-penalty,penalty=l1", lambda w: DECAY * w.sign()),
        ("loss-penalty,penalty=elastic-net,l1_ratio=0.25", lambda w: DECAY * (0.25 * w.sign() + 0.75 * w)),
    ],
)
def test_penalties_have_the_gradient_of_their_formula(strategy: str, gradient) -> None:
    before, after = after_one_step(strategy, "sgd")
    for name, w in before.items():
        expected = w if name in ALPHAS else w - LR * gradient(w)
        torch.testing.assert_close(after[name], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("on", "moved"), [("all", EVERY), ("activation", ALPHAS), ("weights", EVERY - ALPHAS)])
@pytest.mark.parametrize("strategy", ["loss-penalty", "proximal-l1"])
def test_on_says_which_parameters(strategy: str, on: str, moved: set[str]) -> None:
    before, after = after_one_step(f"{strategy},on={on}", "sgd")
    assert {name for name in before if not torch.equal(before[name], after[name])} == moved


@pytest.mark.parametrize(
    ("strategy", "layer", "moved"),
    [
        ("alpha-only", 0, {"2.weight"}),
        ("alpha-only", 1, {"3.alpha"}),
        ("exclude-alpha", 0, EVERY - {"2.weight"}),
        ("exclude-alpha", 1, EVERY - {"3.alpha"}),
    ],
)
def test_layer_is_one_layers_activation_parameters(strategy: str, layer: int, moved: set[str]) -> None:
    before, after = after_one_step(f"{strategy},layer={layer}", "sgd")
    assert {name for name in before if not torch.equal(before[name], after[name])} == moved


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"layer = 3: the network has 3 layers with .* counted from 0 to 2"):
        after_one_step("alpha-only,layer=3", "sgd")


def test_a_gain_is_a_scale_that_decay_takes_to_the_zero_function() -> None:
    model = relu(3, gain=True)
    s = torch.randn(5, 3, 2, 2)
    torch.testing.assert_close(model(s), s.relu())
    model.gain.data.copy_(torch.tensor([2.0, 0.0, -1.0]))
    torch.testing.assert_close(model(s), s.relu() * torch.tensor([2.0, 0.0, -1.0])[:, None, None])
    net = build_model(one(network="forum", activation="relu,gain=true"), (1, 8, 8), 4)
    assert [name for name, role in roles(net).items() if role == "activation"] == ["1.gain", "3.gain"]


def test_proximal_l1_gives_exact_zeros_and_the_subgradient_does_not() -> None:
    zeros = {}
    for strategy in ("proximal-l1", "loss-penalty,penalty=l1,on=all"):
        model = network()
        plan = one_step(strategy, "sgd", model)
        for p in model.parameters():
            p.data.mul_(0.0031)  # of 0.5 … 1.5: each a few soft thresholds of lr·λ = 0.001 wide, none a multiple
        for _ in range(6):
            model.zero_grad()
            take_step(plan, model)
        zeros[strategy] = sum(int((p == 0).sum()) for p in model.parameters())
    count = sum(p.numel() for p in network().parameters())
    assert zeros["proximal-l1"] == count
    assert zeros["loss-penalty,penalty=l1,on=all"] == 0


def test_two_optimizers_takes_another_kind_and_rate() -> None:
    model = network()
    plan = one_step("two-optimizers,alpha_optimizer=adam,alpha_lr=0.02", "sgd", model)
    first, second = plan.optimizers
    assert (type(first).__name__, type(second).__name__) == ("SGD", "Adam")
    assert [g["lr"] for g in second.param_groups] == [0.02]
    assert [g["weight_decay"] for g in second.param_groups] == [0.0]
    assert {id(p) for p in second.param_groups[0]["params"]} == {id(dict(model.named_parameters())[a]) for a in ALPHAS}


@pytest.mark.parametrize("strategy", registry.STRATEGIES)
def test_every_parameter_is_in_exactly_one_group(strategy: str) -> None:
    model = network()
    plan = one_step(strategy, "sgd", model)
    held = [id(p) for o in plan.optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("strategy", registry.STRATEGIES)
def test_a_network_that_learns_no_activation_trains(strategy: str) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    take_step(one_step(strategy, "sgd", model), model)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("optimizer", "lr", "decay", "steps", "published"),
    [("sgd,momentum=0", 0.1, 5e-4, 39_100, 0.14), ("adamw", 1e-3, 0.01, 4_690, 0.954)],
)
def test_published_shrinkage_under_zero_gradient(
    optimizer: str, lr: float, decay: float, steps: int, published: float
) -> None:
    model = nn.Sequential(nn.PReLU(init=1.0)).double()
    config = one(strategy="decay-all", optimizer=optimizer, lr=lr, weight_decay=decay)
    (o,) = construct("strategy", config.strategy, strategy_setup(config, model)).optimizers
    slope = model[0].weight
    slope.grad = torch.zeros_like(slope)
    for _ in range(steps):
        o.step()
    assert float(slope.detach()) == pytest.approx((1 - lr * decay) ** steps, rel=1e-9)
    assert float(slope.detach()) == pytest.approx(published, rel=0.02)
