"""Every network with every activation on several image sizes; nothing shared; the stem and blocks as promised."""

import pytest
import torch
from torch import nn

from decaybench import load, registry, roles
from decaybench.errors import UsageError
from decaybench.parameter_roles.roles import activation_layers
from decaybench.study.study import read_grid
from decaybench.training.model import build_model
from helpers import REPOSITORY, one, tiny

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 9, 13)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", registry.ACTIVATIONS)
@pytest.mark.parametrize("network", [name for name, entry in registry.NETWORKS.items() if not entry.tokens])
def test_every_network_takes_every_activation(network: str, activation: str, shape: tuple[int, int, int]) -> None:
    # Eight layers of something that grows as s² overflow without normalization.
    options = ",norm=true" if (network, activation) == ("vgg", "xielu") else ""
    config = one(network=network + options, activation=activation)
    if network == "kafnet" and shape == (1, 8, 8):
        with pytest.raises(UsageError, match="at least 9×9, not 8×8"):
            build_model(config, shape, 5)
        return
    model = build_model(config, shape, 5)
    x = torch.randn(4, *shape)
    nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert "unknown" not in roles(model).values()


@pytest.mark.parametrize(
    ("network", "count"), [("forum", 2), ("mlp,depth=3", 3), ("kafnet", 2), ("vgg,depth=11", 11), ("resnet18", 17)]
)
def test_each_place_has_an_activation_of_its_own_and_it_is_used_once(network: str, count: int) -> None:
    model = build_model(one(network=network, activation="prelu"), (1, 28, 28), 10)
    layers = activation_layers(model)
    calls = dict.fromkeys(layers, 0)
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    model(torch.randn(2, 1, 28, 28))
    assert calls == dict.fromkeys(layers, 1)
    assert len(layers) == count
    assert not [m for m in model.modules() if isinstance(m, nn.ReLU)]


def test_resnet18_is_torchvisions_but_for_stem_and_activations() -> None:
    from torchvision.models import resnet18

    ours = build_model(one(network="resnet18", activation="relu"), (3, 32, 32), 10)
    theirs = resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.load_state_dict(ours.state_dict())  # strict: the same names and shapes
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_forum_is_conv_act_conv_act_conv() -> None:
    model = build_model(one(network="forum", activation="prelu"), (1, 28, 28), 10)
    assert [type(m).__name__ for m in model] == ["Conv2d", "PReLU", "Conv2d", "PReLU", "Conv2d", "Flatten"]


@pytest.mark.parametrize(
    ("network", "kinds"),
    [
        ("forum,norm=true", "Conv2d BatchNorm2d PReLU Conv2d BatchNorm2d PReLU Conv2d Flatten"),
        ("mlp,norm=true", "Flatten Linear BatchNorm1d PReLU Linear BatchNorm1d PReLU Linear"),
    ],
)
def test_norms_come_before_activations_and_take_the_place_of_biases(network: str, kinds: str) -> None:
    model = build_model(one(network=network, activation="prelu"), (1, 28, 28), 10)
    assert " ".join(type(m).__name__ for m in model) == kinds
    *hidden, last = [m for m in model if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [m.bias is None for m in hidden] == [True, True]
    assert last.bias is not None


def test_an_option_that_was_added_leaves_the_runs_from_before_as_they_were() -> None:
    """Their id is a hash of their options; an added one is no part of it while it has its default."""
    for before, now in (("forum,width=16", "forum,norm=false"), ("mlp,depth=2", "mlp,norm=false")):
        assert one(network=before).run_id == one(network=now).run_id
        assert "norm" not in one(network=before).network.options
    assert one(network="forum,norm=true").run_id != one(network="forum").run_id
    folder = REPOSITORY / "results" / "first-look"
    assert {run.run_id for run in read_grid(folder / "study.toml", {}).runs()} == set(load(folder)["run_id"])


def test_vgg_depth_and_pooling_shapes() -> None:
    model = build_model(one(network="vgg,depth=14,width=8,norm=true", activation="prelu"), (3, 32, 32), 10)
    convs = [m for m in model if isinstance(m, nn.Conv2d)]
    assert len(convs) == sum(isinstance(m, nn.BatchNorm2d) for m in model) == 14
    assert [c.out_channels for c in convs] == sorted(c.out_channels for c in convs)
    assert {c.out_channels for c in convs} == {8, 16, 32}


def test_weights_do_not_depend_on_what_the_activation_draws() -> None:
    models = [
        build_model(one(network="forum", activation=a), (1, 8, 8), 10)
        for a in ("relu", "prelu", "kaf", "kaf,init=random")
    ]
    first, *others = [{k: v for k, v in m.state_dict().items() if roles(m)[k] in ("weight", "bias")} for m in models]
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[k], other[k]) for k in first)
    kaf = models[3]
    assert not torch.equal(kaf[1].alpha, kaf[3].alpha[: len(kaf[1].alpha)])


def test_building_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build_model(one(activation="kaf,init=random"), (1, 8, 8), 10)
    assert torch.equal(before, torch.get_rng_state())


def test_lazy_layers_start_from_the_seed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lazy.py").write_text(
        "from torch import nn\ndef net(shape, classes, activation):\n"
        "    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))\n"
    )
    runs = tiny(network="lazy.py:net", strategy="decay-all", activation="relu", seeds=2).runs()
    first, again, other = (build_model(run, (1, 8, 8), 4)[1].weight for run in (runs[0], runs[0], runs[1]))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
