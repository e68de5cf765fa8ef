"""Tasks: the loss that a network is trained with, and what is recorded of each example beside it.

Outputs are (R, K, B) for R replicas and B examples, K numbers each; of sequences (R, K, B, T). Targets are (R, B), and
(R, B, T). Everything is of each example, (R, B): a sequence counts as one, with the mean over its tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from decaybench.datasets.arrays import Arrays
from decaybench.errors import UsageError
from decaybench.registry import LOSSES, TASKS, imports
from decaybench.registry.spec import Spec
from decaybench.registry.user_code import user_code

OfExamples = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """What a run is trained for.

    Attributes:
        name: Its name in the registry.
        loss: The loss of each example, which training minimizes the mean of.
        reported: The loss that is recorded: the task's own, whatever is trained with.
        metrics: What is recorded beside it, of each example; truth values for shares.
    """

    name: str
    loss: OfExamples
    reported: OfExamples
    metrics: Mapping[str, OfExamples]


def make_task(name: str, loss: Spec | None = None) -> Task:
    """Makes a task.

    Args:
        name: Its name in the registry.
        loss: What to train with; None means the task's own loss.

    Raises:
        UsageError: When the task cannot be trained with it.
    """
    entry = TASKS[name]
    own = _loss(Spec.make("loss", entry.loss, {}), name)
    metrics = {metric: METRICS[metric] for metric in entry.metrics}
    return Task(name, own if loss is None else _loss(loss, name), own, metrics)


def _loss(spec: Spec, task: str) -> OfExamples:
    if imports.is_target(spec.name):
        return partial(_own_loss, imports.load(spec.name), spec)
    entry = LOSSES[spec.name]
    if task not in entry.tasks:
        fitting = ", ".join(name for name, other in LOSSES.items() if task in other.tasks)
        raise UsageError(f"loss {spec.name}: the data set is for {task}, which is trained with {fitting}.")
    return partial(imports.load(entry.target), **spec.options)


def _own_loss(function: Callable[..., Any], spec: Spec, out: Tensor, y: Tensor) -> Tensor:
    """Calls a user's own loss with outputs (B, K) or (B, K, T) and targets (B,) or (B, T)."""
    with user_code(f"The loss {spec.label}"):
        found = function(out[0].transpose(0, 1), y[0], **spec.options)
    if not isinstance(found, Tensor) or found.shape != (y.shape[1],):
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UsageError(f"The loss {spec.name} gives {given}; it must give one number an example, ({y.shape[1]},).")
    return found[None]


def _of_sequences(values: Tensor) -> Tensor:
    """Averages over tokens, (R, B, T) to (R, B); values of single examples stay."""
    return values if values.ndim == 2 else values.float().mean(2)


def cross_entropy(out: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    """Computes the cross-entropy of each example."""
    return _of_sequences(F.cross_entropy(out, y, reduction="none", label_smoothing=smoothing))


def focal(out: Tensor, y: Tensor, gamma: float = 2.0) -> Tensor:
    """Computes the focal loss of each example (Lin et al. 2017, arXiv 1708.02002, equation 4)."""
    loss = F.cross_entropy(out, y, reduction="none")
    return _of_sequences((1 - (-loss).exp()) ** gamma * loss)


def squared_error(out: Tensor, y: Tensor) -> Tensor:
    """Computes the squared error of each example."""
    return (out[:, 0] - y).square()


def huber(out: Tensor, y: Tensor, delta: float = 1.0) -> Tensor:
    """Computes Huber's loss of each example."""
    return F.huber_loss(out[:, 0], y, reduction="none", delta=delta)


def is_right(out: Tensor, y: Tensor) -> Tensor:
    """Tells for each example whether its class is right; of a sequence, the share of tokens that are."""
    return _of_sequences(out.argmax(1) == y)


def absolute_error(out: Tensor, y: Tensor) -> Tensor:
    """Computes the absolute error of each example."""
    return (out[:, 0] - y).abs()


METRICS: Mapping[str, OfExamples] = {"accuracy": is_right, "mae": absolute_error}


def classes(arrays: Arrays) -> int:
    """Returns the number of classes."""
    return arrays.classes


def one(arrays: Arrays) -> int:
    """Returns 1: a regression has one output."""
    return 1


def vocabulary(arrays: Arrays) -> int:
    """Returns the number of tokens."""
    return 1 + int(max(arrays.train_x.max(), arrays.test_x.max(), arrays.train_y.max(), arrays.test_y.max()))


def outputs(task: str, arrays: Arrays) -> int:
    """Returns the number of outputs that a network needs for a task."""
    count: int = imports.load(TASKS[task].target)(arrays)
    return count


def summed(values: Tensor) -> Tensor:
    """Sums the values of examples, (R, B) to (R,): truth values as whole numbers."""
    return values.sum(1, dtype=torch.long if values.dtype == torch.bool else None)
