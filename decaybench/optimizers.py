"""The optimizers and learning-rate schedules of a run, straight from torch."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from decaybench import registry
from decaybench.errors import UsageError
from decaybench.registry import imports
from decaybench.registry.optimizers import default_lr
from decaybench.registry.spec import Spec
from decaybench.registry.user_code import user_code

Params = Sequence[Parameter] | Sequence[dict[str, Any]]


def sgd(params: Params, lr: float, weight_decay: float, momentum: float, nesterov: bool) -> Optimizer:
    """Makes a `torch.optim.SGD`."""
    fused = True if on_gpu(params) else None
    return torch.optim.SGD(params, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov, fused=fused)


def adam(params: Params, lr: float, weight_decay: float, beta1: float, beta2: float, eps: float) -> Optimizer:
    """Makes a `torch.optim.Adam`."""
    return torch.optim.Adam(
        params, lr=lr, weight_decay=weight_decay, betas=(beta1, beta2), eps=eps, **_recordable(params)
    )


def adamw(params: Params, lr: float, weight_decay: float, beta1: float, beta2: float, eps: float) -> Optimizer:
    """Makes a `torch.optim.AdamW`."""
    return torch.optim.AdamW(
        params, lr=lr, weight_decay=weight_decay, betas=(beta1, beta2), eps=eps, **_recordable(params)
    )


def rmsprop(params: Params, lr: float, weight_decay: float, smoothing: float, momentum: float, eps: float) -> Optimizer:
    """Makes a `torch.optim.RMSprop`, whose alpha is called ``smoothing`` here."""
    return torch.optim.RMSprop(
        params,
        lr=lr,
        weight_decay=weight_decay,
        alpha=smoothing,
        momentum=momentum,
        eps=eps,
        capturable=on_gpu(params),
    )


def on_gpu(params: Params) -> bool:
    """Tells whether parameters are on a CUDA GPU, where steps are recorded as CUDA graphs."""
    tensors = [p for given in params for p in (given["params"] if isinstance(given, dict) else [given])]
    return bool(tensors) and all(p.is_cuda for p in tensors)


def _recordable(params: Params) -> dict[str, bool]:
    """Returns the options by which Adam's step is one kernel for each param group, and can be recorded."""
    return {"fused": True, "capturable": True} if on_gpu(params) else {}


def timm(params: Params, lr: float, weight_decay: float, name: str) -> Optimizer:
    """Makes an optimizer of timm by its name there, from param groups as they are.

    Raises:
        UsageError: Without timm, and for a name that it does not have.
    """
    try:
        from timm.optim._optim_factory import create_optimizer_v2
    except ImportError as error:
        raise UsageError(f"The optimizer timm:{name} needs timm: pip install timm.") from error
    with user_code(f"The optimizer timm:{name}"):
        made: Optimizer = create_optimizer_v2(params, opt=name, lr=lr, weight_decay=weight_decay)
    return made


def optimizer_factory(optimizer: Spec, lr: float) -> Callable[..., Optimizer]:
    """Returns the function by which a strategy makes a run's optimizer; see `decaybench.Setup`."""
    run_lr = lr

    def make(
        params: Params, *, weight_decay: float = 0.0, kind: str | None = None, lr: float | None = None
    ) -> Optimizer:
        other = kind is not None and kind != optimizer.name
        chosen = Spec.make("optimizer", kind, {}) if other and kind else optimizer
        own_lr = default_lr(chosen.name) if other else run_lr
        options = {"lr": own_lr if lr is None else lr, "weight_decay": weight_decay, **chosen.options}
        if chosen.source is None:
            made: Optimizer = imports.load(registry.OPTIMIZERS[chosen.name].target)(params, **options)
            return made
        with user_code(f"The optimizer {chosen.label}"):
            made = imports.load(chosen.name)(params, **options)
        if not isinstance(made, Optimizer):
            raise UsageError(f"The optimizer {chosen.name} returned {type(made).__name__}, not a torch optimizer.")
        return made

    return make


def constant(epoch: float, epochs: int) -> float:
    """Returns 1 at every epoch."""
    return 1.0


def cosine(epoch: float, epochs: int) -> float:
    """Falls from 1 to 0 along half a cosine (Loshchilov and Hutter 2016, arXiv 1608.03983, equation 5)."""
    return 0.5 * (1 + math.cos(math.pi * min(epoch / epochs, 1.0)))


def step(epoch: float, epochs: int, step_size: float, gamma: float) -> float:
    """Multiplies by ``gamma`` every ``step_size`` epochs."""
    return gamma ** math.floor(epoch / step_size)


def lr_factor(schedule: Spec, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Returns what the learning rate is multiplied by at each step; ``warmup`` epochs rise linearly to 1."""
    own = schedule.source is not None
    shape = imports.load(schedule.name if own else registry.SCHEDULES[schedule.name].target)
    options = {"warmup": 0.0, **schedule.options}
    warmup = float(options.pop("warmup") or 0.0) * steps_per_epoch  # in steps

    def factor(done: int) -> float:
        rise = min(1.0, (done + 1) / warmup) if warmup > 0 else 1.0
        with user_code(f"The schedule {schedule.label}") if own else nullcontext():
            return rise * float(shape(done / steps_per_epoch, epochs, **options))

    return factor
