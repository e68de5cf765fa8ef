"""Searches the operations around a use of a parameter: what is element-wise in one tensor, and what bends it."""

from collections.abc import Collection, Iterator

from decaybench.parameter_roles.operations import (
    ADD,
    BENDING,
    DISTANCES,
    ELEMENTWISE,
    EXTREMES,
    JOINS,
    LAYERS,
    LINEAR,
    MULTIPLY,
    NORMALIZED,
    PARTS,
    PRODUCTS,
    REDUCTIONS,
    TWO_WAY,
)
from decaybench.parameter_roles.trace import Node

FAR = 64  # operations that are followed from a use
MOST = 3200  # tensors that one search looks at


def data_of(node: Node) -> list[Node]:
    """Returns the inputs of an operation that come from the model's input."""
    return [n for n in node.inputs if n.data]


def data_uses(node: Node) -> list[Node]:
    """Returns the operations that took a tensor together with data; of one with several results, the first."""
    return list({id(n.arguments): n for n in reversed(node.used_by) if n.data}.values())


def ancestors(node: Node, through: Collection[str]) -> Iterator[Node]:
    """Yields a tensor and what it was made of by these operations, nearest first."""
    waiting, seen = [node], {id(node)}
    while waiting and len(seen) < MOST:
        near = waiting.pop(0)
        yield near
        if near.operation in through:
            for source in data_of(near):
                if id(source) not in seen:
                    seen.add(id(source))
                    waiting.append(source)


def descendants(node: Node) -> Iterator[Node]:
    """Yields what is made of a tensor element by element, nearest first, the joining of tensors included."""
    waiting, seen = [node], {id(node)}
    while waiting and len(seen) < FAR:
        near = waiting.pop(0)
        yield near
        for use in near.used_by:
            if id(use) not in seen and use.operation in ELEMENTWISE | JOINS:
                seen.add(id(use))
                waiting.append(use)


def line(node: Node, through: Collection[str] = LINEAR) -> Iterator[Node]:
    """Yields a tensor and what it was made of by linear operations, as long as no other data join in."""
    yield node
    while node.operation in through and len(data_of(node)) == 1:
        (node,) = data_of(node)
        yield node


def comes_from(node: Node, source: Node) -> bool:
    """Tells whether a tensor is made of another one element by element."""
    return any(near is source for near in ancestors(node, ELEMENTWISE | JOINS))


def share(first: Node, second: Node) -> bool:
    """Tells whether two tensors are element-wise functions of a common one."""
    known = {id(near) for near in ancestors(first, ELEMENTWISE)}
    return any(id(near) in known for near in ancestors(second, ELEMENTWISE))


def of_one_tensor(nodes: list[Node]) -> bool:
    """Tells whether several tensors are element-wise functions of a common one."""
    if len(nodes) < 2:
        return False
    return bool(set.intersection(*({id(near) for near in ancestors(node, ELEMENTWISE)} for node in nodes)))


def enlarges(node: Node) -> bool:
    """Tells whether data become more numbers by what they meet, so that it is no longer element by element."""
    data = data_of(node)
    return bool(data) and node.numel > max(n.numel for n in data)


def is_denominator(node: Node, part: Node) -> bool:
    """Tells whether an operation divides by a tensor."""
    return node.operation == "div" and node.arguments.get(1, node.arguments.get("other")) is part


def bends(node: Node) -> bool:
    """Tells whether an operation is nonlinear in data by itself, or multiplies two functions of one tensor."""
    if node.operation in BENDING:
        return True
    return node.operation in MULTIPLY and of_one_tensor(data_of(node))


def bends_between(start: Node, end: Node) -> bool:
    """Tells whether anything on the element-wise ways from one tensor to another is nonlinear in the first."""
    inside = region(start, end)
    for near in inside.values():
        if near is start:
            continue
        varying = [n for n in near.inputs if id(n) in inside]
        if varying and (near.operation in BENDING or any(is_denominator(near, n) for n in varying)):
            return True
        if near.operation in MULTIPLY and len(varying) > 1:
            return True
    return False


def region(start: Node, end: Node) -> dict[int, Node]:
    """Returns the tensors on the element-wise ways from one to another, both included."""
    return {id(n): n for n in ancestors(end, ELEMENTWISE | JOINS) if n is start or comes_from(n, start)}


def shapes(use: Node) -> bool:
    """Tells whether a tensor reaches the end of an element-wise region both by this use and past it, nonlinearly."""
    data = data_of(use)
    own = {id(near): near for node in data for near in ancestors(node, ELEMENTWISE)}
    for join in descendants(use):
        if join is use:
            continue
        for other in data_of(join):
            if not comes_from(other, use) and _meet(use, join, other, own):
                return True
    return len(data) > 1 and _meet(use, use, data[1], {id(near): near for near in ancestors(data[0], ELEMENTWISE)})


def _meet(use: Node, join: Node, other: Node, own: dict[int, Node]) -> bool:
    """Tells whether the way by the use and another one meet as two functions of one tensor, of which one is bent."""
    for common in ancestors(other, ELEMENTWISE):
        if id(common) in own:
            found = _decided(use, join, common)
            if found is not None:
                return found
    return False


def _decided(use: Node, join: Node, common: Node) -> bool | None:
    """Decides about the region from a tensor to a join; None where it is not a function of this tensor alone."""
    inside = region(common, join)
    extras = {
        id(node): [n for n in data_of(node) if id(n) not in inside and not is_statistic(n)]
        for node in inside.values()
        if node is not common
    }
    if any(share(extra, common) for found in extras.values() for extra in found):
        return None
    by_use = [
        n for n in inside.values() if n is not common and n is not join and (comes_from(n, use) or comes_from(use, n))
    ]
    mine = {id(extra) for node in by_use for extra in extras[id(node)]}
    theirs = {id(e) for key, found in extras.items() if key not in {id(n) for n in by_use} for e in found}
    if any(extras[id(node)] for node in by_use if node.operation not in MULTIPLY):
        return False  # something else is added to it on the way
    if mine and (join.operation not in MULTIPLY or theirs) and not mine <= theirs:
        return False
    if join.operation == "div" and (mine or theirs):
        return False
    if not bends_between(common, join):
        return join.operation in ("stack", "cat") and any(n.operation in EXTREMES for n in data_uses(join))
    return not _is_gain(use, join)


def _is_gain(use: Node, join: Node) -> bool:
    """Tells whether the parameter remains a factor of everything, as in ``(gain * x) * sigmoid(x)``."""
    if join.operation not in MULTIPLY or use.operation not in MULTIPLY or join is use:
        return False
    between = [n for n in ancestors(join, ELEMENTWISE) if n is not join and comes_from(n, use)]
    if any(is_denominator(join, n) for n in between):
        return False
    return not any(n.operation in BENDING or (n.operation in ADD and len(data_of(n)) == 1) for n in between)


def next_nonlinearity(use: Node, past_learned: bool = False) -> str | None:
    """Returns the first nonlinear operation behind a use; None where a layer, or something added, comes first.

    Args:
        use: The use.
        past_learned: Whether parameters may be added before it.
    """
    node = use
    for _ in range(FAR):
        following = data_uses(node)
        steps = {n.operation for n in following}
        if nonlinear := steps & (BENDING | TWO_WAY):
            return min(nonlinear)
        if len(following) != 1:
            return None
        (after,) = following
        if is_denominator(after, node) and len(data_of(after)) == 1:
            return "reciprocal"
        if after.operation in ADD and (len(data_of(after)) > 1 or (not past_learned and adds_learned(after))):
            return None
        if after.operation not in ELEMENTWISE:
            return None
        node = after
    return None


def adds_learned(node: Node) -> bool:
    """Tells whether an operation adds a parameter to data."""
    return node.operation in ADD and any(n.learned_only for n in node.inputs)


def followed_by(use: Node) -> str | None:
    """Returns the operation behind a use that is none of changing shape, adding or multiplying; None where it forks."""
    node = use
    for _ in range(FAR):
        following = data_uses(node)
        if len(following) != 1:
            return None
        (node,) = following
        if node.operation not in LINEAR:
            return node.operation
    return None


def is_contracted(use: Node) -> bool:
    """Tells whether what is made of a use, element by element, is summed or multiplied as a matrix."""
    for near in descendants(use):
        for after in near.used_by:
            if after.operation in PRODUCTS or after.operation in LAYERS or after.operation in ("einsum", "sum"):
                return True
    return False


def is_enlarged(node: Node) -> bool:
    """Tells whether data were made more numbers by multiplying or adding, just before."""
    return any(near.operation in MULTIPLY | ADD and enlarges(near) for near in line(node))


def is_similarity(node: Node) -> bool:
    """Tells whether data are products of data with data, or distances: what is divided by a temperature."""
    for near in ancestors(node, LINEAR | {"pow", "square", "sqrt", "abs"}):
        if near.operation in DISTANCES:
            return True
        if near.operation == "sub" and len(data_of(near)) == 2 and enlarges(near):  # each with each
            return True
        if near.operation in PRODUCTS or near.operation in ("einsum", *LAYERS):
            return all(n.data for n in near.inputs)
    return False


def is_normalized(use: Node) -> bool:
    """Tells whether data were divided by a statistic of theirs before this use, or are right after it."""
    for node in data_of(use):
        for near in line(node):
            if near.operation in NORMALIZED and not any(n.learned_only for n in near.inputs):
                return True
            if _by_statistic(near):
                return True
    node = use
    for _ in range(4):  # weight * x * rsqrt(mean(x²))
        following = [n for n in node.used_by if n.operation in LINEAR]
        if len(following) != 1:
            return False
        (node,) = following
        if _by_statistic(node):
            return True
    return False


def _by_statistic(node: Node) -> bool:
    """Tells whether an operation multiplies, or divides, data by a statistic of the same data."""
    data = data_of(node)
    if node.operation not in ("mul", "div") or len(data) != 2:
        return False
    return any(one.numel < other.numel and is_statistic(one) for one, other in (data, data[::-1]))


def is_statistic(node: Node) -> bool:
    """Tells whether a tensor is a reduction of data, or something element-wise of one."""
    return any(near.operation in REDUCTIONS for near in ancestors(node, ELEMENTWISE))


def is_basis(node: Node) -> bool:
    """Tells whether data are several nonlinear functions of one tensor: the basis of learned functions."""
    whole = [near for near in ancestors(node, ELEMENTWISE | JOINS) if near.operation not in ELEMENTWISE | PARTS]
    if any(near.numel >= node.numel for near in whole):  # a gate, say, is expanded to meet another tensor
        return False
    bent = list[Node]()  # nonlinear operations behind what is looked at, seen from the product
    for near in ancestors(node, ELEMENTWISE | PARTS):
        sources = _written(near) if near.operation == "setitem" else data_of(near)
        joined = {"stack": 2, "setitem": 2, "cat": 3}.get(near.operation)
        if joined is not None:
            if len(sources) >= joined and of_one_tensor(sources) and any(map(_is_bent, sources)):
                return True
        elif len(sources) == 1 and near.operation in ELEMENTWISE and enlarges(near) and _is_before(near, bent):
            return True
        bent += [near] * bends(near)
    return False


def _written(node: Node) -> list[Node]:
    """Returns the data that were written into a tensor, one after the other."""
    found = []
    while node.operation == "setitem":
        values = [v for key, v in node.arguments.items() if key != 0 and isinstance(v, Node) and v.data]
        found += values[-1:]
        target = node.arguments.get(0)
        if not isinstance(target, Node):
            break
        node = target
    return found


def _is_before(near: Node, bent: list[Node]) -> bool:
    """Tells whether an operation is nonlinear, or one of the nonlinear ones was made of its result."""
    return bends(near) or any(near is before for n in bent for before in ancestors(n, ELEMENTWISE | PARTS))


def _is_bent(node: Node) -> bool:
    return any(bends(near) for near in ancestors(node, ELEMENTWISE | PARTS))


def is_basis_by_turns(products: list[Node]) -> bool:
    """Tells whether what a parameter is multiplied with, part by part, are nonlinear functions of one tensor."""
    distinct = list({id(node): node for node in products}.values())
    return len(distinct) >= 3 and of_one_tensor(distinct) and any(map(_is_bent, distinct))
