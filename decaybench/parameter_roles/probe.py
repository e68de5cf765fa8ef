"""Runs a module once without side effects."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from decaybench.registry.user_code import no_exit

# One batch of input: a tensor, several arguments by position, or by name.
Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


def called(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments, by position and by name, that an example input stands for."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, tuple | list) else ((example,), {})


def probe(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Runs a module, uncompiled and in evaluation mode, and restores it, torch's generators and its arguments."""
    return run_once(module, copied(args), copied(kwargs))


@torch.no_grad()
def run_once(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs a module, uncompiled and in evaluation mode, and restores it and torch's generators."""
    modes = [(m, m.training) for m in module.modules()]
    devices = sorted({x.device for x in tensors(args, kwargs) if x.device.type == "cuda"}, key=str)
    try:
        with torch.random.fork_rng(devices=devices), torch.compiler.set_stance("force_eager"):
            module.eval()  # apart from the call: what a user's own train() returns cannot be relied on
            with no_exit():
                return module(*args, **kwargs)
    except SystemExit as error:
        raise RuntimeError(f"it calls sys.exit({error.code!r})") from error
    finally:
        for m, training in modes:
            m.training = training


def tensors(args: Iterable[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Returns the tensors among the arguments of a call."""
    return [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]


def copied(arguments: Any) -> Any:
    """Copies every tensor among the arguments, since a module may work in place."""
    one = {k: x.detach().clone() if isinstance(x, Tensor) else x for k, x in _items(arguments)}
    return one if isinstance(arguments, Mapping) else tuple(one.values())


def _items(arguments: Any) -> Iterable[tuple[Any, Any]]:
    return arguments.items() if isinstance(arguments, Mapping) else enumerate(arguments)
