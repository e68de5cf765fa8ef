"""Records which operation made each tensor of one forward pass, and which parameters and data it comes from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

# Operations that take a tensor for its shape, type or device only.
SHAPE_ONLY = {
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like"),
    *("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "size", "dim", "numel", "stride"),
}
FIRST_ONLY = {"expand_as", "view_as", "reshape_as", "type_as", "to"}  # the second is taken for its shape or type
PROPERTIES_OF_SHAPE = {"shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "layout", "grad"}


@dataclass(eq=False, slots=True)
class Node:
    """A tensor of the forward pass, and the operation that made it.

    Attributes:
        operation: Its name, as ``mul`` for all of ``a * b``, ``torch.mul``, ``a.mul_``; ``parameter``, ``data`` and
            ``constant`` for what no operation made.
        arguments: What it was called with, by position or keyword; tensors are nodes.
        parameters: The parameters that this tensor comes from, alone or with data.
        data: Whether it comes from the model's input.
        used_by: The operations that took it.
    """

    operation: str
    shape: tuple[int, ...]
    arguments: Mapping[int | str, Any] = field(default_factory=dict)
    parameters: frozenset[int] = frozenset()
    data: bool = False
    used_by: "list[Node]" = field(default_factory=list)

    @property
    def inputs(self) -> "list[Node]":
        """The tensors it was made of, those in lists included."""
        return list(_nodes(self.arguments.values()))

    @property
    def learned_only(self) -> bool:
        """Whether it comes from parameters, and constants, alone."""
        return bool(self.parameters) and not self.data

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def _nodes(values: Any) -> Iterator[Node]:
    for value in values:
        if isinstance(value, Node):
            yield value
        elif isinstance(value, list | tuple):
            yield from _nodes(value)
        elif isinstance(value, dict):
            yield from _nodes(value.values())


class Trace(TorchFunctionMode):
    """Records the operations on tensors while it is active.

    Attributes:
        of_parameter: The node of each parameter, by its number in the order of ``named``.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], inputs: Any) -> None:
        super().__init__()
        self._nodes: Any = WeakIdKeyDictionary()
        self.of_parameter: dict[int, Node] = {}
        for number, parameter in enumerate(named.values()):
            shape = () if isinstance(parameter, UninitializedParameter) else tuple(parameter.shape)
            node = Node("parameter", shape, parameters=frozenset([number]))
            self._nodes[parameter] = self.of_parameter[number] = node
        for tensor in tensors_in(inputs):
            self._nodes[tensor] = Node("data", tuple(tensor.shape), data=True)

    def node(self, tensor: Tensor) -> Node:
        """Returns the node of a tensor; one that nothing here made is a constant."""
        found: Node | None = self._nodes.get(tensor)
        if found is None:
            found = self._nodes[tensor] = Node("constant", tuple(tensor.shape))
        return found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls an operation and records it."""
        kwargs = kwargs or {}
        if self._sets_a_parameter(func, args):
            return func(*args, **kwargs)
        name, positional = _normal_form(name_of(func), args, kwargs)
        if name in PROPERTIES_OF_SHAPE or name in SHAPE_ONLY:
            return func(*args, **kwargs)
        whole = {**dict(enumerate(positional)), **kwargs}
        arguments = {key: self._replaced(value) for key, value in whole.items()}
        if name in FIRST_ONLY:
            arguments = {key: v for key, v in arguments.items() if key == 0 or not isinstance(v, Node)}
        out = func(*args, **kwargs)
        made = Node(name, (), arguments)
        inputs = made.inputs
        if not inputs:
            return out
        learned = frozenset().union(*(node.parameters for node in inputs))
        data = any(node.data for node in inputs)
        results = list(tensors_in(out))
        if name in ("setitem", "masked_set", "copy_into") and args and isinstance(args[0], Tensor):
            results = [args[0]]
        if isinstance(kwargs.get("out"), Tensor):
            results = [kwargs["out"]]
        for tensor in results:
            node = Node(name, tuple(tensor.shape), arguments, learned, data)
            for source in inputs:
                source.used_by.append(node)
            self._nodes[tensor] = node
        return out

    def _sets_a_parameter(self, func: Any, args: Any) -> bool:
        """Tells whether an operation changes a parameter in place, as a calibration on the first batch does."""
        name = str(getattr(func, "__name__", ""))
        in_place = (name.endswith("_") and not name.startswith("__")) or name == "__setitem__"
        return (
            in_place
            and bool(args)
            and isinstance(args[0], nn.Parameter)
            and self.node(args[0]).operation == "parameter"
        )

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.node(value)
        if isinstance(value, list | tuple):
            return [self._replaced(v) for v in value]
        if isinstance(value, dict):
            return {k: self._replaced(v) for k, v in value.items()}
        return value


def _normal_form(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, Sequence[Any]]:
    """Returns an operation's name and arguments by what they mean: of masks, of two tensors, reversed."""
    if name in ("index", "setitem") and len(args) > 1 and any(x.dtype == torch.bool for x in tensors_in(args[1])):
        name = {"index": "masked_select", "setitem": "masked_set"}[name]
    if name in ("max", "min") and any(isinstance(x, Tensor) for x in (*args[1:2], kwargs.get("other"))):
        name += "imum"
    return (_REVERSED[name], args[1::-1]) if name in _REVERSED else (name, args)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in nested lists, tuples and dicts, and in objects that are mappings or have fields."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | set):
        for one in value:
            yield from tensors_in(one)
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from tensors_in(one)


_SAME = {
    **{"truediv": "div", "true_divide": "div", "divide": "div", "multiply": "mul", "subtract": "sub"},
    **{"getitem": "index", "concat": "cat", "concatenate": "cat", "clip": "clamp", "negative": "neg"},
    **{"absolute": "abs", "arctan": "atan", "arcsin": "asin", "arccos": "acos", "copy": "copy_into"},
    **{"matmul": "matmul", "mm": "matmul", "bmm": "matmul", "mv": "matmul", "dot": "matmul", "inner": "matmul"},
    **{"special_expit": "sigmoid", "iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "idiv": "div"},
    **{"ipow": "pow", "radd": "add", "rmul": "mul", "imatmul": "matmul", "float_power": "pow"},
}
_REVERSED = {"rsub": "sub", "rdiv": "div", "rtruediv": "div", "rpow": "pow", "rmatmul": "matmul"}


def name_of(function: Any) -> str:
    """Returns the name of an operation, one for its forms as an operator, a method, a function and in place."""
    name = str(getattr(function, "__name__", function))
    if name == "__get__":  # of a property, such as x.T
        return str(getattr(function.__self__, "__name__", "property"))
    name = name.partition(".")[0]  # torch.ops.aten.mul.Tensor
    name = name.strip("_")
    return _SAME.get(name, name)
