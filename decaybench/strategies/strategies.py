"""The strategies: how regularization is applied. Each one reads like the answer in the thread it came from.

A strategy takes a `Setup` and returns a `Plan`. λ is ``setup.decay`` throughout.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor

from decaybench.registry.strategies import Subset
from decaybench.strategies.plan import Plan, Setup


def no_decay(s: Setup) -> Plan:
    """Trains without any weight decay, the control of every comparison."""
    return Plan([s.optimizer(s.group("all"))])


def decay_all(s: Setup) -> Plan:
    """Decays every parameter, as ``weight_decay`` on ``model.parameters()`` does."""
    return Plan([s.optimizer(s.group("all"), weight_decay=s.decay)])


def exclude_alpha(s: Setup, layer: int | None = None) -> Plan:
    """Puts activation parameters into a param group with ``weight_decay=0``: the thread's first answer."""
    s = s.of_layer(layer)
    groups = [
        {"params": s.group("weights"), "weight_decay": s.decay},
        {"params": s.group("activation"), "weight_decay": 0.0},
    ]
    return Plan([s.optimizer(groups)])


def loss_penalty(s: Setup, penalty: str = "l2", l1_ratio: float = 0.5, on: Subset = "weights") -> Plan:
    """Adds the decay of the weights to the loss instead of using the optimizer's: the thread's second answer.

    ``l2`` is ½λ‖w‖², whose gradient is the λw of the optimizer; the ½ is the classic bug. ``l1`` is λ‖w‖₁,
    ``elastic-net`` mixes both by ``l1_ratio``.
    """
    share = {"l1": 1.0, "l2": 0.0, "elastic-net": l1_ratio}[penalty]
    regularized = s.group(on)

    def term() -> Tensor:
        l1 = total(w.abs().sum() for w in regularized) if share > 0 else 0.0
        l2 = total(w.square().sum() for w in regularized) if share < 1 else 0.0
        return s.decay * (share * l1 + (1 - share) * 0.5 * l2)  # type: ignore[return-value]

    return Plan([s.optimizer(s.group("all"))], penalty=term if regularized else None)


def two_optimizers(s: Setup, alpha_optimizer: str | None = None, alpha_lr: float | None = None) -> Plan:
    """Gives the activation parameters a second optimizer without decay: the thread's third answer."""
    optimizers = [s.optimizer(s.group("weights"), weight_decay=s.decay)]
    if s.alphas:
        optimizers.append(s.optimizer(s.group("activation"), kind=alpha_optimizer, lr=alpha_lr))
    return Plan(optimizers)


def exclude_1d(s: Setup) -> Plan:
    """Spares biases and whatever has one dimension or none: the rule of timm and nanoGPT."""
    spared = {name for name, p in s.named.items() if p.ndim - s.leading <= 1 or name.endswith(".bias")}
    groups = [
        {"params": [p for name, p in s.named.items() if name not in spared], "weight_decay": s.decay},
        {"params": [p for name, p in s.named.items() if name in spared], "weight_decay": 0.0},
    ]
    return Plan([s.optimizer(groups)])


def exclude_bias(s: Setup) -> Plan:
    """Spares biases only, which `exclude_1d` spares together with slopes."""
    return Plan([s.optimizer(_spared(s, {"bias"}))])


def exclude_norm_bias(s: Setup) -> Plan:
    """Spares biases and the parameters of normalization layers, and decays activation parameters."""
    return Plan([s.optimizer(_spared(s, {"bias", "norm"}))])


def _spared(s: Setup, kinds: set[str]) -> list[dict[str, Any]]:
    """Returns param groups with decay, and without for parameters of some roles."""
    spared = {name for name in s.named if s.roles.get(name) in kinds}
    return [
        {"params": [p for name, p in s.named.items() if name not in spared], "weight_decay": s.decay},
        {"params": [p for name, p in s.named.items() if name in spared], "weight_decay": 0.0},
    ]


def alpha_only(s: Setup, layer: int | None = None) -> Plan:
    """Decays the activation parameters only, to see what that does by itself."""
    s = s.of_layer(layer)
    groups = [
        {"params": s.group("weights"), "weight_decay": 0.0},
        {"params": s.group("activation"), "weight_decay": s.decay},
    ]
    return Plan([s.optimizer(groups)])


def decay_to_init(s: Setup) -> Plan:
    """Pulls activation parameters to where they started, the others to zero.

    During the step α is stored as α − α₀, so that the optimizer's own decay, of whatever kind, pulls α to α₀.
    """
    start = [(p, p.detach().clone()) for p in s.group("activation") if s.decay]

    def shift(sign: int) -> None:
        for alpha, alpha0 in start:
            alpha.data.add_(alpha0, alpha=sign)

    optimizer = s.optimizer(s.group("all"), weight_decay=s.decay)
    optimizer.register_step_pre_hook(partial(_after_closure, lambda: shift(-1)))
    optimizer.register_step_post_hook(lambda *_: shift(+1))
    return Plan([optimizer])


def _after_closure(act: Callable[[], None], optimizer: Any, args: Any, kwargs: Any) -> Any:
    """Acts before a step, but after its closure, which computes the gradients at the parameters as they are."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        return act()

    def then_act() -> Any:
        loss = closure()
        act()
        return loss

    return (args[0], then_act), {}


def proximal_l1(s: Setup, on: Subset = "all") -> Plan:
    """Soft-thresholds by lr·λ after the step (ISTA), which reaches zeros that a subgradient of L1 never does."""
    optimizer = s.optimizer(s.group("all"))
    chosen = {id(p) for p in s.group(on)}

    def shrink() -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if id(p) in chosen:
                    p.data.copy_(p.data.sign() * (p.data.abs() - group["lr"] * s.decay).clamp(min=0))

    return Plan([optimizer], after_step=shrink)


def total(terms: Iterable[Any]) -> Any:
    """Sums tensors without a zero that would be on another device."""
    first, *rest = terms
    return sum(rest, first)
