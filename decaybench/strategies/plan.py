"""What a strategy gets and returns, and how the plan of a run is made."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from decaybench.errors import UsageError
from decaybench.optimizers import optimizer_factory
from decaybench.parameter_roles.roles import roles
from decaybench.registry.build import construct
from decaybench.registry.strategies import Subset
from decaybench.study.config import RunConfig


@dataclass(frozen=True)
class Setup:
    """What a strategy gets.

    Attributes:
        named: Every trainable parameter once, by name.
        alphas: The names of the activation parameters among them.
        decay: λ.
        optimizer: Makes the run's optimizer from parameters or param groups. Keywords: ``weight_decay``
            (default 0), and ``kind`` and ``lr`` (default: the run's).
        roles: The role of every parameter, by name.
        leading: Dimensions in front of a parameter's own: 1 where several seeds share one tensor.
    """

    named: dict[str, Parameter]
    alphas: frozenset[str]
    decay: float
    optimizer: Callable[..., Optimizer]
    leading: int = 0
    roles: Mapping[str, str] = field(default_factory=dict)

    def group(self, which: Subset) -> list[Parameter]:
        """Returns the activation parameters, all the others ("weights"), or all."""
        wanted = {"all": (True, False), "weights": (False,), "activation": (True,)}[which]
        return [p for name, p in self.named.items() if (name in self.alphas) in wanted]

    def of_layer(self, layer: int | None) -> "Setup":
        """Returns a setup in which only one layer's activation parameters count as such.

        Args:
            layer: The layer, counted from 0 among the modules that hold activation parameters; None means all.

        Raises:
            UsageError: When there is no such layer.
        """
        if layer is None or not self.alphas:
            return self
        owners = list(dict.fromkeys(name.rpartition(".")[0] for name in self.named if name in self.alphas))
        if layer >= len(owners):
            layers = f"{len(owners)} layer{'s' * (len(owners) != 1)}"
            raise UsageError(
                f"The strategy's option layer = {layer}: the network has {layers} with activation parameters, counted "
                f"from 0 to {len(owners) - 1}."
            )
        chosen = {name for name in self.alphas if name.rpartition(".")[0] == owners[layer]}
        return replace(self, alphas=frozenset(chosen))


@dataclass(frozen=True)
class Plan:
    """What a strategy returns: optimizers, a term of the loss, a function to call after each step."""

    optimizers: list[Optimizer]
    penalty: Callable[[], Tensor] | None = None
    after_step: Callable[[], None] | None = None


def strategy_setup(config: RunConfig, model: nn.Module, shared: Mapping[str, Parameter] | None = None) -> Setup:
    """Makes what the strategy of a run gets.

    Args:
        config: The run, or one of several that differ only in their seed.
        model: The network of the run.
        shared: For several runs at once, the parameters of all of them, each (runs, …).
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = roles(model)
    alphas = frozenset(name for name, role in found.items() if role == "activation" and name in named)
    optimizer = optimizer_factory(config.optimizer, config.lr)
    if shared is None:
        return Setup(named, alphas, config.weight_decay, optimizer, roles=found)
    return Setup(dict(shared), alphas, config.weight_decay, optimizer, leading=1, roles=found)


def make_plan(config: RunConfig, model: nn.Module, shared: Mapping[str, Parameter] | None = None) -> Plan:
    """Calls the strategy of a run and checks its plan; the arguments are those of `strategy_setup`.

    Raises:
        UsageError: When a user's own strategy returns no plan, or forgets or repeats a parameter.
    """
    given = strategy_setup(config, model, shared)
    return check_plan(construct("strategy", config.strategy, given), config.strategy.name, given.named)


def check_plan(plan: Any, name: str, named: Mapping[str, Parameter]) -> Plan:
    """Checks what a strategy returned.

    Args:
        plan: What it returned.
        name: Its name.
        named: Every trainable parameter by name.

    Raises:
        UsageError: When it is no plan, or forgets or repeats a parameter.
    """
    if not isinstance(plan, Plan):
        raise UsageError(f"The strategy {name} returned {type(plan).__name__}, not a decaybench.Plan.")
    if not isinstance(plan.optimizers, list | tuple) or not all(isinstance(o, Optimizer) for o in plan.optimizers):
        raise UsageError(f"The strategy {name}: Plan.optimizers must be a list of torch optimizers.")
    for part, function in (("penalty", plan.penalty), ("after_step", plan.after_step)):
        if function is not None and not callable(function):
            raise UsageError(f"The strategy {name}: Plan.{part} must be a function or None.")
    held = Counter(id(p) for o in plan.optimizers for group in o.param_groups for p in group["params"])
    wrong = [f"{parameter} is in {held[id(p)]} param groups" for parameter, p in named.items() if held[id(p)] != 1]
    if wrong:
        raise UsageError(f"The strategy {name}: {', '.join(wrong)}; each parameter belongs in one.")
    return plan
