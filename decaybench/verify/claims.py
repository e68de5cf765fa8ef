"""Claims about the methods, each with the comparison that measures it, and the answer to the thread."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from decaybench.optimizers import optimizer_factory
from decaybench.registry.spec import parse
from decaybench.strategies.plan import Setup
from decaybench.verify.conditions import OPTIMIZERS
from decaybench.verify.lockstep import ROUNDING, MethodComparison
from decaybench.verify.methods import method


@dataclass(frozen=True)
class Claim:
    """A statement about two methods, and whether it says that they are the same."""

    text: str
    optimizer: str
    left: str
    right: str
    same: bool
    clipping: str = "none"

    def measured(self, rows: Sequence[MethodComparison]) -> MethodComparison | None:
        """Finds the comparison that decides the claim, if there is one."""
        key = (self.optimizer, self.clipping, self.left, self.right)
        return next((r for r in rows if (r.optimizer, r.clipping, r.left, r.right) == key), None)


_UNUSED, _FIRST = "sgd, unused layer", "sgd+momentum, schedule on the first only"
_GROUPS, _TWO, _PENALTY, _APART = "exclude-alpha", "two-optimizers", "loss-penalty", "decoupled"
CLAIMS = (
    Claim("SGD without momentum: coupled decay is decoupled decay", "sgd", _GROUPS, _APART, True),
    Claim("SGD without momentum: coupled decay is the loss penalty ½λ‖w‖²", "sgd", _GROUPS, _PENALTY, True),
    Claim("The ½ forgotten: twice the decay", "sgd", _PENALTY, "forgotten-half", False),
    Claim("SGD with momentum: the loss penalty is coupled decay", "sgd+momentum", _GROUPS, _PENALTY, True),
    Claim("SGD with momentum: decoupled decay differs", "sgd+momentum", _GROUPS, _APART, False),
    Claim("Adam: coupled decay is the loss penalty", "adam", _GROUPS, _PENALTY, True),
    Claim("AdamW (Adam, decoupled) differs from Adam's coupled decay", "adam", _GROUPS, _APART, False),
    Claim("AdamW differs from Adam with the loss penalty", "adam", _PENALTY, _APART, False),
    Claim("A group with weight_decay=0 is a second optimizer without decay", "adamw", _GROUPS, _TWO, True),
    Claim("… under a schedule on both", "sgd+momentum, cosine schedule", _GROUPS, _TWO, True),
    Claim("… under clipping of the joint norm", "adamw", _GROUPS, _TWO, True, "joint"),
    Claim("… but not when only the first optimizer has the schedule", _FIRST, _GROUPS, _TWO, False),
    Claim("… nor when each optimizer clips by itself", "adamw", _GROUPS, _TWO, False, "per optimizer"),
    Claim(
        "Clipping: the penalty enters the norm, an optimizer's decay does not", "sgd", _GROUPS, _PENALTY, False, "joint"
    ),
    Claim("Gradient None: SGD skips the decay, a penalty creates the gradient", _UNUSED, _GROUPS, _PENALTY, False),
    Claim(
        "L1: the penalty is not soft-thresholding", "sgd, L1", _PENALTY + ",penalty=l1", "proximal-l1,on=weights", False
    ),
)


def answer(rows: Sequence[MethodComparison]) -> str:
    """Answers from what was measured whether two optimizers are problematic."""
    pair = [r for r in rows if {r.left, r.right} == {_GROUPS, _TWO}]
    same = [r for r in pair if r.verdict == "identical"]
    ends = [r for r in pair if r.verdict != "identical"]
    if not same:
        return "Are two optimizers problematic? Not compared here with param groups, or never identical to them."
    under = ", ".join(dict.fromkeys(r.optimizer for r in same if r.optimizer in OPTIMIZERS))
    clipped = " and ".join(
        dict.fromkeys("no clipping" if r.clipping == "none" else f"{r.clipping} clipping" for r in same)
    )
    text = (
        "Are two optimizers problematic? No: identical to param groups, largest difference "
        f"{max(r.max_difference for r in same):g} ({under}; {clipped})."
    )
    reasons = dict.fromkeys(f"{r.reason} (from step {r.parted})" for r in ends if r.parted)
    return text + (f" That ends where {'; or where '.join(reasons)}." if reasons else "")


# Optimizer, learning rate, λ, steps.
_SHRINKING = (("sgd", 0.1, 5e-4, 39_100), ("adamw", 1e-3, 0.01, 4_690))
CLOSED_FORM = "(1 − lr·λ)ⁿ"


def shrinkage() -> list[MethodComparison]:
    """Compares weight decay under zero gradient, step by step, with the closed form (1 − lr·λ)ⁿ."""
    return [_shrink(*condition) for condition in _SHRINKING]


def _shrink(optimizer: str, lr: float, decay: float, steps: int) -> MethodComparison:
    slope = nn.Parameter(torch.ones(1, dtype=torch.float64))
    (spec,) = parse("optimizer", OPTIMIZERS[optimizer])
    setup = Setup({"slope": slope}, frozenset({"slope"}), decay, optimizer_factory(spec, lr))
    (made,) = method("decay-all").build(setup).optimizers
    slope.grad = torch.zeros_like(slope)
    for _ in range(steps):
        made.step()
    difference = abs(float(slope.detach()) - (1 - lr * decay) ** steps)
    return MethodComparison(
        f"{optimizer}, zero gradient",
        "none",
        f"decay-all, lr {lr:g}, λ {decay:g}, {steps:,} steps",
        CLOSED_FORM,
        difference,
        "identical" if difference == 0 else "equal" if difference <= ROUNDING else "different",
        f"what learns nothing shrinks to ×{float(slope.detach()):.3f}",
    )


def known(rows: Sequence[MethodComparison]) -> list[tuple[str, bool, MethodComparison]]:
    """Lists every claim that these rows decide: its text, whether it says «the same», and the row."""
    decided = [(f.text, f.same, row) for f in CLAIMS if (row := f.measured(rows)) is not None]
    closed = [(f"{r.optimizer}: {r.left}", True, r) for r in rows if r.right == CLOSED_FORM]
    return decided + [(f"{text}: {CLOSED_FORM}", same, row) for text, same, row in closed]
