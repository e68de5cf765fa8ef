"""param_groups and penalty on anybody's model: every parameter once, the right ones decayed, ready for torch.optim."""

import inspect
import os
import sys
import types

import pytest
import torch
from torch import Tensor, nn

from decaybench import mark_activation, param_groups, penalty, roles
from decaybench.activations.kaf.module import KAF
from decaybench.errors import UsageError


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Linear(16, 8), KAF(8))


ALPHAS = {"2.weight", "5.alpha"}


def split(groups: list[dict]) -> tuple[set[str], set[str]]:
    """The names that are decayed and those that are not."""
    decayed = {n for g in groups if g["weight_decay"] for n in g["param_names"]}
    return decayed, {n for g in groups for n in g["param_names"]} - decayed


OPTIMIZERS = [
    cls
    for _, cls in inspect.getmembers(torch.optim, inspect.isclass)
    if "weight_decay" in inspect.signature(cls).parameters and cls.__name__ != "Muon"  # it takes matrices only
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda c: c.__name__)
def test_every_optimizer_takes_the_groups_and_its_state_survives_a_file(optimizer: type, tmp_path) -> None:
    first, second = model(), model()
    made = [optimizer(param_groups(m, 0.1), lr=0.01) for m in (first, second)]
    for p in first.parameters():
        p.grad = torch.ones_like(p)
    made[0].step()
    torch.save(made[0].state_dict(), tmp_path / "o.pt")
    state = torch.load(tmp_path / "o.pt", weights_only=True)
    made[1].load_state_dict(state)
    for a, b in zip(made[0].param_groups, made[1].param_groups, strict=True):
        assert a["param_names"] == b["param_names"]
        assert a["weight_decay"] == b["weight_decay"]


def test_activation_parameters_are_spared_and_nothing_else() -> None:
    groups = param_groups(model(), 0.1)
    decayed, spared = split(groups)
    assert spared == ALPHAS
    assert decayed == {n for n, _ in model().named_parameters()} - ALPHAS
    assert {g["weight_decay"] for g in groups} == {0.0, 0.1}
    for g in groups:
        assert [id(p) for p in g["params"]] != []
        assert len(g["params"]) == len(g["param_names"])


def test_more_can_be_excluded_by_role_or_pattern_and_only_turns_it_round() -> None:
    _, spared = split(param_groups(model(), 0.1, exclude=("activation", "norm", "bias")))
    assert spared == ALPHAS | {"0.bias", "1.weight", "1.bias", "4.bias"}
    _, spared = split(param_groups(model(), 0.1, extra=["0.*"]))
    assert spared == ALPHAS | {"0.weight", "0.bias"}
    decayed, _ = split(param_groups(model(), 0.1, only=("weight",)))
    assert decayed == {"0.weight", "4.weight"}
    with pytest.raises(UsageError, match=r"extra='head.*' matches no trainable parameter"):
        param_groups(model(), 0.1, extra=["head.*"])


def test_frozen_parameters_are_in_no_group() -> None:
    net = model()
    net[0].requires_grad_(False)
    assert not any(n.startswith("0.") for g in param_groups(net, 0.1) for n in g["param_names"])


def test_the_marks_that_people_already_use_are_honoured() -> None:
    class Timm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            self.a.weight._no_weight_decay = True
            self.b.weight._optim = {"lr": 0.5, "weight_decay": 0.0}

        def no_weight_decay(self) -> set[str]:
            return {"a.bias"}

    groups = param_groups(nn.Sequential(Timm()), 0.1)
    assert split(groups) == ({"0.b.bias"}, {"0.a.weight", "0.a.bias", "0.b.weight"})
    assert [g["param_names"] for g in groups if g.get("lr") == 0.5] == [["0.b.weight"]]


class Strange(nn.Module):
    """Of a type nobody knows; what it does is given."""

    def __init__(self, function) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((3,), 0.7))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.p)


@pytest.mark.parametrize(
    ("function", "role"),
    [
        (lambda x, p: x * torch.sigmoid(p * x), "activation"),
        (lambda x, p: torch.where(x > 0, x, p * x), "activation"),
        (lambda x, p: p * torch.tanh(x), "activation"),
        (lambda x, p: torch.relu(x) + p, "activation"),
        (lambda x, p: p * x, "scale"),
        (lambda x, p: x + p, "bias"),
        (lambda x, p: x - 2 * p, "bias"),
        (lambda x, p: x.cumsum(1) * p, "scale"),
        (lambda x, p: (x * p).sum(1, keepdim=True), "weight"),
        (lambda x, p: torch.softmax(x * p, 1), "scale"),
    ],
)
def test_unknown_types_are_classified_by_what_they_do(function, role: str) -> None:
    net = nn.Sequential(nn.Linear(5, 3), Strange(function))
    assert roles(net)["1.p"] == "unknown"
    before = [p.detach().clone() for p in net.parameters()]
    assert roles(net, torch.randn(8, 5))["1.p"] == role
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_module_that_fails_while_it_is_looked_at_is_left_as_it_was() -> None:
    def picky(x: Tensor, p: Tensor) -> Tensor:
        if float(p.max()) > 1:
            raise ValueError("no such value")
        return p * x

    net = nn.Sequential(nn.Linear(5, 3), Strange(picky))
    assert roles(net, torch.randn(8, 5))["1.p"] == "scale"  # by what uses it
    assert torch.equal(net[1].p, torch.full((3,), 0.7))


def test_unknown_roles_raise_unless_told() -> None:
    net = nn.Sequential(nn.Linear(5, 3), Strange(lambda x, p: x * torch.sigmoid(p * x)))
    with pytest.raises(UsageError, match=r"The role of 1\.p is unknown: pass example="):
        param_groups(net, 0.1)
    assert "1.p" in split(param_groups(net, 0.1, unknown="decay"))[0]
    assert "1.p" in split(param_groups(net, 0.1, unknown="exclude"))[1]
    assert "1.p" in split(param_groups(net, 0.1, example=torch.randn(2, 5)))[1]
    assert "1.p" in split(param_groups(net, 0.1, extra=["1.p"]))[1]
    mark_activation(net[1])
    assert "1.p" in split(param_groups(net, 0.1))[1]


def test_the_penalty_has_the_gradient_of_weight_decay() -> None:
    net = model()
    penalty(net, l1=0.3, l2=0.2).backward()
    for name, p in net.named_parameters():
        if name in ALPHAS:
            assert p.grad is None
        else:
            torch.testing.assert_close(p.grad, 0.2 * p.detach() + 0.3 * p.detach().sign())
    assert float(penalty(nn.ReLU(), l2=1.0)) == 0


def test_compiled_and_data_parallel_models_have_the_same_roles() -> None:
    net = model()
    plain = list(roles(net).values())
    compiled = torch.compile(net)
    assert list(roles(compiled).values()) == plain
    assert len(split(param_groups(compiled, 0.1, extra=["0.*"]))[1]) == 4
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net)
        assert list(roles(wrapped).values()) == plain
        assert len(split(param_groups(wrapped, 0.1, extra=["0.*"]))[1]) == 4
    finally:
        torch.distributed.destroy_process_group()


def test_fsdp2_shards_have_the_same_roles_groups_and_penalty() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net = model()
    plain, before = list(roles(net).values()), [p.detach().clone() for p in net.parameters()]
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        mesh = init_device_mesh("cpu", (1,))
        fully_shard(net[0], mesh=mesh)
        fully_shard(net, mesh=mesh)
        assert list(roles(net).values()) == plain
        assert split(param_groups(net, 0.1))[1] == ALPHAS
        (torch.zeros(()) + penalty(net, l2=0.2)).backward()
        for (name, p), w in zip(net.named_parameters(), before, strict=True):
            if name not in ALPHAS:
                torch.testing.assert_close(p.grad.full_tensor(), 0.2 * w)
    finally:
        torch.distributed.destroy_process_group()


def test_meta_device_and_parametrized_weights() -> None:
    with torch.device("meta"):
        net = model()
    assert split(param_groups(net, 0.1))[1] == ALPHAS
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.PReLU())
    assert set(roles(normed).values()) == {"weight", "bias", "activation"}
    assert "unknown" not in roles(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))).values()


def test_the_kaf_authors_class_is_known_by_its_name(monkeypatch) -> None:
    module = types.ModuleType("kafnets")
    code = (
        "import torch\nclass KAF(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.alpha = torch.nn.Parameter(torch.ones(1, 4, 1, 1, 20))\n"
    )
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, "kafnets", module)
    assert roles(nn.Sequential(nn.Linear(2, 4), module.KAF()))["1.alpha"] == "activation"


@pytest.mark.parametrize(
    ("name", "learned"), [("resnet18", 0), ("vit_tiny_patch16_224", 0), ("poolformerv2_s12", 25), ("convnext_atto", 0)]
)
def test_timm_models_are_known(name: str, learned: int) -> None:
    import timm

    with torch.device("meta"):
        net = timm.create_model(name)
    found = roles(net)
    assert [n for n, role in found.items() if role == "unknown"] == []
    stars = sum(type(m).__name__ == "StarReLU" and sum(1 for _ in m.parameters()) for m in net.modules())
    assert sum(role == "activation" for role in found.values()) == stars
    assert bool(stars) == bool(learned)
    param_groups(net, 0.05)


@pytest.mark.parametrize("kind", ["apertus", "llama", "bert", "gpt2", "mamba"])
def test_transformers_models_are_known(kind: str) -> None:
    import transformers

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"num_key_value_heads": 2} if kind in ("apertus", "llama") else {}
    small = {"n_embd": 32, "n_layer": 2, "n_head": 4} if kind == "gpt2" else small
    with torch.device("meta"):
        net = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, vocab_size=64, **small))
    found = roles(net)
    assert [n for n, role in found.items() if role == "unknown"] == []
    activation = {n.rpartition(".")[2] for n, role in found.items() if role == "activation"}
    assert activation == ({"alpha_p", "alpha_n"} if kind == "apertus" else set())
    if kind == "mamba":
        assert {found[n] for n in found if n.endswith(("A_log", ".D"))} == {"scale"}


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "convnext_tiny", "swin_t"])
def test_torchvision_models_are_known(name: str) -> None:
    import torchvision

    with torch.device("meta"):
        net = torchvision.models.get_model(name)
    assert [n for n, role in roles(net).items() if role == "unknown"] == []
    assert "activation" not in roles(net).values()
