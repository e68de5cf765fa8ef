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


def by_create_optimizer(model: nn.Module) -> set[str]:
    from timm.optim import create_optimizer_v2

    groups = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=0.1).param_groups
    return named(model, [p for g in groups if g["weight_decay"] for p in g["params"]])


def by_old_trainer(model: nn.Module) -> set[str]:
    from transformers.trainer_pt_utils import get_parameter_names

    names = [name for name in get_parameter_names(model, [nn.LayerNorm]) if "bias" not in name]
    return {name for name, p in model.named_parameters() if name in names and p.requires_grad}


def by_name(spares: Callable[[str, nn.Parameter], bool]) -> Callable[[nn.Module], set[str]]:
    """A rule that goes by a parameter's name and shape, as its authors wrote it."""
    return lambda model: {n for n, p in model.named_parameters() if p.requires_grad and not spares(n, p)}


def by_owner(spares: Callable[[nn.Module, str], bool]) -> Callable[[nn.Module], set[str]]:
    """A rule that goes by the module of a parameter and its name there, as its authors wrote it."""

    def decayed(model: nn.Module) -> set[str]:
        found = set()
        for prefix, module in model.named_modules():
            for own, p in module.named_parameters(recurse=False):
                if p.requires_grad and not spares(module, own):
                    found.add(f"{prefix}.{own}" if prefix else own)
        return found & {name for name, _ in model.named_parameters()}

    return decayed


BATCH, INSTANCE = nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm
TORCH_NORMS = tuple(v for k, v in nn.__dict__.items() if "Norm" in k)
DETECTRON2 = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.InstanceNorm1d),
    *(nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LayerNorm, nn.LocalResponseNorm),
)
NEOX = ("LayerNorm", "RMSNorm", "ScaleNorm", "TELayerNorm", "TERMSNorm", "MixedFusedLayerNorm")
OPENRLHF = ("bias", "layer_norm.weight", "layernorm.weight", "norm.weight", "ln_f.weight")


def ultralytics(model: nn.Module) -> set[str]:
    found = set()
    for prefix, module in model.named_modules():
        for own, p in module.named_parameters(recurse=False):
            full = f"{prefix}.{own}" if prefix else own
            if "bias" not in full and not isinstance(module, TORCH_NORMS) and "logit_scale" not in full:
                found |= {full} if p.requires_grad else set()
    return found & {name for name, _ in model.named_parameters()}


# Of packages that the tests install, their own functions; of the others what their sources say. MMEngine's, fastai's,
# Ultralytics' and open_clip's were run once beside these, on the same models (in the note on the audit's recipes).
THEIRS = {
    "torch": by_torch,
    "exclude-1d": by_timm,
    "timm": by_create_optimizer,
    "nanogpt": by_name(lambda n, p: p.dim() < 2),
    "exactly-1d": by_name(lambda n, p: len(p.shape) == 1 or n.endswith(".bias")),
    "bert": by_name(lambda n, p: any(nd in n for nd in ["bias", "LayerNorm.weight"])),
    "hf-trainer": by_trainer,
    "hf-trainer-4.48": by_old_trainer,
    "torchvision": by_torchvision,
    "ultralytics": ultralytics,
    "mmengine": by_owner(lambda m, n: isinstance(m, (BATCH, INSTANCE, nn.GroupNorm, nn.LayerNorm)) or n == "bias"),
    "detectron2": by_owner(lambda m, n: isinstance(m, DETECTRON2)),
    "open_clip": by_name(lambda n, p: p.ndim < 2 or any(t in n for t in ("bn", "ln", "bias", "logit_scale"))),
    "fastai": by_owner(lambda m, n: isinstance(m, (BATCH, INSTANCE, nn.LayerNorm)) or n == "bias"),
    "dinov2": by_name(lambda n, p: n.endswith(".bias") or "norm" in n or "gamma" in n),
    "gpt-neox": by_owner(lambda m, n: type(m).__name__ in NEOX or n == "bias"),
    "openrlhf": by_name(lambda n, p: any(nd in n for nd in OPENRLHF)),
    "muon": by_name(lambda n, p: p.ndim < 2 or "embed" in n.lower() or "head" in n.lower()),
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
    spared = {name for name, decays in rows["0.weight"].decayed.items() if not decays}
    assert spared == {"exclude-1d", "timm", "nanogpt", "exactly-1d", "open_clip", "muon", "decaybench"}
    assert {name for name, decays in rows["1.alpha"].decayed.items() if not decays} == {"decaybench"}
    assert roles(nn.Sequential(KAF(3))) == {"0.alpha": "activation"}
