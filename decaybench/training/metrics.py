"""Loss and accuracy of replicas on a part of the data, and clipping of their gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from decaybench.training.data import Part
from decaybench.training.stacked.stack import Replicas

EVALUATION_BATCH = 512


@torch.no_grad()
def evaluate(net: Replicas, part: Part, batch: int = EVALUATION_BATCH) -> tuple[Tensor, Tensor]:
    """Computes the mean loss and the accuracy of every replica, two tensors (R,) in float64 on the CPU."""
    R = len(net.models)
    net.train(False)
    where = part.x.device if part.x.device.type != "mps" else torch.device("cpu")  # MPS has no float64
    loss, correct = torch.zeros(2, R, dtype=torch.float64, device=where)
    pairs = zip(torch.split(part.x, batch), torch.split(part.y, batch), strict=True)
    for x, y in pairs:
        out = net(x.expand(R, *x.shape))  # (R, classes, B)
        each = F.cross_entropy(out, y.expand(R, -1), reduction="none")  # (R, B)
        loss += each.to(where).double().sum(1)
        correct += (out.argmax(1) == y).sum(1).to(where)
    return loss.cpu() / len(part.y), correct.cpu() / len(part.y)


def clip_gradients(gradients: Sequence[Tensor], most: float) -> None:
    """Scales gradients (R, …) in place so that each replica's joint norm is at most ``most``.

    The norm is over all its parameters, whatever optimizers they are in, as in `torch.nn.utils.clip_grad_norm_`.
    """
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients])  # (parameters, R)
    factor = (most / (norms.norm(dim=0) + 1e-6)).clamp(max=1.0)  # (R,)
    for g in gradients:
        g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))
