"""Infers the role of a parameter from the operations that take it during one forward pass of the model.

A parameter is followed through operations on parameters alone (exp, view, softplus, quantization) to the operations
that take it together with data. A matrix product or a convolution makes it a weight, a lookup an embedding, and so on.
Where an operation works element by element, what counts is the smallest region around it that is element-wise in one
tensor: where the tensor reaches the end of the region by two ways, and by one of them nonlinearly, as in
``relu(x) + a * relu(-x)``, the parameter shapes the nonlinearity; where there is one way only, as in
``gain * relu(linear(x))``, it is a gain.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from decaybench.parameter_roles.library_rules import Role
from decaybench.parameter_roles.trace import Node

# Layers, with what they take by position: x, the input; w, the weight; b, the bias.
_LAYERS = {"linear": "xwb", "bilinear": "xxwb", "addmm": "bxw", "baddbmm": "bxw", "addbmm": "bxw", "addmv": "bxw"}
_LAYERS |= {f"conv{t}{d}d": "xwb" for t in ("", "_transpose") for d in (1, 2, 3)}
_SLOTS = {"input": "x", "weight": "w", "bias": "b", "mat1": "x", "mat2": "w", "input1": "x", "input2": "x"}
_PRODUCTS = {"matmul", "tensordot", "multi_dot", "linalg_multi_dot", "chain_matmul", "vdot", "grouped_mm", "scaled_mm"}
_ATTENTION = "scaled_dot_product_attention"
_RECURRENT = {f"{kind}{cell}" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu") for cell in ("", "_cell")}
_HEADS = {"multi_head_attention_forward", "native_multi_head_attention"}
_NORMS = {
    "layer_norm",
    "group_norm",
    "batch_norm",
    "instance_norm",
    "rms_norm",
    "native_layer_norm",
    "native_batch_norm",
}
_LOOKUPS = {
    "embedding",
    "embedding_bag",
    "index",
    "index_select",
    "gather",
    "take",
    "take_along_dim",
    "grid_sample",
    "cdist",
}
_JOINS = {"cat", "stack", "hstack", "vstack", "dstack", "column_stack", "row_stack"}
_MULTIPLY, _ADD = {"mul", "div", "addcmul", "addcdiv", "lerp"}, {"add", "sub"}
# Nonlinear in the parameter and the data at once, element by element.
_TWO_WAY = {
    "pow",
    "maximum",
    "minimum",
    "fmax",
    "fmin",
    "clamp",
    "clamp_min",
    "clamp_max",
    "atan2",
    "hypot",
    "threshold",
}
_TWO_WAY |= {"fmod", "remainder", "xlogy", "heaviside", "logaddexp", "gt", "lt", "ge", "le", "hardtanh", "floordiv"}
# Element-wise and nonlinear. Those of the first set satisfy f(ax) = a f(x) for a > 0, or round: a factor in front of
# them does not change their shape.
_HOMOGENEOUS = {"relu", "leaky_relu", "abs", "sign", "sgn", "round", "floor", "ceil", "trunc", "clamp", "clamp_min"}
_HOMOGENEOUS |= {"clamp_max", "relu6", "hardtanh", "threshold", "rrelu", "nan_to_num", "heaviside", "prelu"}
_SHAPED = {"elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "sigmoid", "logsigmoid", "tanh", "tanhshrink"}
_SHAPED |= {"hardswish", "hardsigmoid", "softsign", "softshrink", "hardshrink", "exp", "expm1", "exp2", "log", "log1p"}
_SHAPED |= {
    "log2",
    "log10",
    "sqrt",
    "rsqrt",
    "square",
    "reciprocal",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
}
_SHAPED |= {"cosh", "asinh", "acosh", "atanh", "erf", "erfc", "erfinv", "sinc", "special_sinc", "logit", "pow", "frac"}
_SHAPED |= {"where", "maximum", "minimum", "fmax", "fmin", "gt", "lt", "ge", "le", "eq", "ne", "masked_fill", "atan2"}
_NONLINEAR = _HOMOGENEOUS | _SHAPED
_LINEAR = {*_MULTIPLY, *_ADD, "neg", "positive", "to", "float", "double", "half", "bfloat16", "type", "clone", "detach"}
_LINEAR |= {"contiguous", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "data"}
_LINEAR |= {"type_as", "requires_grad", "alias", "lift_fresh", "logical_not", "logical_and", "logical_or", "invert"}
_LINEAR |= {"view", "reshape", "flatten", "unflatten", "transpose", "permute", "t", "T", "mT", "squeeze", "unsqueeze"}
_LINEAR |= {"expand", "expand_as", "view_as", "reshape_as", "movedim", "moveaxis", "swapaxes", "swapdims", "ravel"}
_LINEAR |= {"repeat", "tile", "repeat_interleave", "setitem", "copy_into", "bool", "int", "long", "masked_scatter"}
_LINEAR |= {"and", "or", "xor", "bitwise_and", "bitwise_or", "bitwise_not", "logical_xor"}
_ELEMENTWISE = _LINEAR | _NONLINEAR | _TWO_WAY
_REDUCTIONS = {
    "sum",
    "mean",
    "var",
    "std",
    "norm",
    "amax",
    "amin",
    "var_mean",
    "std_mean",
    "linalg_norm",
    "vector_norm",
}
_REDUCTIONS |= {"linalg_vector_norm", "max", "min", "median", "aminmax", "logsumexp", "prod", "nanmean"}
_GATES = {"sigmoid", "softplus", "exp"}  # their values are above 0
_EXTREMES = {"max", "min", "amax", "amin", "logsumexp"}
_NORMALIZED = {"normalize", *_NORMS}
_CHOICES = {"where", "masked_fill", "setitem", "masked_scatter", "copy_into"}
_PARTS = {"index", "stack", "cat", "narrow", "select"}
_SETTLED: dict[str, Role] = {
    **dict.fromkeys(_NORMS, "norm"),
    **dict.fromkeys(_TWO_WAY, "activation"),
    **dict.fromkeys(_LOOKUPS | _JOINS, "embedding"),
    "prelu": "activation",
}
_ORDER: tuple[Role, ...] = ("activation", "unknown", "embedding", "norm", "weight", "scale", "bias")
_FAR = 64  # operations that are followed from a use


def role_by_use(parameter: Node) -> Role:
    """Returns the role of a parameter by all that used it; ``unknown`` where nothing did, or nothing known.

    Args:
        parameter: Its node in the trace of a forward pass of the model.
    """
    found = {role for learned, use, ways in _uses(parameter) if (role := _role(parameter, learned, use, ways))}
    return next((role for role in _ORDER if role in found), "unknown")


def _uses(parameter: Node) -> Iterator[tuple[Node, Node, frozenset[str]]]:
    """Yields each use with data: the parameter, or what was made of it alone, the operation, and how it got there."""
    waiting, seen = [(parameter, frozenset[str]())], set[tuple[int, frozenset[str]]]()
    while waiting:
        learned, ways = waiting.pop()
        if (id(learned), ways) in seen:
            continue
        seen.add((id(learned), ways))
        for use in learned.used_by:
            if use.data:
                yield learned, use, ways
            else:
                waiting.append((use, ways | _way(learned, use)))


def _way(learned: Node, use: Node) -> frozenset[str]:
    """Describes what an operation on parameters alone does to one of them, where another is in it."""
    if use.operation in _LAYERS or use.operation in _PRODUCTS or use.operation == "einsum":
        taken_as = _slot(use, learned) if use.operation in _LAYERS else "w"
        return frozenset([{"x": "input", "w": "product", "b": "addend"}[taken_as]])
    partners = [node for node in use.inputs if node.parameters - learned.parameters]
    if not partners:
        return frozenset()
    if use.operation in _NORMS:  # weight standardization with a gain
        return frozenset() if learned is next(iter(use.arguments.values())) else frozenset(["factor"])
    if learned.numel < max(node.numel for node in partners):
        if use.operation in _MULTIPLY:
            return frozenset(["factor"])
        if use.operation in _ADD:
            return frozenset(["addend"])
    return frozenset()


def _slot(use: Node, learned: Node) -> str:
    """Returns what a layer's operation takes a tensor as: ``x``, ``w`` or ``b``."""
    slots = _LAYERS.get(use.operation, "")
    for key, value in use.arguments.items():
        if value is learned:
            return _SLOTS.get(key, "x") if isinstance(key, str) else slots[key] if key < len(slots) else "x"
    return "x"


def _role(parameter: Node, learned: Node, use: Node, ways: frozenset[str]) -> Role:
    """Returns the role that one use gives."""
    found = _by_operation(parameter, learned, use, ways)
    if found in ("embedding", "bias", "scale", "weight"):  # what a small network of parameters makes, a table say
        if "addend" in ways:
            return "bias"
        if "product" in ways:
            return "weight"
    return found


def _by_operation(parameter: Node, learned: Node, use: Node, ways: frozenset[str]) -> Role:
    """Returns the role that follows from the operation, by its kind."""
    name, data = use.operation, _data(use)
    if name in _SETTLED:
        return _SETTLED[name]
    if name in _MULTIPLY or (name == "einsum" and not _contracts(use)):
        return _of_factor(parameter, use, data)
    if name in _ADD:
        return _of_addend(parameter, use, data)
    if name in _LAYERS:
        slot = _slot(use, learned)
        if slot == "b":
            return "bias"
        return "embedding" if slot == "x" and not _computed(use) else _of_product(ways, data)
    if name in _PRODUCTS or name == "einsum":
        return _of_product(ways, data)
    if name in _CHOICES:
        return "activation" if _shapes(use, data) else "embedding"
    return _of_fused(parameter, learned, use, ways)


def _of_fused(parameter: Node, learned: Node, use: Node, ways: frozenset[str]) -> Role:
    """Returns the role in an operation that does the work of several."""
    first = [use.arguments.get(i) for i in range(3)]  # query, key and value
    if use.operation == _ATTENTION:
        return _of_product(ways, []) if learned in first else "embedding"
    if use.operation in _HEADS:
        return "embedding" if learned in first else "weight"
    if use.operation in _RECURRENT:
        return "weight" if len(parameter.shape) > 1 else "bias"
    return "unknown"


def _computed(use: Node) -> bool:
    """Tells whether the weight of a layer's operation is computed from data, as in a network that makes weights."""
    return any(node.data for key, node in use.arguments.items() if isinstance(node, Node) and _slot(use, node) == "w")


def _of_product(ways: frozenset[str], data: list[Node]) -> Role:
    if "input" in ways:
        return "embedding"
    if "factor" in ways:
        return "scale"
    if "addend" in ways:
        return "bias"
    return "activation" if any(map(_is_basis, data)) else "weight"


def _of_factor(parameter: Node, use: Node, data: list[Node]) -> Role:
    """Returns the role of a factor, or divisor, of data."""
    if _is_normalized(use, data):
        return "scale" if parameter.numel == 1 else "norm"
    following = _followed_by(use)
    if following == "sum" and parameter.numel > 1:  # a matrix product by hand
        return "activation" if any(map(_is_basis, data)) else "weight"
    if _enlarges(use, data):
        return "activation" if following in _EXTREMES else "scale"
    if _shapes(use, data):
        return "activation"
    if any(_is_similarity(node) or _has_linearly(node, parameter) for node in data):
        return "scale"
    shape = _next_nonlinearity(use)
    if shape == "exp" and any(near.operation in _GATES for node in data for near in _line(node)):
        return "scale"  # the rate of a decay, exp(-rate * gate)
    return "activation" if shape in _SHAPED else "scale"


def _of_addend(parameter: Node, use: Node, data: list[Node]) -> Role:
    """Returns the role of what is added to data, or subtracted."""
    if _is_normalized(use, data):
        return "norm" if parameter.numel > 1 else "bias"
    if _followed_by(use) in _EXTREMES and any(
        _enlarges(near, _data(near)) for n in data for near in _ancestors(n, _LINEAR)
    ):
        return "activation"  # the largest of several learned lines
    if _enlarges(use, data):  # distances from learned centres: a basis, if something nonlinear is made of them
        return "activation" if _next_nonlinearity(use) is not None else "bias"
    if _shapes(use, data):
        return "activation"
    return "embedding" if sum(size > 1 for size in parameter.shape) > 1 else "bias"


def _enlarges(use: Node, data: list[Node]) -> bool:
    """Tells whether data become more numbers by what they meet, so that it is no longer element by element."""
    return bool(data) and use.numel > max(node.numel for node in data)


def _contracts(use: Node) -> bool:
    """Tells whether an einsum sums over anything."""
    equation = next((v for v in use.arguments.values() if isinstance(v, str)), "")
    left, arrow, right = equation.replace(" ", "").partition("->")
    if not arrow:
        letters = left.replace(",", "")
        return any(letters.count(letter) > 1 for letter in letters)
    return bool({*left} - {*right} - {",", "."})


def _next_nonlinearity(use: Node) -> str | None:
    """Returns the first nonlinear operation behind a factor; None where a layer, or something added, comes first."""
    node = use
    for _ in range(_FAR):
        following = [n for n in node.used_by if n.data]
        steps = {n.operation for n in following}
        if nonlinear := steps & _NONLINEAR:
            return min(nonlinear)
        if len(following) != 1 or not steps <= _LINEAR or steps & _ADD:
            return None
        (node,) = following
    return None


def _followed_by(use: Node) -> str | None:
    """Returns the operation behind a use that is none of changing shape, adding or multiplying; None where it forks."""
    node = use
    for _ in range(_FAR):
        following = _data_uses(node)
        if len(following) != 1:
            return None
        (node,) = following
        if node.operation not in _LINEAR:
            return node.operation
    return None


def _data(node: Node) -> list[Node]:
    return [n for n in node.inputs if n.data]


def _data_uses(node: Node) -> list[Node]:
    """Returns the operations that took a tensor; of one with several results, the first."""
    return list({id(n.arguments): n for n in reversed(node.used_by) if n.data}.values())


def _has_linearly(node: Node, parameter: Node) -> bool:
    """Tells whether data are a linear combination that this parameter is already in, such as a weighted mean."""
    return any(
        near.parameters & parameter.parameters and near.operation in _MULTIPLY for near in _ancestors(node, _LINEAR)
    )


def _is_similarity(node: Node) -> bool:
    """Tells whether data are products of data with data, or distances: what is divided by a temperature."""
    for near in _ancestors(node, _LINEAR):
        if near.operation in ("cdist", "cosine_similarity", "pairwise_distance"):
            return True
        if near.operation in _PRODUCTS or near.operation in ("einsum", *_LAYERS):
            return all(n.data for n in near.inputs)
    return False


def _ancestors(node: Node, through: set[str]) -> Iterator[Node]:
    """Yields a tensor and what it was made of by these operations, nearest first."""
    waiting, seen = [node], {id(node)}
    while waiting and len(seen) < 50 * _FAR:
        near = waiting.pop(0)
        yield near
        if near.operation in through:
            for source in near.inputs:
                if source.data and id(source) not in seen:
                    seen.add(id(source))
                    waiting.append(source)


def _descendants(node: Node) -> Iterator[Node]:
    """Yields what is made of a tensor element by element, nearest first, the joining of tensors included."""
    waiting, seen = [node], {id(node)}
    while waiting and len(seen) < _FAR:
        near = waiting.pop(0)
        yield near
        for use in near.used_by:
            if id(use) not in seen and use.operation in _ELEMENTWISE | _JOINS:
                seen.add(id(use))
                waiting.append(use)


def _shapes(use: Node, data: list[Node]) -> bool:
    """Tells whether a tensor reaches the end of an element-wise region both by this use and past it, nonlinearly."""
    sources = [near for node in data for near in _ancestors(node, _ELEMENTWISE)]
    own = {id(near): near for near in sources}
    for join in _descendants(use):
        others = [n for n in join.inputs if n.data and not _comes_from(n, use)]
        for other in others if join is not use else []:
            common = next((near for near in _ancestors(other, _ELEMENTWISE) if id(near) in own), None)
            if common is not None and _nonlinear_between(common, join) and not _is_gain(use, join):
                return True
    if len(data) > 1:  # the use itself is where the ways meet
        first = {id(near) for near in _ancestors(data[0], _ELEMENTWISE)}
        common = next((near for near in _ancestors(data[1], _ELEMENTWISE) if id(near) in first), None)
        return common is not None and _nonlinear_between(common, use)
    return False


def _is_gain(use: Node, join: Node) -> bool:
    """Tells whether the parameter remains a factor of everything, as in ``(gain * x) * sigmoid(x)``."""
    if join.operation not in _MULTIPLY or use.operation not in _MULTIPLY:
        return False
    between = [n for n in _ancestors(join, _ELEMENTWISE) if n is not join and _comes_from(n, use)]
    return not any(n.operation in _NONLINEAR | _TWO_WAY or _adds_learned(n) for n in between)


def _adds_learned(node: Node) -> bool:
    return node.operation in _ADD and any(n.learned_only for n in node.inputs)


def _comes_from(node: Node, source: Node) -> bool:
    return any(near is source for near in _ancestors(node, _ELEMENTWISE | _JOINS))


def _nonlinear_between(start: Node, end: Node) -> bool:
    """Tells whether anything on the element-wise ways from one tensor to another is nonlinear in the first."""
    inside = {id(n) for n in _ancestors(end, _ELEMENTWISE | _JOINS) if n is start or _comes_from(n, start)}
    for near in _ancestors(end, _ELEMENTWISE | _JOINS):
        if near is start or id(near) not in inside:
            continue
        varying = [n for n in near.inputs if id(n) in inside]
        if near.operation in _NONLINEAR | _TWO_WAY and varying:
            return True
        if near.operation in _MULTIPLY and len(varying) > 1:
            return True
        if near.operation == "div" and near.arguments.get(1, near.arguments.get("other")) in varying:
            return True
    return False


def _is_normalized(use: Node, data: list[Node]) -> bool:
    """Tells whether data were divided by a statistic of theirs before this use, or are right after it."""
    for node in data:
        for near in _line(node):
            if near.operation in _NORMALIZED and not any(n.learned_only for n in near.inputs):
                return True
            if _by_statistic(near):
                return True
    node = use
    for _ in range(4):  # weight * x * rsqrt(mean(x²))
        following = [n for n in node.used_by if n.operation in _LINEAR]
        if len(following) != 1:
            return False
        (node,) = following
        if _by_statistic(node):
            return True
    return False


def _line(node: Node) -> Iterator[Node]:
    """Yields a tensor and what it was made of by linear operations, as long as no other data join in."""
    yield node
    while node.operation in _LINEAR and len(_data(node)) == 1:
        (node,) = _data(node)
        yield node


def _by_statistic(node: Node) -> bool:
    """Tells whether an operation multiplies, or divides, data by a statistic of the same data."""
    if node.operation not in ("mul", "div"):
        return False
    data = [n for n in node.inputs if n.data]
    if len(data) != 2:
        return False
    return any(one.numel < other.numel and _is_statistic(one) for one, other in (data, data[::-1]))


def _is_statistic(node: Node) -> bool:
    """Tells whether a tensor is a reduction of data, or something element-wise of one."""
    return any(near.operation in _REDUCTIONS for near in _ancestors(node, _ELEMENTWISE))


def _is_basis(node: Node) -> bool:
    """Tells whether data are nonlinear functions of a tensor with fewer dimensions: the basis of learned functions."""
    whole = [near for near in _ancestors(node, _ELEMENTWISE | _JOINS) if near.operation not in _ELEMENTWISE | _PARTS]
    if any(near.numel >= node.numel for near in whole):  # a gate, say, is expanded to meet another tensor
        return False
    bent = list[Node]()  # nonlinear operations behind what is looked at, seen from the product
    for near in _ancestors(node, _ELEMENTWISE | _PARTS):
        if near.operation in _NONLINEAR | _TWO_WAY:
            bent.append(near)
        sources = _data(near)
        if near.operation == "stack":
            if _of_one_tensor(sources) and any(map(_is_nonlinear, sources)):
                return True
        elif near.operation in _ELEMENTWISE and _enlarges(near, sources) and any(_precedes(near, n) for n in bent):
            return True
    return False


def _precedes(near: Node, later: Node) -> bool:
    return any(near is before for before in _ancestors(later, _ELEMENTWISE | _PARTS))


def _of_one_tensor(nodes: list[Node]) -> bool:
    """Tells whether several tensors are element-wise functions of a common one."""
    if len(nodes) < 2:
        return False
    return bool(set.intersection(*({id(near) for near in _ancestors(node, _ELEMENTWISE)} for node in nodes)))


def _is_nonlinear(node: Node) -> bool:
    return any(near.operation in _NONLINEAR | _TWO_WAY for near in _ancestors(node, _ELEMENTWISE))


def describe(parameter: Node) -> Mapping[str, Any]:
    """Returns the operations that took a parameter together with data, for somebody who asks why."""
    return {use.operation: ways for _, use, ways in _uses(parameter)}
