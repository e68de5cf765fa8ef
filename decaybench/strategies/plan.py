"""What the strategy of a run makes of its network."""

from collections import Counter
from collections.abc import Mapping

from torch import nn
from torch.nn import Parameter

from decaybench.errors import UsageError
from decaybench.optimizers import optimizer_factory
from decaybench.parameter_roles.roles import roles
from decaybench.registry.build import construct
from decaybench.strategies.strategies import Plan, Setup
from decaybench.study.config import RunConfig


def setup(config: RunConfig, model: nn.Module, shared: Mapping[str, Parameter] | None = None) -> Setup:
    """What the strategy of a run works with.

    Args:
        config: The run, or one of several that differ only in their seed.
        model: Its network.
        shared: For several runs at once, the parameters of all of them, each (runs, …).
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    alphas = frozenset(name for name, role in roles(model).items() if role == "activation" and name in named)
    optimizer = optimizer_factory(config.optimizer, config.lr)
    if shared is None:
        return Setup(named, alphas, config.weight_decay, optimizer)
    return Setup(dict(shared), alphas, config.weight_decay, optimizer, leading=1)


def make_plan(config: RunConfig, model: nn.Module, shared: Mapping[str, Parameter] | None = None) -> Plan:
    """What the strategy of a run decides; the arguments are those of `setup`.

    Raises:
        UsageError: When a strategy of somebody's own returns no plan, or forgets or repeats a parameter.
    """
    given = setup(config, model, shared)
    plan = construct("strategy", config.strategy, given)
    if not isinstance(plan, Plan):
        raise UsageError(f"The strategy {config.strategy.name} returned {type(plan).__name__}, not a decaybench.Plan.")
    held = Counter(id(p) for o in plan.optimizers for group in o.param_groups for p in group["params"])
    wrong = [f"{name} is in {held[id(p)]} param groups" for name, p in given.named.items() if held[id(p)] != 1]
    if wrong:
        raise UsageError(f"The strategy {config.strategy.name}: {', '.join(wrong)}; each parameter belongs in one.")
    return plan
