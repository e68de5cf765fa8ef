"""The conditions under which methods are compared, and why two methods differ under one of them."""

from dataclasses import dataclass, replace
from typing import Literal

from decaybench.verify.methods import DEFAULT, L1, Method

Clipping = Literal["none", "joint", "per optimizer"]
CLIPPINGS: tuple[Clipping, ...] = ("none", "joint", "per optimizer")
# A name that says what matters here, and what the registry calls it.
OPTIMIZERS = {
    "sgd": "sgd,momentum=0",
    "sgd+momentum": "sgd,momentum=0.9",
    "adam": "adam",
    "adamw": "adamw",
    "rmsprop": "rmsprop",
}


@dataclass(frozen=True)
class Condition:
    """One condition of a comparison.

    Attributes:
        optimizer: A key of `OPTIMIZERS`.
        clipping: Of the gradient's norm: over all parameters at once, or each optimizer by itself.
        schedule: A cosine on every optimizer, or forgotten on all but the first.
        unused: Whether the model has a layer that the loss does not depend on, so that its gradient is None.
        methods: Names of the methods that are compared, pair by pair.
    """

    optimizer: str
    clipping: Clipping = "none"
    schedule: Literal["none", "every", "first"] = "none"
    unused: bool = False
    methods: tuple[str, ...] = DEFAULT

    @property
    def label(self) -> str:
        """The optimizer and whatever else is special."""
        special = {"none": "", "every": ", cosine schedule", "first": ", schedule on the first only"}
        unused, l1 = ", unused layer" * self.unused, ", L1" * (self.methods == L1)
        return self.optimizer + special[self.schedule] + unused + l1


def conditions(methods: tuple[str, ...]) -> list[Condition]:
    """Lists every optimizer under every clipping, and the special conditions."""
    grid = [Condition(optimizer, clipping, methods=methods) for clipping in CLIPPINGS for optimizer in OPTIMIZERS]
    momentum = Condition("sgd+momentum", methods=methods)
    special = [replace(momentum, schedule="every"), replace(momentum, schedule="first")]
    special += [Condition("sgd", unused=True, methods=methods)]
    return grid + special + ([Condition("sgd", methods=L1)] if methods == DEFAULT else [])


def cause(left: Method, right: Method, condition: Condition, optimizers: tuple[int, int]) -> str | None:
    """Explains why two methods differ in a condition; None where they should not.

    Args:
        left: One method.
        right: The other method.
        condition: The condition.
        optimizers: Number of optimizers of each.
    """
    methods = (left, right)
    routes = {_route(w, condition.optimizer) for w in methods}
    if left.decays != right.decays:
        return f"{left.name} decays {left.decays}, {right.name} {right.decays}"
    if left.form != right.form:
        return _FORMS.get(frozenset((left.form, right.form)), f"{left.form} is not {right.form}")
    if optimizers[0] != optimizers[1] and condition.clipping == "per optimizer":
        return "each optimizer clips by the norm of its own gradients, and these norms differ"
    if optimizers[0] != optimizers[1] and condition.schedule == "first":
        return "the second optimizer's learning rate is not scheduled"
    if len(routes) == 1:
        return None
    if "loss" in routes and condition.unused:
        return "an optimizer skips a parameter whose gradient is None, decay and all; the penalty gives it a gradient"
    if "loss" in routes and condition.clipping != "none":
        return "the penalty's gradient is in the norm that is clipped; an optimizer's decay comes after the clipping"
    if "apart" in routes and condition.optimizer != "sgd":
        return _APART[condition.optimizer]
    return None


def _route(way: Method, optimizer: str) -> str:
    """Returns where the pull of a method enters; AdamW's own decay is apart from the gradient."""
    return "apart" if optimizer == "adamw" and way.via == "optimizer" else way.via


_FORMS = {
    frozenset(("½λ‖w‖²", "λ‖w‖²")): "without the ½ the gradient is 2λw: twice the decay",
    frozenset(("½λ‖w‖²", "λ‖w‖₁")): "L2 pulls by λw, L1 by λ·sign(w)",
    frozenset(("λ‖w‖₁", "soft-thresholding")): "a subgradient of L1 steps across zero; soft-thresholding stops there",
}
_ADAPTIVE = "an adaptive optimizer divides a decay that is part of the gradient by the gradient's size"
_APART = {
    "sgd+momentum": "momentum gathers a decay that is part of the gradient; one that is apart acts once",
    "adam": _ADAPTIVE,
    "adamw": _ADAPTIVE,
    "rmsprop": _ADAPTIVE,
}
