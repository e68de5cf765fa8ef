"""The methods that are compared: strategies, and two variations that are only of interest here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from decaybench.registry import STRATEGIES
from decaybench.registry.build import construct
from decaybench.registry.spec import parse
from decaybench.strategies.plan import Plan, Setup
from decaybench.strategies.strategies import total

Via = Literal["optimizer", "loss", "apart"]


@dataclass(frozen=True)
class Method:
    """One method to regularize.

    Attributes:
        decays: The parameters that are pulled, in words.
        via: Where the pull enters: the optimizer's ``weight_decay``, the loss, or apart from both.
        form: Formula of the pull.
    """

    name: str
    build: Callable[[Setup], Plan]
    decays: str
    via: Via = "optimizer"
    form: str = "½λ‖w‖²"


def decoupled(s: Setup) -> Plan:
    """Shrinks whatever has a gradient by (1 − lr·λ) before each step (Loshchilov and Hutter 2017, arXiv 1711.05101).

    With Adam this is AdamW, with SGD the paper's SGDW.
    """
    optimizer, weights = s.optimizer(s.group("all")), s.group("weights")

    def pull() -> None:
        lr = optimizer.param_groups[0]["lr"]
        for w in weights:
            if w.grad is not None:
                w.data.mul_(1 - lr * s.decay)

    optimizer.register_step_pre_hook(lambda *_: pull())
    return Plan([optimizer])


def forgotten_half(s: Setup) -> Plan:
    """Adds λ‖w‖² to the loss, whose gradient is 2λw: the classic bug."""
    weights = s.group("weights")

    def term() -> Tensor:
        return s.decay * total(w.square().sum() for w in weights)  # type: ignore[no-any-return]

    return Plan([s.optimizer(s.group("all"))], penalty=term)


_WORDS = {
    "all": "every parameter",
    "none": "nothing",
    "weights": "all but the activation parameters",
    "activation": "the activation parameters only",
    "matrices": "what has two dimensions or more",
    "no biases": "all but the biases",
    "no norms or biases": "all but biases and norms",
}
_OWN = {
    "decoupled": Method("decoupled", decoupled, _WORDS["weights"], "apart"),
    "forgotten-half": Method("forgotten-half", forgotten_half, _WORDS["weights"], "loss", "λ‖w‖²"),
}
DEFAULT = ("exclude-alpha", "two-optimizers", "loss-penalty", "decoupled", "forgotten-half")
L1 = ("loss-penalty", "loss-penalty,penalty=l1", "proximal-l1,on=weights")


def method(text: str) -> Method:
    """Returns the method of a name: a strategy of the registry (with options), a user's own, or a variation.

    Raises:
        UsageError: For an unknown name or option.
    """
    if text in _OWN:
        return _OWN[text]
    (spec,) = parse("strategy", text)
    on = spec.options.get("on")
    entry = STRATEGIES.get(spec.name)
    decays = _WORDS[str(on) if on else entry.decays] if entry else f"what {text} chooses"
    if (layer := spec.options.get("layer")) is not None:
        decays = decays.replace("activation parameters", f"activation parameters of layer {layer}")
    via: dict[str, Via] = {"loss-penalty": "loss", "proximal-l1": "apart"}
    form = {"proximal-l1": "soft-thresholding", "decay-to-init": "½λ‖α − α₀‖²"}.get(spec.name, "½λ‖w‖²")
    if spec.options.get("penalty", "l2") != "l2":
        form = {"l1": "λ‖w‖₁", "elastic-net": "a mix of λ‖w‖₁ and ½λ‖w‖²"}[str(spec.options["penalty"])]
    if second := {k: v for k, v in spec.chosen.items() if k in ("alpha_optimizer", "alpha_lr")}:
        form += f" with {', '.join(f'{k}={v}' for k, v in second.items())}"
    return Method(
        text,
        lambda s: construct("strategy", spec, s),
        decays,
        via.get(spec.name, "optimizer"),
        form if entry else text,
    )
