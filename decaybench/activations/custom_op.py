"""Registers operations with torch: a schema, a shape function for compilers, a rule for vmap, gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("decaybench", "DEF")  # type: ignore[no-untyped-call]


def operation(
    schema: str, real: Callable[..., Any], fake: Callable[..., Any], vmap: Callable[..., Any]
) -> Callable[..., Any]:
    """Registers an operation with torch's dispatcher.

    Args:
        schema: Its name, arguments and results, as torch writes them.
        real: The implementation, for any device.
        fake: A function that returns empty tensors of the right shape.
        vmap: The rule for a dimension that ``torch.func.vmap`` adds.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, real, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"decaybench::{name}", fake, lib=_LIBRARY)
    torch.library.register_vmap(f"decaybench::{name}", vmap, lib=_LIBRARY)
    return getattr(torch.ops.decaybench, name).default  # type: ignore[no-any-return]


Function = type[torch.autograd.Function]
Second = Callable[[Tensor, Sequence[Tensor], tuple[Any, ...], tuple[Tensor, ...]], tuple[Tensor, ...]]


def differentiable(
    op: Callable[..., Any], backward_op: Callable[..., Any], second: Second, tensors: int
) -> Callable[..., Any]:
    """Makes an operation differentiable, for autograd and for ``torch.func``.

    Args:
        op: The operation, from (*tensors, *constants) to a tensor.
        backward_op: Its gradient, from (grad, *tensors, *constants) to the gradients of the tensors.
        second: The gradient of that, in torch's own differentiable operations, from (grad, tensors, constants,
            upstream gradients of what ``backward_op`` returns) to the gradients of grad and of the tensors.
        tensors: Number of tensors among the arguments.
    """
    again = _gradient(backward_op, second, tensors + 1)
    eager, functional = _eager(op, backward_op, again, tensors), _functional(op, again, tensors)
    return lambda *args: (functional if transformed() else eager).apply(*args)


def _eager(op: Callable[..., Any], backward_op: Callable[..., Any], again: Function, tensors: int) -> Function:
    """Makes the form for eager autograd, which has the least overhead."""

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            ctx.save_for_backward(*args[:tensors])
            ctx.constants = args[tensors:]
            return op(*args)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            args = (grad, *ctx.saved_tensors, *ctx.constants)
            down = again.apply(*args) if torch.is_grad_enabled() else backward_op(*args)
            return *down, *[None] * len(ctx.constants)

    return Eager


class _Composable(torch.autograd.Function):
    """An autograd function in the form that ``torch.func`` needs."""

    generate_vmap_rule = True
    tensors: int

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[: cls.tensors])
        ctx.constants = inputs[cls.tensors :]


def _functional(op: Callable[..., Any], again: Function, count: int) -> Function:
    class Functional(_Composable):
        tensors = count

        @staticmethod
        def forward(*args: Any) -> Any:
            return op(*args)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            down = again.apply(grad, *ctx.saved_tensors, *ctx.constants)
            return *down, *[None] * len(ctx.constants)

    return Functional


def _gradient(backward_op: Callable[..., Any], second: Second, count: int) -> Function:
    class Gradient(_Composable):
        tensors = count

        @staticmethod
        def forward(*args: Any) -> Any:
            return backward_op(*args)

        @staticmethod
        def backward(ctx: Any, *upstream: Tensor) -> Any:
            grad, *saved = ctx.saved_tensors
            return *second(grad, saved, ctx.constants, upstream), *[None] * len(ctx.constants)

    return Gradient


def transformed() -> bool:
    """Tells whether this runs inside ``torch.func``'s grad or vmap."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def merged(x: Tensor, dim: int | None, batch: int, channels: int) -> Tensor:
    """Moves a vmapped dimension (None: every replica has the same) into the channels: replicas are more channels.

    Args:
        x: A tensor with the vmapped dimension at ``dim``.
        dim: The vmapped dimension.
        batch: B, the size of the vmapped dimension.
        channels: The dimension of the channels in a tensor without B: 1 of (N, C, …), 0 of (C, …).

    Returns:
        B·C instead of C channels.
    """
    x = x.expand(batch, *x.shape) if dim is None else x.movedim(dim, 0)
    x = x.movedim(0, channels)
    return x.reshape(*x.shape[:channels], -1, *x.shape[channels + 2 :])


def split(x: Tensor, batch: int, channels: int) -> Tensor:
    """Reverses `merged`: B is then the dimension ``channels``."""
    return x.reshape(*x.shape[:channels], batch, -1, *x.shape[channels + 1 :])
