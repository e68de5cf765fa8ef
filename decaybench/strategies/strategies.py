"""The strategies: how regularization is applied. Each one reads like the answer in the thread it came from.

A strategy takes a `Setup` and returns a `Plan`. λ is ``setup.decay`` throughout.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

Group = Literal["all", "weights", "activation"]


@dataclass(frozen=True)
class Setup:
    """What a strategy works with.

    Attributes:
        named: Every trainable parameter once, by name.
        alphas: The names of the activation parameters among them.
        decay: λ.
        optimizer: Makes the run's optimizer from parameters or param groups. Keywords: ``weight_decay``
            (default 0), and ``kind`` and ``lr`` (default: the run's).
        leading: Dimensions in front of a parameter's own: 1 where several seeds share one tensor.
    """

    named: dict[str, Parameter]
    alphas: frozenset[str]
    decay: float
    optimizer: Callable[..., Optimizer]
    leading: int = 0

    def group(self, which: Group) -> list[Parameter]:
        """The parameters that are activation parameters, all the others ("weights"), or all."""
        wanted = {"all": (True, False), "weights": (False,), "activation": (True,)}[which]
        return [p for name, p in self.named.items() if (name in self.alphas) in wanted]


@dataclass(frozen=True)
class Plan:
    """What a strategy decides: the optimizers, a term of the loss, something to do after each step."""

    optimizers: list[Optimizer]
    penalty: Callable[[], Tensor] | None = None
    after_step: Callable[[], None] | None = None


def no_decay(s: Setup) -> Plan:
    """Nothing is regularized."""
    return Plan([s.optimizer(s.group("all"))])


def decay_all(s: Setup) -> Plan:
    """``weight_decay`` on the optimizer: every parameter, PyTorch's default."""
    return Plan([s.optimizer(s.group("all"), weight_decay=s.decay)])


def exclude_alpha(s: Setup) -> Plan:
    """The thread's first answer: a param group of their own with ``weight_decay=0``."""
    groups = [
        {"params": s.group("weights"), "weight_decay": s.decay},
        {"params": s.group("activation"), "weight_decay": 0.0},
    ]
    return Plan([s.optimizer(groups)])


def loss_penalty(s: Setup, penalty: str = "l2", l1_ratio: float = 0.5, on: Group = "weights") -> Plan:
    """The thread's second answer: add the decay to the loss and do not use the optimizer's.

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
    """The thread's third answer: weights in one optimizer with decay, activation parameters in another."""
    optimizers = [s.optimizer(s.group("weights"), weight_decay=s.decay)]
    if s.alphas:
        optimizers.append(s.optimizer(s.group("activation"), kind=alpha_optimizer, lr=alpha_lr))
    return Plan(optimizers)


def exclude_1d(s: Setup) -> Plan:
    """The rule of timm and nanoGPT: no decay for biases and whatever has one dimension or none."""
    spared = {name for name, p in s.named.items() if p.ndim - s.leading <= 1 or name.endswith(".bias")}
    groups = [
        {"params": [p for name, p in s.named.items() if name not in spared], "weight_decay": s.decay},
        {"params": [p for name, p in s.named.items() if name in spared], "weight_decay": 0.0},
    ]
    return Plan([s.optimizer(groups)])


def alpha_only(s: Setup) -> Plan:
    """The reverse of `exclude_alpha`: what the decay of the activation parameters does by itself."""
    groups = [
        {"params": s.group("weights"), "weight_decay": 0.0},
        {"params": s.group("activation"), "weight_decay": s.decay},
    ]
    return Plan([s.optimizer(groups)])


def decay_to_init(s: Setup) -> Plan:
    """Activation parameters are pulled to where they started; the others to zero.

    During the step α is stored as α − α₀, so that the optimizer's own decay, of whatever kind, pulls α to α₀.
    """
    start = [(p, p.detach().clone()) for p in s.group("activation") if s.decay]

    def shift(sign: int) -> None:
        for alpha, alpha0 in start:
            alpha.data.add_(alpha0, alpha=sign)

    optimizer = s.optimizer(s.group("all"), weight_decay=s.decay)
    optimizer.register_step_pre_hook(lambda *_: shift(-1))
    optimizer.register_step_post_hook(lambda *_: shift(+1))
    return Plan([optimizer])


def proximal_l1(s: Setup, on: Group = "all") -> Plan:
    """Soft-thresholding by lr·λ after the step (ISTA): exact zeros, which a subgradient of L1 never reaches."""
    optimizer = s.optimizer(s.group("all"))
    chosen = s.group(on)

    def shrink() -> None:
        threshold = optimizer.param_groups[0]["lr"] * s.decay
        for p in chosen:
            p.data.copy_(p.data.sign() * (p.data.abs() - threshold).clamp(min=0))

    return Plan([optimizer], after_step=shrink)


def total(terms: Iterable[Any]) -> Any:
    """The sum, without a zero that would live on another device."""
    first, *rest = terms
    return sum(rest, first)
