"""Shows what each recipe, or a real optimizer, decays of a model."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter

from decaybench.audit.optimizers import AnyOptimizer, decayed_groups, name_of, remarks_on
from decaybench.audit.recipes import decayed_by
from decaybench.errors import UsageError
from decaybench.parameter_roles.library_rules import Role
from decaybench.parameter_roles.probe import Example
from decaybench.parameter_roles.roles import owner_of, roles
from decaybench.registry.recipes import RECIPES, Recipe

OPTIMIZER = "optimizer"  # the column of a real one


@dataclass(frozen=True)
class AuditedParameter:
    """One parameter of an audited model.

    Attributes:
        module: The name of the type of the module that owns it.
        numbers: Number of elements.
        decayed: For each recipe, whether it decays this parameter.
        by_running: Whether its role was found by running the model.
        optimizer: The class of the optimizer that has it, where real ones are audited.
    """

    name: str
    shape: tuple[int, ...]
    module: str
    role: Role
    numbers: int
    decayed: dict[str, bool]
    by_running: bool = False
    optimizer: str = ""


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        rows: One per parameter, in the model's order; a shared parameter once, under its first name.
        recipes: Names of the recipes, in the order of the columns.
        missing: Trainable parameters that no group of the optimizer has.
        repeated: Parameters that several groups of the optimizer have.
        strangers: Number of parameters in the optimizer that are not the model's.
        ran: Whether the model was run on an example input.
        remarks: What else a reader must know, a sentence each.
    """

    rows: list[AuditedParameter]
    recipes: list[str]
    missing: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    strangers: int = 0
    ran: bool = False
    remarks: list[str] = field(default_factory=list)

    def decayed(self, recipe: str, role: Role | None = None) -> list[AuditedParameter]:
        """Returns the parameters, of one role or of all, that a recipe decays."""
        return [r for r in self.rows if r.decayed[recipe] and role in (None, r.role)]

    def of(self, role: Role) -> list[AuditedParameter]:
        """Returns the parameters of a role."""
        return [r for r in self.rows if r.role == role]

    def alike(self) -> list[list[str]]:
        """Returns the recipes in groups that decay the same parameters of this model, in the order of the columns."""
        groups: dict[tuple[bool, ...], list[str]] = {}
        for recipe in self.recipes:
            groups.setdefault(tuple(row.decayed[recipe] for row in self.rows), []).append(recipe)
        return list(groups.values())


def audit(model: nn.Module, recipes: Mapping[str, Recipe] = RECIPES, example: Example | None = None) -> Audit:
    """Shows for every parameter of a model which of these recipes decay it.

    Args:
        model: Any module, also on the meta device.
        recipes: The recipes, by name.
        example: One batch of input, by which parameters in modules of unknown type are classified.
    """
    found = _Roles(model, example)
    decayed = {name: decayed_by(recipe, model, found.roles) for name, recipe in recipes.items()}
    return Audit(found.rows(decayed), list(decayed), ran=example is not None)


def audit_optimizer(model: nn.Module, optimizers: Sequence[AnyOptimizer], example: Example | None = None) -> Audit:
    """Shows what the param groups of real optimizers do to the parameters of a model."""
    groups = [(name_of(optimizer), group) for optimizer in optimizers for group in optimizer.param_groups]
    held = Counter(id(p) for _, group in groups for p in group["params"])
    decayed = decayed_groups([group for _, group in groups])
    pulled = {id(p) for (_, group), pulls in zip(groups, decayed, strict=True) if pulls for p in group["params"]}
    owner = {id(p): name for name, group in reversed(groups) for p in group["params"]}
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = _Roles(model, example)
    rows = found.rows(
        {OPTIMIZER: {name for name, p in named.items() if id(p) in pulled}},
        {name: owner.get(id(p), "") for name, p in model.named_parameters()},
    )
    return Audit(
        rows,
        [OPTIMIZER],
        missing=[name for name, p in named.items() if not held[id(p)]],
        repeated=[name for name, p in named.items() if held[id(p)] > 1],
        strangers=len(held.keys() - {id(p) for p in model.parameters()}),
        ran=example is not None,
        remarks=[*remarks_on(group for _, group in groups), *_matrices(rows)],
    )


def _matrices(rows: Iterable[AuditedParameter]) -> list[str]:
    """Says which activation parameters an optimizer of matrices has, which would orthogonalize their updates."""
    taken = [row.name for row in rows if row.role == "activation" and "muon" in row.optimizer.lower()]
    if not taken:
        return []
    return [f"Muon is made for weights of matrix products, and has activation parameters: {', '.join(taken)}."]


class _Roles:
    """The roles of a model's parameters, and how they were found."""

    def __init__(self, model: nn.Module, example: Example | None) -> None:
        for name, p in model.named_parameters():
            if isinstance(p, UninitializedParameter) and example is None:
                raise UsageError(f"{name} has no shape before the model has seen an input: give --input (example=).")
        self._model, self.roles = model, roles(model, example)
        if not self.roles:
            raise UsageError("The model has no parameters, so that there is nothing to audit.")
        by_type = self.roles if example is None else roles(model)
        self._by_running = (
            {name for name, role in by_type.items() if role == "unknown"} if example is not None else set()
        )

    def rows(
        self, decayed: Mapping[str, set[str]], optimizer: Mapping[str, str] | None = None
    ) -> list[AuditedParameter]:
        owners: dict[str, Any] = dict(self._model.named_modules())
        return [
            AuditedParameter(
                name,
                tuple(p.shape),
                type(owner_of(owners, name)[0]).__name__,
                self.roles[name],
                p.numel(),
                {recipe: name in names for recipe, names in decayed.items()},
                by_running=name in self._by_running,
                optimizer=(optimizer or {}).get(name, ""),
            )
            for name, p in self._model.named_parameters()
        ]
