"""Trains one run and yields what happens. No printing, no files."""

import math
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decaybench.alphas import Watch
from decaybench.config import RunConfig
from decaybench.construct import construct
from decaybench.data import Batches, Data, Part
from decaybench.errors import DecaybenchError, UsageError
from decaybench.model import build_model
from decaybench.optimizers import maker, scheduler
from decaybench.role import mark_by_behaviour, roles
from decaybench.strategies import Plan, Setup
from decaybench.streams import model_fingerprint, stream_seed

EVALUATION_BATCH = 2048
EXAMPLE = 16  # images that show what a module of unknown type in somebody's own network does


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: loss and accuracy (a fraction) of each part; NaN or infinite when it diverged."""

    number: int
    scores: dict[str, float]

    @property
    def diverged(self) -> bool:
        return not all(math.isfinite(v) for k, v in self.scores.items() if k.endswith("loss"))


def setup(config: RunConfig, model: nn.Module) -> Setup:
    """What the strategy of a run works with."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    alphas = frozenset(name for name, role in roles(model).items() if role == "activation" and name in named)
    return Setup(named, alphas, config.weight_decay, maker(config.optimizer, config.lr))


def make_plan(config: RunConfig, model: nn.Module) -> Plan:
    """What the strategy of a run decides for this model.

    Raises:
        UsageError: When a strategy of somebody's own returns no plan, or forgets or repeats a parameter.
    """
    given = setup(config, model)
    plan = construct("strategy", config.strategy, given)
    if not isinstance(plan, Plan):
        raise UsageError(f"The strategy {config.strategy.name} returned {type(plan).__name__}, not a decaybench.Plan.")
    held = Counter(id(p) for o in plan.optimizers for group in o.param_groups for p in group["params"])
    wrong = [f"{name} is in {held[id(p)]} param groups" for name, p in given.named.items() if held[id(p)] != 1]
    if wrong:
        raise UsageError(f"The strategy {config.strategy.name}: {', '.join(wrong)}; each parameter belongs in one.")
    return plan


def train(config: RunConfig, data: Data) -> Generator[Epoch, None, dict[str, Any]]:
    """Trains one run on the device its data is on.

    Yields:
        One `Epoch` after each epoch; the last one is where it diverged, if it did.

    Returns:
        The record of the run, without provenance; plain values that JSON can hold.
    """
    device = data.train.x.device
    model = build_model(config, data.shape, data.classes)
    initial = model_fingerprint(model)
    model.to(device)
    mark_by_behaviour(model, data.train.x[:EXAMPLE])
    plan = make_plan(config, model)
    batches = Batches(data.train, config)
    schedulers = [scheduler(o, config.schedule, config.epochs, len(batches)) for o in plan.optimizers]
    watch = Watch(model)
    history: list[Epoch] = []
    for number in range(1, config.epochs + 1):
        with _dropout(config, number, device):
            scores = _train_epoch(model, plan, batches, schedulers, config.clip_norm)
        for name in ("validation", "test"):
            scores |= evaluate(model, getattr(data, name), name)
        watch.look()
        history.append(Epoch(number, scores))
        yield history[-1]
        if history[-1].diverged:
            break
    return {
        "run_id": config.run_id,
        "config": config.model_dump(),
        "fingerprints": {"data": data.fingerprint, "initial": initial, "batches": batches.fingerprint},
        "diverged": history[-1].number if history[-1].diverged else None,
        "history": {key: [_json(e.scores[key]) for e in history] for key in history[0].scores},
        "layers": watch.summary(),
    }


@contextmanager
def _dropout(config: RunConfig, epoch: int, device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's own generators: each epoch has its seed, and leaves them as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream_seed(config.seed, f"dropout/{epoch}"))
        try:
            yield
        except Exception as error:
            parts = ", ".join(s.label for s in (config.network, config.activation, config.strategy))
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise DecaybenchError(f"Training {parts} (seed {config.seed}) fails: {reason}.") from error


def _train_epoch(
    model: nn.Module, plan: Plan, batches: Batches, schedulers: list[Any], clip_norm: float | None
) -> dict[str, float]:
    """One pass; the loss and accuracy are those of the batches as they were met, without any penalty."""
    model.train()
    loss_sum = correct = torch.zeros(())  # on the device after the first batch: no waiting for each step
    seen = 0
    for x, y in batches.epoch():
        out = model(x)  # (B, classes)
        loss = F.cross_entropy(out, y)
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss if plan.penalty is None else loss + plan.penalty())
        if clip_norm is not None:
            # One norm over all optimizers, summed in the model's order: the same for every strategy.
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        for optimizer in plan.optimizers:
            optimizer.step()
        if plan.after_step is not None:
            plan.after_step()
        for s in schedulers:
            s.step()
        loss_sum = loss_sum + loss.detach() * len(y)
        correct = correct + (out.detach().argmax(1) == y).sum()
        seen += len(y)
    return {"train_loss": float(loss_sum) / seen, "train_accuracy": float(correct) / seen}


@torch.no_grad()
def evaluate(model: nn.Module, part: Part, name: str) -> dict[str, float]:
    """Loss and accuracy of a model on one part of the data."""
    model.eval()
    pairs = zip(torch.split(part.x, EVALUATION_BATCH), torch.split(part.y, EVALUATION_BATCH), strict=True)
    loss, correct = torch.zeros(2, dtype=torch.float64)
    for x, y in pairs:
        out: Tensor = model(x)  # (B, classes)
        loss += F.cross_entropy(out, y, reduction="sum").cpu().double()
        correct += (out.argmax(1) == y).sum().cpu()
    n = len(part.y)
    return {f"{name}_loss": float(loss) / n, f"{name}_accuracy": float(correct) / n}


def _json(x: float) -> float | None:
    return x if math.isfinite(x) else None
