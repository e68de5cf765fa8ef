"""Makes the optimizers of a trial: any class that takes param groups, with the decay of the strategy in each group."""

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from decaybench.errors import UsageError
from decaybench.optimizers import optimizer_factory
from decaybench.registry.optimizers import default_lr
from decaybench.registry.spec import Spec

Groups = list[dict[str, Any]]
MakeOptimizer = Callable[..., Optimizer]


class Several(Optimizer):
    """Several optimizers behind the face of one, for schedulers, gradient scalers and training loops.

    Args:
        optimizers: The optimizers; their param groups are shared, not copied.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        super().__init__([group for o in optimizers for group in o.param_groups], {})
        self.defaults = dict(optimizers[0].defaults)  # schedulers look here for momentum or betas
        self._share()

    def _share(self) -> None:
        """Shows the param groups and states of all."""
        self.param_groups = [group for o in self.optimizers for group in o.param_groups]
        self.state = ChainMap(*(o.state for o in self.optimizers))  # type: ignore[assignment]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps all of them; a closure is called once, for the first."""
        loss = closure() if closure is not None else None
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def train(self) -> None:
        """Switches those to training that know it (schedule-free ones do)."""
        self._switch("train")

    def eval(self) -> None:
        """Switches those to evaluation that know it (schedule-free ones do)."""
        self._switch("eval")

    def _switch(self, name: str) -> None:
        for optimizer in self.optimizers:
            switch = getattr(optimizer, name, None)
            if callable(switch):
                switch()

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of all."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a `state_dict`."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self._share()


def joined(optimizers: Sequence[Optimizer]) -> Optimizer:
    """Returns one optimizer: the only one, or all behind one face."""
    return optimizers[0] if len(optimizers) == 1 else Several(optimizers)


def own_decay(make: Callable[[Groups], Optimizer]) -> float:
    """Returns the decay that an optimizer has by itself, by making one for a parameter that nothing else uses.

    Raises:
        UsageError: When it cannot be made so.
    """
    try:
        made = make([{"params": [Parameter(torch.zeros(1, 1))]}])
        return float(made.param_groups[0].get("weight_decay", 0.0))
    except Exception as error:
        raise UsageError(
            f"trial.optimizer: the optimizer's own weight_decay cannot be told ({type(error).__name__}: {error}); give "
            "decaybench.trial(model, weight_decay=…)."
        ) from error


def factory(make: Callable[[Groups], Optimizer], lr: float | None) -> MakeOptimizer:
    """Returns the function by which a strategy makes the script's optimizer; see `decaybench.Setup`.

    Args:
        make: Makes the script's optimizer from param groups.
        lr: The script's learning rate, for a second optimizer of another kind that has none of its own.
    """

    def made(
        params: Iterable[Any], *, weight_decay: float = 0.0, kind: str | None = None, lr: float | None = None
    ) -> Optimizer:
        groups = _groups(params, weight_decay)
        if lr is not None:
            groups = [{**group, "lr": lr} for group in groups]
        if kind is not None:
            other = optimizer_factory(Spec.make("optimizer", kind, {}), lr or rate or default_lr(kind))
            return other(groups, weight_decay=weight_decay)
        optimizer = make(groups)
        _check(optimizer, groups)
        return optimizer

    rate = lr
    return made


def _groups(params: Iterable[Any], decay: float) -> Groups:
    """Makes param groups that each say their decay, and leaves out empty ones."""
    given = list(params)
    groups = given if given and isinstance(given[0], dict) else [{"params": given}]
    return [{"weight_decay": decay, **group} for group in groups if group["params"]]


def _check(optimizer: Any, groups: Groups) -> None:
    """Checks that an optimizer has what it was given, and that a group's ``weight_decay`` means something to it.

    Raises:
        UsageError: When it is none, lacks parameters, or knows no decay.
    """
    if not isinstance(optimizer, Optimizer):
        raise UsageError(f"trial.optimizer: {type(optimizer).__name__} is no torch.optim.Optimizer.")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    lost = [p for group in groups for p in group["params"] if id(p) not in held]
    if lost:
        raise UsageError(
            f"trial.optimizer: {type(optimizer).__name__} holds {len(held)} of the {len(held) + len(lost)} parameters "
            "that it was given; it must take them all, as param groups."
        )
    asked = {id(p): float(group["weight_decay"]) for group in groups for p in group["params"]}
    for group in optimizer.param_groups:
        other = [asked[id(p)] for p in group["params"] if asked.get(id(p)) != float(group.get("weight_decay", 0.0))]
        if other and "weight_decay" in group:
            raise UsageError(
                f"trial.optimizer: {type(optimizer).__name__} decays by {float(group['weight_decay']):g} what the "
                f"strategy decays by {other[0]:g}; it must take the groups as they are."
            )
    every = [o for o in getattr(optimizer, "optimizers", [optimizer]) if isinstance(o, Optimizer)]
    deaf = [type(o).__name__ for o in every if "weight_decay" not in o.defaults and not _is_several(o)]
    if deaf and any(group["weight_decay"] for group in groups):
        raise UsageError(
            f"trial.optimizer: {deaf[0]} has no weight_decay, so that a strategy that decays by the optimizer does "
            "nothing; loss-penalty and proximal-l1 do."
        )


def _is_several(optimizer: Optimizer) -> bool:
    return isinstance(optimizer, Several)


def split(
    which: Callable[[str, Parameter], str],
    makers: Mapping[str, Callable[[Groups], Optimizer]],
    names: Mapping[int, str],
) -> Callable[[Groups], Optimizer]:
    """Returns a function that divides param groups among several kinds of optimizers.

    Args:
        which: Gives, for the name of a parameter and the parameter, the name of its optimizer.
        makers: Makes each optimizer from its groups.
        names: The name of each parameter, by its id.

    Raises:
        UsageError: When it names an optimizer that is not there.
    """

    def make(groups: Groups) -> Optimizer:
        parts: dict[str, Groups] = {}
        for group in groups:
            divided: dict[str, list[Tensor]] = {}
            for p in group["params"]:
                divided.setdefault(which(names[id(p)], p), []).append(p)
            for name, params in divided.items():
                if name not in makers:
                    raise UsageError(
                        f"trial.optimizers: {names[id(params[0])]} belongs to {name!r}, and there are "
                        f"{', '.join(makers)}."
                    )
                parts.setdefault(name, []).append({**group, "params": params})
        return joined([makers[name](parts[name]) for name in makers if name in parts])

    return make
