"""Infers the role of a parameter from the operations that take it during one forward pass of the model.

A parameter is followed through operations on parameters alone (exp, view, softplus, quantization) to the operations
that take it together with data. A matrix product or a convolution makes it a weight, a lookup an embedding, and so on.
Where an operation works element by element, what counts is the smallest region around it that is element-wise in one
tensor: where the tensor reaches the end of the region by two ways, and by one of them nonlinearly, as in
``relu(x) + a * relu(-x)``, the parameter shapes the nonlinearity; where there is one way only, as in
``gain * relu(linear(x))``, it is a gain.
"""

from collections.abc import Iterator

from decaybench.parameter_roles.library_rules import Role
from decaybench.parameter_roles.operations import (
    ADD,
    ATTENTION,
    CHOICES,
    ELEMENTWISE,
    EXTREMES,
    GATES,
    HEADS,
    JOINS,
    LAYERS,
    LINEAR,
    LOOKUPS,
    MULTIPLY,
    NORMS,
    PARTS,
    PRODUCTS,
    RECURRENT,
    ROUNDING,
    SHAPED,
    SLOTS,
    TABLES_BY_SIZE,
    TWO_WAY,
)
from decaybench.parameter_roles.regions import (
    ancestors,
    data_of,
    descendants,
    enlarges,
    followed_by,
    is_basis,
    is_basis_by_turns,
    is_contracted,
    is_enlarged,
    is_normalized,
    is_similarity,
    line,
    next_nonlinearity,
    shapes,
)
from decaybench.parameter_roles.trace import Node

_SETTLED: dict[str, Role] = {
    **dict.fromkeys(NORMS, "norm"),
    **dict.fromkeys(TWO_WAY, "activation"),
    **dict.fromkeys(JOINS, "embedding"),
    "prelu": "activation",
}
_ORDER: tuple[Role, ...] = ("activation", "unknown", "embedding", "norm", "weight", "scale", "bias")


def role_by_use(parameter: Node) -> Role:
    """Returns the role of a parameter by all that used it; ``unknown`` where nothing did, or nothing known.

    Args:
        parameter: Its node in the trace of a forward pass of the model.
    """
    found, products = set[Role](), list[Node]()
    for learned, use, ways in _uses(parameter):
        found.add(_role(parameter, learned, use, ways))
        if not ways and (use.operation in PRODUCTS or use.operation in ("einsum", *LAYERS)):
            products += data_of(use)
    if "weight" in found and is_basis_by_turns(products):
        return "activation"
    return next((role for role in _ORDER if role in found), "unknown")


def quantizes(parameter: Node) -> bool:
    """Tells whether what a parameter makes with data is rounded: it is then a step or a zero point of a quantizer."""
    return any(near.operation in ROUNDING for _, use, _ in _uses(parameter) for near in descendants(use))


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
    """Describes what an operation on parameters alone does to one of them."""
    if use.operation in LAYERS or use.operation in PRODUCTS or use.operation == "einsum":
        taken_as = _slot(use, learned) if use.operation in LAYERS else "w"
        return frozenset([{"x": "input", "w": "product", "b": "addend"}[taken_as]])
    partners = [node for node in use.inputs if node.parameters - learned.parameters]
    if not partners:
        return frozenset()
    if use.operation in NORMS:  # weight standardization with a gain
        return frozenset() if learned is next(iter(use.arguments.values())) else frozenset(["factor"])
    if learned.numel < max(node.numel for node in partners):
        if use.operation in MULTIPLY:
            return frozenset(["factor"])
        if use.operation in ADD:
            return frozenset(["addend"])
    return frozenset()


def _slot(use: Node, learned: Node) -> str:
    """Returns what a layer's operation takes a tensor as: ``x``, ``w`` or ``b``."""
    slots = LAYERS.get(use.operation, "")
    for key, value in use.arguments.items():
        if value is learned:
            return SLOTS.get(key, "x") if isinstance(key, str) else slots[key] if key < len(slots) else "x"
    return "x"


def _role(parameter: Node, learned: Node, use: Node, ways: frozenset[str]) -> Role:
    """Returns the role that one use gives."""
    found = _by_operation(parameter, learned, use, ways)
    if found in ("embedding", "bias", "scale", "weight"):  # what a small network of parameters makes, a table say
        if "addend" in ways:
            return "bias"
        if "product" in ways:
            return "weight"
        if "input" in ways:  # a learned token, query or first state
            return "embedding"
    return found


def _by_operation(parameter: Node, learned: Node, use: Node, ways: frozenset[str]) -> Role:
    """Returns the role that follows from the operation, by its kind."""
    name = use.operation
    if name in _SETTLED:
        return _SETTLED[name]
    if name in ADD or (name in ("addcmul", "addcdiv") and use.arguments.get(0) is learned):
        return _of_addend(parameter, use)
    if name in MULTIPLY or (name == "einsum" and not _contracts(use)):
        return _of_factor(parameter, use)
    if name in LAYERS:
        slot = _slot(use, learned)
        if slot == "b":
            return "bias"
        return "embedding" if slot == "x" and not _computed(use) else _of_product(ways, use)
    if name in PRODUCTS or name == "einsum":
        return _of_product(ways, use)
    if name in CHOICES:
        return "activation" if shapes(use) else "embedding"
    if name in LOOKUPS:
        return "unknown" if _by_size(use) else "embedding"
    return _of_fused(parameter, learned, use, ways)


def _by_size(use: Node) -> bool:
    """Tells whether a table is looked up by the size of numbers, as in a spline, rather than by a given index."""
    return any(near.operation in TABLES_BY_SIZE for n in data_of(use) for near in ancestors(n, ELEMENTWISE))


def _of_fused(parameter: Node, learned: Node, use: Node, ways: frozenset[str]) -> Role:
    """Returns the role in an operation that does the work of several."""
    first = [use.arguments.get(i) for i in range(3)]  # query, key and value
    if use.operation == ATTENTION:
        return _of_ways(ways) if learned in first else "embedding"
    if use.operation in HEADS:
        return "embedding" if learned in first else "weight"
    if use.operation in RECURRENT:
        return "weight" if len(parameter.shape) > 1 else "bias"
    return "unknown"


def _computed(use: Node) -> bool:
    """Tells whether the weight of a layer's operation is computed from data, as in a network that makes weights."""
    return any(node.data for key, node in use.arguments.items() if isinstance(node, Node) and _slot(use, node) == "w")


def _contracts(use: Node) -> bool:
    """Tells whether an einsum sums over anything."""
    equation = next((v for v in use.arguments.values() if isinstance(v, str)), "")
    left, arrow, right = equation.replace(" ", "").partition("->")
    if not arrow:
        letters = left.replace(",", "")
        return any(letters.count(letter) > 1 for letter in letters)
    return bool({*left} - {*right} - {",", "."})


def _of_ways(ways: frozenset[str]) -> Role:
    """Returns the role in a product, by what was done to the parameter before it."""
    if "input" in ways:
        return "embedding"
    return "scale" if "factor" in ways else "bias" if "addend" in ways else "weight"


def _of_product(ways: frozenset[str], use: Node) -> Role:
    found = _of_ways(ways)
    # What scales the coefficients of a basis scales learned functions.
    return "activation" if found in ("weight", "scale") and any(map(is_basis, data_of(use))) else found


def _of_factor(parameter: Node, use: Node) -> Role:
    """Returns the role of a factor, or divisor, of data."""
    data = data_of(use)
    following = followed_by(use)
    if following == "sum" and parameter.numel > 1:  # a matrix product by hand
        return "activation" if any(map(is_basis, data)) else "weight"
    if shapes(use):
        return "activation"
    if is_normalized(use):
        return "scale" if parameter.numel == 1 else "norm"
    large = enlarges(use)
    if large and following in EXTREMES:
        return "activation"  # the largest of several learned lines
    if any(is_similarity(node) or _has_linearly(node, parameter) for node in data):
        return "scale"
    shape = next_nonlinearity(use, past_learned=large)
    if shape == "exp" and any(near.operation in GATES for node in data for near in line(node, LINEAR | PARTS)):
        return "scale"  # the rate of a decay, exp(-rate * gate)
    if large and not is_contracted(use):
        return "scale"
    return "activation" if shape in SHAPED else "scale"


def _of_addend(parameter: Node, use: Node) -> Role:
    """Returns the role of what is added to data, or subtracted."""
    data = data_of(use)
    if shapes(use):
        return "activation"
    if is_normalized(use):
        return "norm" if parameter.numel > 1 else "bias"
    large = enlarges(use)
    if large or any(map(is_enlarged, data)):  # learned lines, phases, or distances from learned centres
        if followed_by(use) in EXTREMES and any(map(is_enlarged, data)):
            return "activation"
        return "activation" if next_nonlinearity(use) is not None and is_contracted(use) else "bias"
    if sum(size > 1 for size in parameter.shape) > 1 and not _of_several_layers(parameter, data):
        return "embedding"
    return "bias"


def _of_several_layers(parameter: Node, data: list[Node]) -> bool:
    """Tells whether data are products with the weights of several layers at once, each of which has its bias."""
    wide = {size for size in parameter.shape if size > 1}
    for node in data:
        for near in line(node):
            if near.operation in PRODUCTS or near.operation == "einsum":
                weights = [n for n in near.inputs if n.learned_only and len(n.shape) > 2]
                return any(wide <= set(n.shape) for n in weights)
    return False


def _has_linearly(node: Node, parameter: Node) -> bool:
    """Tells whether data are a linear combination that this parameter is already in, such as a weighted mean."""
    return any(
        near.parameters & parameter.parameters and near.operation in MULTIPLY for near in ancestors(node, LINEAR)
    )
