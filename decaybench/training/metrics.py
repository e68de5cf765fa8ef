"""Loss and accuracy of replicas on a part of the data, and clipping of their gradients."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from decaybench.training.data import Part
from decaybench.training.stacked.stack import Replicas

EVALUATION_BATCH = 512


class Evaluated(NamedTuple):
    """What R replicas make of a part of the data.

    Attributes:
        loss, accuracy: The means of each replica, (R,) in float64 on the CPU.
        losses: The loss of each example, (R, N).
        correct: Whether its class was right, (R, N).
    """

    loss: Tensor
    accuracy: Tensor
    losses: Tensor
    correct: Tensor


@torch.no_grad()
def evaluate(net: Replicas, part: Part, batch: int = EVALUATION_BATCH) -> Evaluated:
    """Evaluates every replica on a part of the data, with no gradients."""
    R = len(net.models)
    net.train(False)
    where = part.x.device if part.x.device.type != "mps" else torch.device("cpu")  # MPS has no float64
    loss = torch.zeros(R, dtype=torch.float64, device=where)
    losses, correct = [], []
    pairs = zip(torch.split(part.x, batch), torch.split(part.y, batch), strict=True)
    for x, y in pairs:
        out = net(x.expand(R, *x.shape))  # (R, classes, B)
        losses.append(F.cross_entropy(out, y.expand(R, -1), reduction="none"))  # (R, B)
        correct.append(out.argmax(1) == y)
        loss += losses[-1].to(where).double().sum(1)
    right = torch.cat(correct, 1)
    accuracy = right.sum(1).cpu().double() / len(part.y)
    return Evaluated(loss.cpu() / len(part.y), accuracy, torch.cat(losses, 1), right)


def clip_gradients(gradients: Sequence[Tensor], most: float) -> None:
    """Scales gradients (R, …) in place so that each replica's joint norm is at most ``most``.

    The norm is over all its parameters, whatever optimizers they are in, as in `torch.nn.utils.clip_grad_norm_`.
    """
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients])  # (parameters, R)
    factor = (most / (norms.norm(dim=0) + 1e-6)).clamp(max=1.0)  # (R,)
    for g in gradients:
        g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))
