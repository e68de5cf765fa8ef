"""Shows what each recipe, or a real optimizer, decays of a model."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from decaybench import registry
from decaybench.audit.recipes import Recipe
from decaybench.errors import UsageError
from decaybench.parameter_roles.library_rules import Role
from decaybench.parameter_roles.roles import owner_of, roles
from decaybench.registry import imports

OPTIMIZER = "optimizer"  # the column of a real one


@dataclass(frozen=True)
class AuditedParameter:
    """One parameter of an audited model.

    Attributes:
        module: The name of the type of the module that owns it.
        numbers: Number of elements.
        decayed: For each recipe, whether it decays this parameter.
    """

    name: str
    shape: tuple[int, ...]
    module: str
    role: Role
    numbers: int
    decayed: dict[str, bool]


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        rows: One per parameter, in the model's order; a shared parameter once, under its first name.
        recipes: Names of the recipes, in the order of the columns.
        missing: Trainable parameters that no group of the optimizer has.
        repeated: Parameters that several groups of the optimizer have.
        strangers: Number of parameters in the optimizer that are not the model's.
    """

    rows: list[AuditedParameter]
    recipes: list[str]
    missing: list[str]
    repeated: list[str]
    strangers: int = 0

    def decayed(self, recipe: str, role: Role | None = None) -> list[AuditedParameter]:
        """Returns the parameters, of one role or of all, that a recipe decays."""
        return [r for r in self.rows if r.decayed[recipe] and role in (None, r.role)]

    def of(self, role: Role) -> list[AuditedParameter]:
        """Returns the parameters of a role."""
        return [r for r in self.rows if r.role == role]


def audit(model: nn.Module, recipes: Iterable[str] = registry.RECIPES, example: Tensor | None = None) -> Audit:
    """Shows for every parameter of a model which of these recipes decay it.

    Args:
        model: Any module, also on the meta device.
        recipes: Names of `registry.RECIPES`.
        example: One batch of input, by which modules of unknown type are classified.
    """
    found = roles(model, example)
    decayed: dict[str, set[str]] = {}
    for name in recipes:
        recipe: Recipe = imports.load(registry.RECIPES[name].target)
        decayed[name] = recipe(model, found)
    return Audit(_rows(model, found, decayed), list(decayed), [], [])


def audit_optimizer(model: nn.Module, optimizers: Iterable[Optimizer], example: Tensor | None = None) -> Audit:
    """Shows what the param groups of real optimizers do to the parameters of a model."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    held = Counter(id(p) for group in groups for p in group["params"])
    pulled = {id(p) for group in groups if _decay(group) for p in group["params"]}
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows = _rows(model, roles(model, example), {OPTIMIZER: {name for name, p in named.items() if id(p) in pulled}})
    return Audit(
        rows,
        [OPTIMIZER],
        missing=[name for name, p in named.items() if not held[id(p)]],
        repeated=[name for name, p in named.items() if held[id(p)] > 1],
        strangers=len(held.keys() - {id(p) for p in model.parameters()}),
    )


def _decay(group: Mapping[str, Any]) -> float:
    """Returns the weight decay of a param group as a plain number, whatever class it is of."""
    value = group.get("weight_decay")
    return 0.0 if value is None else float(value)


def _rows(model: nn.Module, found: Mapping[str, Role], decayed: Mapping[str, set[str]]) -> list[AuditedParameter]:
    owners = dict(model.named_modules())
    for name, p in model.named_parameters():
        if is_lazy(p):
            raise UsageError(f"{name} has no shape before the model has seen an input: give --input (example=).")
    return [
        AuditedParameter(
            name,
            tuple(p.shape),
            type(owner_of(owners, name)[0]).__name__,
            found[name],
            p.numel(),
            {recipe: name in names for recipe, names in decayed.items()},
        )
        for name, p in model.named_parameters()
    ]
