"""Loss and metrics of replicas on a part of the data, and clipping of their gradients."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from decaybench.activations.float64 import device_with_float64
from decaybench.training.data import Part
from decaybench.training.stacked.stack import Replicas
from decaybench.training.tasks import Task, summed

EVALUATION_BATCH = 512


class Evaluated(NamedTuple):
    """What R replicas make of a part of the data.

    Attributes:
        sums: The loss and each metric of each replica over the examples, (R,).
        losses: The loss of each example, (R, N).
        values: Each metric of each example, (R, N).
    """

    sums: Mapping[str, Tensor]
    losses: Tensor
    values: Mapping[str, Tensor]


@torch.no_grad()
def evaluate(net: Replicas, part: Part, task: Task, batch: int = EVALUATION_BATCH) -> Evaluated:
    """Evaluates every replica on a part of the data, with no gradients."""
    R = len(net.models)
    net.train(False)
    where = device_with_float64(part.x.device)
    loss = torch.zeros(R, dtype=torch.float64, device=where)
    losses: list[Tensor] = []
    values: dict[str, list[Tensor]] = {name: [] for name in task.metrics}
    pairs = zip(torch.split(part.x, batch), torch.split(part.y, batch), strict=True)
    for x, y in pairs:
        out, targets = net(x.expand(R, *x.shape)), y.expand(R, *y.shape)  # (R, K, B, …), (R, B, …)
        losses.append(task.reported(out, targets))  # (R, B)
        for name, of_examples in task.metrics.items():
            values[name].append(of_examples(out, targets))
        loss += losses[-1].to(where).double().sum(1)
    whole = {name: torch.cat(found, 1) for name, found in values.items()}
    sums = {name: summed(found) for name, found in whole.items()}
    return Evaluated({"loss": loss, **sums}, torch.cat(losses, 1), whole)


def means(evaluated: Evaluated) -> dict[str, Tensor]:
    """Computes the means over the examples, (R,) each, in float64 on the CPU."""
    return {name: total.cpu().double() / evaluated.losses.shape[1] for name, total in evaluated.sums.items()}


def clip_gradients(gradients: Sequence[Tensor], most: float) -> None:
    """Scales gradients (R, …) in place so that each replica's joint norm is at most ``most``.

    The norm is over all its parameters, whatever optimizers they are in, as in `torch.nn.utils.clip_grad_norm_`.
    """
    norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])  # (parameters, R)
    joint = norms.square().cumsum(0)[-1].sqrt()  # one after the other, so that its bits do not depend on R
    factor = (most / (joint + 1e-6)).clamp(max=1.0)  # (R,)
    for g in gradients:
        g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))
