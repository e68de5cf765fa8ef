"""Keeps what learned activation functions get as input in one forward pass."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

INPUT_ROWS = 256  # of a layer's inputs, on which learned functions are compared


def wait_for_inputs(layers: Mapping[str, nn.Module], found: dict[str, Tensor]) -> None:
    """Keeps the input of each layer in its next forward pass.

    Args:
        layers: The layers by name.
        found: Where the inputs go, (B, C, …) each, at most `INPUT_ROWS` of them.
    """
    for name, layer in layers.items():
        if not any(isinstance(hook, _Once) for hook in layer._forward_pre_hooks.values()):
            layer.register_forward_pre_hook(_Once(name, found))


class _Once:
    """A forward pre-hook that keeps one input and takes itself away."""

    def __init__(self, name: str, found: dict[str, Tensor]) -> None:
        self._name, self._found = name, found

    def __call__(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling():  # a compiled model keeps what it did before
            return
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook is self:
                del module._forward_pre_hooks[key]
        if given and isinstance(given[0], Tensor):
            self._found[self._name] = given[0].detach()[:INPUT_ROWS].clone()
