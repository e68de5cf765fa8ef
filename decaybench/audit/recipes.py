"""The recipes: which parameters other people's code decays. They are audited, never trained with.

A recipe takes a model and the role of each of its parameters and returns the names of those that it decays.
Parameters without ``requires_grad`` are decayed by none: they have no gradient, so every optimizer skips them.
"""

import re
from collections.abc import Callable, Mapping

from torch import nn

from decaybench.parameter_roles.library_rules import Role
from decaybench.parameter_roles.param_groups import decayed_names

Roles = Mapping[str, Role]
Recipe = Callable[[nn.Module, Roles], set[str]]


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def torch_default(model: nn.Module, found: Roles) -> set[str]:
    """Decays every parameter, as ``torch.optim.SGD(model.parameters(), weight_decay=λ)`` does."""
    return set(_trainable(model))


def exclude_1d(model: nn.Module, found: Roles) -> set[str]:
    """Decays what has two dimensions or more and is no ``.bias``, as timm's ``param_groups_weight_decay`` does.

    timm's own training script hands it what the model's ``no_weight_decay()`` names, and spares that, too.
    """
    return {name for name, p in _trainable(model).items() if p.ndim > 1 and not name.endswith(".bias")}


_HF_SPARES = re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm(\.|$)|_norm(\.|$)")


def hf_trainer(model: nn.Module, found: Roles) -> set[str]:
    """Decays by name as transformers' ``Trainer.get_decay_parameter_names``: no LayerNorm, no bias, no norm."""
    norms = [name for name, module in model.named_modules() if name and isinstance(module, nn.LayerNorm)]
    return {
        name
        for name in _trainable(model)
        if not _HF_SPARES.search(name.lower()) and not any(name.startswith(f"{norm}.") for norm in norms)
    }


_TORCHVISION_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
)


def torchvision_norms(model: nn.Module, found: Roles) -> set[str]:
    """Decays all but norms, as ``set_weight_decay`` of torchvision's references does with ``norm_weight_decay=0``."""
    norms = [name for name, module in model.named_modules() if isinstance(module, _TORCHVISION_NORMS)]
    return {name for name in _trainable(model) if name.rpartition(".")[0] not in norms}


def decaybench_default(model: nn.Module, found: Roles) -> set[str]:
    """Decays all but activation parameters and what the model marks itself, as `decaybench.param_groups` does."""
    return decayed_names(model, found, unknown="decay")
