"""R networks of one structure trained as one, and a single network with the same interface."""

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import Parameter

from decaybench.native import compiler_version
from decaybench.parameter_roles.roles import activation_layers
from decaybench.study.config import Precision, RunConfig
from decaybench.training.precision import lowered
from decaybench.training.stacked import compiled
from decaybench.training.stacked.layers import LAYERS, Parameters


class Replicas(Protocol):
    """R networks under training.

    Attributes:
        models: The R networks themselves; whatever is done to the replicas is seen in their parameters.
    """

    models: list[nn.Module]

    def __call__(self, x: Tensor) -> Tensor:
        """Computes the outputs (R, K, B) for x (R, B, C, H, W); (R, K, B, T) for tokens x (R, B, T)."""

    def cell(self, rows: slice) -> dict[str, Parameter]:
        """Returns the trainable parameters of some replicas by name, to be given to one optimizer."""

    def train(self, mode: bool) -> None:
        """Switches between training and evaluation mode, as of modules."""

    def zero_grad(self) -> None: ...

    def distribute_gradients(self) -> None:
        """Hands the gradients to the groups of replicas, after a backward pass."""

    def gradients(self) -> Iterator[Tensor]:
        """Yields every gradient there is, (R, …), to be changed in place."""

    def parameters(self) -> Mapping[str, Tensor]:
        """Returns everything a checkpoint needs, to be changed in place."""

    def backends(self) -> dict[str, str]:
        """Returns what computes layers that torch does not compute, by their class."""


class SingleModel:
    """A single network of any structure.

    Args:
        model: The network.
        precision: What its forward pass computes in.
        layout: How its images and kernels lie in memory.
    """

    def __init__(
        self, model: nn.Module, precision: Precision = "float32", layout: torch.memory_format = torch.contiguous_format
    ) -> None:
        self.models, self._precision, self._layout = [model.to(memory_format=layout)], precision, layout

    def __call__(self, x: Tensor) -> Tensor:
        with lowered(self._precision, x.device):
            out: Tensor = self.models[0](x[0].contiguous(memory_format=self._layout))  # (B, K, …)
        kind = x.dtype if x.is_floating_point() else next(self.models[0].parameters()).dtype
        return out.transpose(0, 1)[None].to(kind)

    def cell(self, rows: slice) -> dict[str, Parameter]:
        return {name: p for name, p in self.models[0].named_parameters() if p.requires_grad}

    def train(self, mode: bool) -> None:
        self.models[0].train(mode)

    def zero_grad(self) -> None:
        self.models[0].zero_grad(set_to_none=True)

    def distribute_gradients(self) -> None:
        pass

    def gradients(self) -> Iterator[Tensor]:
        return (p.grad[None] for p in self.models[0].parameters() if p.grad is not None)

    def parameters(self) -> Mapping[str, Tensor]:
        return self.models[0].state_dict()

    def backends(self) -> dict[str, str]:
        return {}


class StackedModels:
    """R networks of one structure, whose parameters and buffers are views of one tensor (R, …) each."""

    def __init__(self, models: list[nn.Module], precision: Precision = "float32") -> None:
        self.models, self._precision = models, precision
        named = [dict(model.named_parameters()) for model in models]
        self._leaves = {n: torch.stack([p[n].detach() for p in named]).requires_grad_() for n in named[0]}
        self._cells: list[tuple[slice, dict[str, Parameter]]] = []
        buffers = [dict(model.named_buffers()) for model in models]
        self._buffers = {n: torch.stack([b[n] for b in buffers]) for n in buffers[0]}
        for r, tensors in enumerate(zip(named, buffers, strict=True)):
            for name, tensor in itertools.chain(*(t.items() for t in tensors)):
                tensor.data = (self._leaves | self._buffers)[name].detach()[r]
        self._layers = [
            _layer(module, _under(name, self._leaves), _under(name, self._buffers))
            for name, module in models[0].named_modules()
            if not _inner(module)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        s = x.permute(0, 2, 3, 4, 1)  # (R, C, H, W, B)
        with lowered(self._precision, x.device):
            for layer in self._layers:
                s = layer(s)
        return s.to(x.dtype)

    def cell(self, rows: slice) -> dict[str, Parameter]:
        shares = {name: Parameter(leaf.detach()[rows]) for name, leaf in self._leaves.items()}
        self._cells.append((rows, shares))
        return shares

    def train(self, mode: bool) -> None:
        if self._buffers:  # only layers with buffers depend on it
            self.models[0].train(mode)

    def zero_grad(self) -> None:
        for leaf in self._leaves.values():
            leaf.grad = None

    def distribute_gradients(self) -> None:
        for rows, shares in self._cells:
            for name, p in shares.items():
                grad = self._leaves[name].grad
                p.grad = None if grad is None else grad[rows]

    def gradients(self) -> Iterator[Tensor]:
        return (leaf.grad for leaf in self._leaves.values() if leaf.grad is not None)

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: tensor.detach() for name, tensor in (self._leaves | self._buffers).items()}

    def backends(self) -> dict[str, str]:
        ours = any(compiled.usable(leaf) for leaf in self._leaves.values())
        layers = [m for m in self.models[0].modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d)]
        return {type(layer).__name__: f"compiled ({compiler_version()})" for layer in layers if ours}


def _under(name: str, tensors: Parameters) -> Parameters:
    """Returns the tensors of a layer by their names within it."""
    return {n.removeprefix(f"{name}."): t for n, t in tensors.items() if n.startswith(f"{name}.")}


def _layer(module: nn.Module, own: Parameters, buffers: Parameters) -> Callable[[Tensor], Tensor]:
    """Makes the function of a layer of R networks from the layer of one and the tensors of all, each (R, …)."""
    if type(module) in LAYERS:
        apply = LAYERS[type(module)][0]
        return lambda x: apply(module, own | buffers, x)
    if len({p.shape[1:2] for p in own.values()}) == 1:
        return _Activation(module, own)
    return partial(_each, module, own)


class _Activation:
    """A learned activation of R networks, whose replicas are more channels of one module."""

    def __init__(self, module: nn.Module, own: Parameters) -> None:
        self._one, self._own = module, own
        self._merged = copy.deepcopy(module)
        split = [(*n.rpartition(".")[::2], p) for n, p in own.items()]
        self._places = [(self._merged.get_submodule(owner), name, p) for owner, name, p in split]
        self._channels = next(iter(own.values())).shape[1:2]

    def __call__(self, x: Tensor) -> Tensor:
        """Applies it to x (R, C, …, B)."""
        if x.shape[1:2] != self._channels:  # one parameter for all channels
            return _each(self._one, self._own, x)
        for place, name, p in self._places:
            place._parameters[name] = p.flatten(0, 1)  # type: ignore[assignment]  # (R·C, …)
        flat = self._merged(x.flatten(0, 1).movedim(-1, 0))  # (B, R·C, …), the batch last in memory
        return flat.movedim(0, -1).view(x.shape)  # type: ignore[no-any-return]


def _each(module: nn.Module, own: Parameters, x: Tensor) -> Tensor:
    """Applies an activation, which takes (B, C, …), to x (R, C, …, B) with the parameters (R, …) of each replica."""
    # In vmap's order: first the parameters of the activation, then its input with the batch in front.
    each = vmap(lambda p, s: functional_call(module, p, (s,)))
    return each(own, x.movedim(-1, 1)).movedim(1, -1)  # type: ignore[no-any-return]


def _inner(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential)


def stackable(config: RunConfig, model: nn.Module) -> bool:
    """Tells whether `StackedModels` can train a network: a plain sequence of known layers, none of a user's own."""
    if any(spec.source for spec in (config.network, config.activation, config.strategy)):
        return False
    if not isinstance(model, nn.Sequential) or not all(p.requires_grad for p in model.parameters()):
        return False
    learned = set(map(id, activation_layers(model).values()))
    leaves = [m for m in model.modules() if not _inner(m)]
    return all(id(m) in learned or (type(m) in LAYERS and LAYERS[type(m)][1](m)) for m in leaves)
