"""Runs a module once without side effects."""

import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._pytree import tree_map

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


def run_once(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool = False) -> Any:
    """Runs a module, uncompiled, in evaluation mode or in training, and restores it and all random generators."""
    devices = sorted({x.device for x in tensors(args, kwargs) if x.device.type == "cuda"}, key=str)
    try:
        with torch.random.fork_rng(devices=devices), _restored(module), torch.compiler.set_stance("force_eager"):
            with suppress(NotImplementedError):  # exported modules have one mode only
                module.train(training)  # apart from the call: what a user's own train() returns cannot be relied on
            with no_exit():
                try:
                    with torch.no_grad():
                        return module(*args, **kwargs)
                except RuntimeError as error:
                    if "does not require grad" not in str(error):
                        raise
                with torch.enable_grad():  # its forward pass computes gradients itself
                    return module(*args, **kwargs)
    except SystemExit as error:
        raise RuntimeError(f"it calls sys.exit({error.code!r})") from error


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Puts back whatever the run of a model changes in it: tensors, attributes, lists of its own, modes, gradients."""
    tensors = [t for t in (*model.parameters(), *model.buffers()) if not isinstance(t, _UNINITIALIZED)]
    values = [(t, t.detach().clone()) for t in tensors if not t.is_meta]
    gradients = [(p, p.grad) for p in model.parameters()]
    attributes = [(m, dict(m.__dict__)) for m in model.modules()]
    boxes = [
        (box, box.copy()) for _, d in attributes for box in d.values() if type(box) in (list, dict, set, OrderedDict)
    ]
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        for m, before in attributes:
            m.__dict__.clear()
            m.__dict__.update(before)
        for box, content in boxes:
            box.clear()
            box.extend(content) if isinstance(box, list) else box.update(content)
        with torch.no_grad():
            for t, value in values:
                if t.shape != value.shape or not torch.equal(t, value):
                    t.data = value if t.shape != value.shape else t.data.copy_(value)
        for p, grad in gradients:
            p.grad = grad
        random.setstate(states[0])
        np.random.set_state(states[1])


_UNINITIALIZED = (UninitializedParameter, UninitializedBuffer)


def tensors(args: Iterable[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Returns the tensors among the arguments of a call."""
    return [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]


def copied(arguments: Any) -> Any:
    """Copies every tensor among the arguments, and what they are in, since a module may work in place."""
    return tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, arguments)
