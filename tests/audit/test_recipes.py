"""Every recipe against the function of the library it describes, name by name."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn

from decaybench import param_groups, roles
from decaybench.activations.kaf.module import KAF
from decaybench.audit.audit import audit

TIMM = ["resnet18", "vit_tiny_patch16_224", "poolformerv2_s12", "convnext_atto", "resnetv2_50d_evos"]
TORCHVISION = ["resnet50", "vit_b_16", "convnext_tiny", "swin_t"]
TRANSFORMERS = ["apertus", "llama", "bert", "gpt2", "mamba"]


def transformer(kind: str) -> nn.Module:
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2} if kind in ("apertus", "llama") else {}
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4} if kind == "gpt2" else sizes
    config = transformers.AutoConfig.for_model(kind, vocab_size=64, **sizes)
    return transformers.AutoModelForCausalLM.from_config(config)


def mixed() -> nn.Module:
    """Learned activations, two norms, a bare parameter at the top, something frozen."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.PReLU(4), nn.GroupNorm(2, 4), KAF(4), nn.LayerNorm(4), nn.Linear(4, 2))
    model.register_parameter("norm", nn.Parameter(torch.ones(2, 2)))
    model[0].requires_grad_(False)
    return model


def models() -> dict[str, Callable[[], nn.Module]]:
    import timm
    import torchvision

    made: dict[str, Callable[[], nn.Module]] = {"mixed": mixed}
    made |= {f"timm:{n}": lambda n=n: timm.create_model(n) for n in TIMM}
    made |= {f"torchvision:{n}": lambda n=n: torchvision.models.get_model(n) for n in TORCHVISION}
    return made | {f"transformers:{n}": lambda n=n: transformer(n) for n in TRANSFORMERS}


MODELS = models()


def named(model: nn.Module, parameters: Iterable[nn.Parameter]) -> set[str]:
    wanted = {id(p) for p in parameters}
    return {name for name, p in model.named_parameters() if id(p) in wanted}


def by_torch(model: nn.Module) -> set[str]:
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, weight_decay=0.1)
    return named(model, [p for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]])


def by_timm(model: nn.Module) -> set[str]:
    from timm.optim import param_groups_weight_decay

    groups = param_groups_weight_decay(model, weight_decay=0.1)
    return named(model, [p for g in groups if g["weight_decay"] for p in g["params"]])


def by_trainer(model: nn.Module) -> set[str]:
    from transformers import Trainer

    names = Trainer.get_decay_parameter_names(None, model)
    return {name for name, p in model.named_parameters() if name in names and p.requires_grad}


def by_torchvision(model: nn.Module) -> set[str]:
    # What the package ships of its training references: they give both of its halves their own decay.
    from torchvision.ops._utils import split_normalization_params

    _, other = split_normalization_params(model)
    return named(model, other)


def by_param_groups(model: nn.Module) -> set[str]:
    groups = param_groups(model, 0.1)
    return {name for g in groups if g["weight_decay"] for name in g["param_names"]}


THEIRS = {
    "torch": by_torch,
    "exclude-1d": by_timm,
    "hf-trainer": by_trainer,
    "torchvision": by_torchvision,
    "decaybench": by_param_groups,
}


@pytest.mark.parametrize("name", MODELS)
def test_every_recipe_decays_what_its_library_decays(name: str) -> None:
    with torch.device("meta"):
        model = MODELS[name]()
    if name == "mixed":  # param_groups refuses to guess what a bare parameter is
        model.norm._no_weight_decay = True
        model.norm._decaybench_role = "activation"
    done = audit(model)
    assert done.recipes == list(THEIRS)
    assert [row.name for row in done.rows] == [n for n, _ in model.named_parameters()]
    for recipe, theirs in THEIRS.items():
        assert {row.name for row in done.decayed(recipe)} == theirs(model), recipe


def test_the_rules_differ_where_the_facts_say_so() -> None:
    rows = {row.name: row for row in audit(nn.Sequential(nn.PReLU(3), KAF(3))).rows}
    assert rows["0.weight"].decayed == {
        "torch": True,
        "exclude-1d": False,
        "hf-trainer": True,
        "torchvision": True,
        "decaybench": False,
    }
    assert rows["1.alpha"].decayed == {
        "torch": True,
        "exclude-1d": True,
        "hf-trainer": True,
        "torchvision": True,
        "decaybench": False,
    }
    assert roles(nn.Sequential(KAF(3))) == {"0.alpha": "activation"}
