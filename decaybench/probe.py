"""Runs a module once without leaving a trace."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def probe(module: nn.Module, x: Tensor) -> Tensor:
    """Runs a module in evaluation mode and leaves it, and torch's generators, as they were."""
    modes = [(m, m.training) for m in module.modules()]
    devices = [x.device] if x.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            out: Tensor = module.eval()(x)
    finally:
        for m, training in modes:
            m.training = training
    return out
