"""Trains all methods of a condition side by side and measures how far each pair is apart."""

import copy
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from decaybench.errors import UsageError
from decaybench.optimizers import lr_factor, optimizer_factory
from decaybench.parameter_roles.roles import roles
from decaybench.registry.optimizers import default_lr
from decaybench.registry.spec import parse
from decaybench.registry.user_code import user_code
from decaybench.strategies.plan import Setup
from decaybench.verify.conditions import OPTIMIZERS, Condition, cause
from decaybench.verify.methods import Method, method

ROUNDING = 1e-10  # relative to the largest parameter, or absolute below 1: float64 leaves far less after a few steps


@dataclass(frozen=True)
class MethodComparison:
    """How far two methods are apart under one condition.

    Attributes:
        max_difference: The largest difference of any parameter after the last step.
        verdict: ``identical`` (0 at every step), ``equal`` (rounding), ``different``.
        parted: The step after which they differ by more than rounding.
    """

    optimizer: str
    clipping: str
    left: str
    right: str
    max_difference: float
    verdict: str
    reason: str
    parted: int | None = None


@dataclass(frozen=True)
class ModelUnderTest:
    """A model in float64, the names of its activation parameters, and one batch for each step."""

    model: nn.Module
    alphas: frozenset[str]
    batches: list[Tensor]
    decay: float
    lr: float | None = None

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """Computes the mean squared distance to fixed random targets, a loss for any shape of output."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step)  # the same dropout on every side
            with user_code(f"The model, in training on {tuple(self.batches[step].shape)},"):
                out = model(self.batches[step])
        if not isinstance(out, Tensor):
            raise UsageError(f"The model returns {type(out).__name__}; verify needs one tensor.")
        target = torch.randn(out.shape, generator=torch.Generator().manual_seed(step), dtype=out.dtype)
        return F.mse_loss(out, target)

    def clip_norm(self) -> float:
        """Returns half the norm of the first gradient, so that clipping acts whatever the model is."""
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(self.loss(self.model, 0), trainable, allow_unused=True)
        return 0.5 * float(nn.utils.get_total_norm([g for g in gradients if g is not None]))


class Unused(nn.Module):
    """A model with a layer that its output does not depend on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.unused = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


class MethodRun:
    """One method that trains its own copy of the model."""

    def __init__(self, way: Method, tested: ModelUnderTest, condition: Condition) -> None:
        self.way, self.tested, self.condition = way, tested, condition
        self.model = copy.deepcopy(tested.model)
        alphas = tested.alphas
        if condition.unused:
            self.model, alphas = Unused(self.model), frozenset(f"model.{name}" for name in alphas)
        (spec,) = parse("optimizer", OPTIMIZERS[condition.optimizer])
        named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        lr = default_lr(spec.name) if tested.lr is None else tested.lr
        self.plan = way.build(Setup(named, alphas, tested.decay, optimizer_factory(spec, lr), roles=roles(self.model)))
        self.parameters = list(named.values())
        (cosine,) = parse("schedule", "cosine")
        scheduled = {"none": 0, "first": 1, "every": len(self.plan.optimizers)}[condition.schedule]
        factor = lr_factor(cosine, len(tested.batches), 1)
        self.schedulers = [LambdaLR(o, factor) for o in self.plan.optimizers[:scheduled]]

    def step(self, number: int, clip_norm: float) -> None:
        """Trains one step."""
        loss = self.tested.loss(self.model, number)
        self.model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss if self.plan.penalty is None else loss + self.plan.penalty())
        if self.condition.clipping == "joint":
            nn.utils.clip_grad_norm_(self.parameters, clip_norm)
        for optimizer in self.plan.optimizers:
            if self.condition.clipping == "per optimizer":
                nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip_norm)
            optimizer.step()
        if self.plan.after_step is not None:
            self.plan.after_step()
        for schedule in self.schedulers:
            schedule.step()


def compare(tested: ModelUnderTest, condition: Condition) -> list[MethodComparison]:
    """Trains the methods of a condition in lockstep and compares every pair after each step.

    Raises:
        UsageError: When training diverges, or a way cannot be built for this model.
    """
    method_runs = [MethodRun(method(name), tested, condition) for name in condition.methods]
    pairs = list(itertools.combinations(method_runs, 2))
    distances: list[list[float]] = [[] for _ in pairs]
    parted: list[int | None] = [None] * len(pairs)
    clip_norm = tested.clip_norm() if condition.clipping != "none" else 0.0
    for number in range(len(tested.batches)):
        for side in method_runs:
            side.step(number, clip_norm)
        size = max(1.0, *(float(p.detach().abs().max()) for p in method_runs[0].parameters))
        for i, (left, right) in enumerate(pairs):
            distances[i].append(_distance(left, right))
            if parted[i] is None and not distances[i][-1] <= ROUNDING * size:
                parted[i] = number + 1
    return [_row(condition, *pairs[i], distances[i], parted[i]) for i in range(len(pairs))]


def _distance(left: MethodRun, right: MethodRun) -> float:
    pairs = zip(left.parameters, right.parameters, strict=True)
    distance = max(float((p.detach() - q.detach()).abs().max()) for p, q in pairs)
    if not distance < float("inf"):
        raise UsageError(f"{left.condition.label}: training diverges; give a smaller --lr.")
    return distance


def _row(
    condition: Condition, left: MethodRun, right: MethodRun, distances: list[float], parted: int | None
) -> MethodComparison:
    verdict = "different" if parted else "equal" if any(distances) else "identical"
    why = cause(left.way, right.way, condition, (len(left.plan.optimizers), len(right.plan.optimizers)))
    same = {"identical": "the same arithmetic on every parameter", "equal": "the same terms in another order: rounding"}
    if verdict == "different":
        reason = why or "measured; none of the known reasons applies"
    else:
        reason = same[verdict] if why is None else "no difference within these steps on this model"
    names = (left.way.name, right.way.name)
    return MethodComparison(condition.label, condition.clipping, *names, distances[-1], verdict, reason, parted)
