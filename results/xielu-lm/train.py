"""Trains a small GPT on the bytes of Python's standard library; decaybench drives it (see README.md)."""

import argparse

import numpy as np
import torch
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

import decaybench
from decaybench.activations import XIELU, Swish
from decaybench.datasets.vectors import modules
from decaybench.networks.gpt import gpt

CONTEXT, BATCH, WARMUP = 64, 16, 100
TESTED = 8192  # bytes of a test document, at most

parser = argparse.ArgumentParser()
parser.add_argument("--activation", choices=("xielu", "swish"), default="xielu")
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--lr", type=float, default=5e-3)
options = parser.parse_args()
seed = decaybench.run_seed()  # seeds torch, too
torch.set_flush_denormal(True)  # numbers that strong decay makes smaller than 1e-38 would be computed very slowly

documents = list(modules(CONTEXT))
text = torch.from_numpy(np.concatenate([d for i, d in enumerate(documents) if i % 5])).long()
model = gpt((CONTEXT,), 256, {"xielu": XIELU, "swish": Swish}[options.activation])
trial = decaybench.trial(model)
optimizer = trial.optimizer(torch.optim.AdamW, lr=options.lr, betas=(0.9, 0.95), weight_decay=0.1)
for block in model.blocks:
    block.act.compile()  # twice as fast for xIELU


def rate(step: int) -> float:
    """A linear warm-up, then half a cosine."""
    return min((step + 1) / WARMUP, 0.5 + 0.5 * float(np.cos(np.pi * step / options.steps)))


schedule = LambdaLR(optimizer, rate)
order, losses = torch.Generator().manual_seed(seed), []
for step in range(1, options.steps + 1):
    starts = torch.randint(len(text) - CONTEXT - 1, (BATCH, 1), generator=order)
    windows = text[starts + torch.arange(CONTEXT + 1)]  # (B, T + 1)
    trial.note_batch(windows[:, :-1], windows[:, 1:])
    loss = F.cross_entropy(model(windows[:, :-1]), windows[:, 1:]) + trial.penalty()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
    if step % 200 == 0:
        trial.log(step // 200 - 1, train_loss=float(np.mean(losses[-200:])))


@torch.no_grad()
def summed(document: np.ndarray) -> tuple[float, int]:
    """Returns the loss of a document, summed over its bytes, and their number."""
    count = (min(len(document) - 1, TESTED)) // CONTEXT
    whole = torch.from_numpy(document[: count * CONTEXT + 1].astype(np.int64))
    inputs, targets = whole[:-1].view(count, CONTEXT), whole[1:].view(count, CONTEXT)
    return float(F.cross_entropy(model(inputs), targets, reduction="sum")), targets.numel()


sums, sizes = np.array([summed(d) for d in documents[::5]]).T  # (documents,) each
per_byte = sums.sum() / sizes.sum()
# Documents differ in length, so that the loss is a ratio of two sums over them. These values have that ratio as their
# mean, and as their spread what it varies by over documents (the ratio estimator; Cochran 1977, section 2.11).
trial.finish(test_losses=per_byte + (sums - per_byte * sizes) / sizes.mean())
