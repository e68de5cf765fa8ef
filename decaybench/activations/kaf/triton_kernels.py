"""The kernels of a KAF for GPUs, in Triton. A table is (9, C·K): each number of a row for all cells, cell c·K + k."""

import triton
import triton.language as tl


@triton.jit
def kappa(t, kind: tl.constexpr):
    """Computes κ at s − d; of the Gaussian, t is √(γ·log₂e)·(s − d), so that it is one power of 2."""
    if kind == "gaussian":
        value = tl.exp2(-(t * t))
    elif kind == "relu":
        value = tl.where(t > 0, t, tl.where(t <= 0, 0.0, t))  # NaN stays NaN
    else:
        value = tl.where(t > 0, t, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(t)))
    return value


@triton.jit
def kappa_slope(x, precision, root, kind: tl.constexpr):
    """Computes κ′ at x = s − d."""
    if kind == "gaussian":
        slope = -2.0 * precision * x * kappa(root * x, kind)
    elif kind == "relu":
        slope = tl.where(x <= 0, 0.0, 1.0).to(x.dtype)  # 1 at NaN, as torch's
    else:
        slope = 1.0 / (1.0 + tl.exp(-x))
    return slope


@triton.jit
def odd(x):
    """Tells whether x is NaN or ±Inf: then x − x is not 0."""
    return (x - x) != 0.0


@triton.jit
def by_atoms(x, c, alpha, grid, D, kind: tl.constexpr, steep: tl.constexpr, N: tl.constexpr):
    """Computes f, or f′ if ``steep``, by its definition for x (N,) of the channels c; NaN and ±Inf are computed so."""
    precision, atom, delta, root = tl.load(grid + 4), tl.load(grid + 5), tl.load(grid + 6), tl.load(grid + 7)
    total = tl.zeros((N,), x.dtype)
    for i in range(D):
        distance = x - (atom + i * delta)
        if steep:
            total += tl.load(alpha + c * D + i) * kappa_slope(distance, precision, root, kind)
        else:
            total += tl.load(alpha + c * D + i) * kappa(root * distance, kind)
    return total


@triton.jit
def build(alpha, basis, first, centre, table, cells, K, D, W, tail, straight: tl.constexpr, BLOCK: tl.constexpr):
    """Builds the table: centres, seven coefficients, the slope right of the pieces. In float64 up to the last step."""
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = cell < cells
    k = cell % K
    own = alpha + (cell // K) * D
    start = tl.load(first + k, mask=inside, other=0)
    slot = tl.arange(0, 8)
    row = tl.zeros((BLOCK, 8), tl.float64)
    for w in range(W):
        a = tl.load(own + start + w, mask=inside, other=0.0).to(tl.float64)
        row += a[:, None] * tl.load(basis + (k * W + w)[:, None] * 8 + slot[None, :])
    row = tl.where(slot[None, :] == 0, tl.load(centre + k)[:, None], row)
    kind = table.dtype.element_ty
    tl.store(table + slot[None, :].to(tl.int64) * cells + cell[:, None], row.to(kind), mask=inside[:, None])
    total = tl.zeros((BLOCK,), tl.float64)
    if straight:  # otherwise f is 0 there
        for i in range(D):
            total += tl.load(own + i, mask=inside, other=0.0).to(tl.float64)
    tl.store(table + 8 * cells + cell, (total * tl.load(tail)).to(kind), mask=inside)


@triton.jit
def locate(x, c, table, grid, K):
    """Finds the row of x in the table, and its u in −1 … 1."""
    low, high, scale, inverse = tl.load(grid), tl.load(grid + 1), tl.load(grid + 2), tl.load(grid + 3)
    cut = tl.where(x > low, x, low)  # NaN becomes low here
    cut = tl.where(cut < high, cut, high)
    k = ((cut - low) * scale).to(tl.int32)
    place = c * K + tl.where(k < K, k, K - 1)
    return place, (cut - tl.load(table + place)) * inverse


@triton.jit
def forward(
    s, alpha, table, out, grid, size, C, inner, K, D, kind: tl.constexpr, huge: tl.constexpr, BLOCK: tl.constexpr
):
    """Computes f for each number of s (outer, C, inner)."""
    program = tl.program_id(0)
    if huge:  # beyond 2³¹ numbers; divisions of 64 bits are slow
        program = program.to(tl.int64)
    at = program * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    x = tl.load(s + at, mask=inside, other=0.0)
    c = ((at // inner) % C).to(tl.int32)
    cells = C * K
    place, u = locate(x, c, table, grid, K)
    f = tl.load(table + 7 * cells + place)
    for j in tl.static_range(6):
        f = f * u + tl.load(table + (6 - j) * cells + place)
    if kind != "gaussian":
        beyond = x - tl.load(grid + 1)
        f += tl.where(beyond > 0, beyond * tl.load(table + 8 * cells + place), 0.0)
    if tl.max(odd(x).to(tl.int32), 0) > 0:
        f = tl.where(odd(x), by_atoms(x, c, alpha, grid, D, kind, False, BLOCK), f)
    tl.store(out + at, f, mask=inside)


@triton.jit
def slope_at(x, c, alpha, table, grid, C, K, D, kind: tl.constexpr, LANES: tl.constexpr):
    """Computes f′ for x (LANES,) of the channels c."""
    cells = C * K
    place, u = locate(x, c, table, grid, K)
    slope = 6 * tl.load(table + 7 * cells + place)
    for j in tl.static_range(5):
        slope = slope * u + (5 - j) * tl.load(table + (6 - j) * cells + place)
    slope = slope * tl.load(grid + 3)
    slope = tl.where(x > tl.load(grid + 1), tl.load(table + 8 * cells + place), slope)
    slope = tl.where(x < tl.load(grid), 0.0, slope)
    if tl.max(odd(x).to(tl.int32), 0) > 0:
        slope = tl.where(odd(x), by_atoms(x, c, alpha, grid, D, kind, True, LANES), slope)
    return slope


@triton.jit
def backward(
    grad, s, alpha, table, down, parts, grid, outer, C, inner, K, D, steps,
    kind: tl.constexpr, LANES: tl.constexpr, G: tl.constexpr, I: tl.constexpr, CHUNKS: tl.constexpr,
    fours: tl.constexpr,
):  # fmt: skip
    """Computes the gradient of s, and that of α as one sum for each share of the numbers, to be added up in order.

    A program has G channels, a share of the numbers, and CHUNKS times four atoms. Its lanes are (rows, G, I), so that
    each lane stays in one channel and the sums of different lanes meet only at the end.
    """
    rows: tl.constexpr = LANES // (G * I)
    lane = tl.arange(0, LANES)
    c = tl.program_id(0) * G + (lane // I) % G
    owned = c < C
    c = tl.where(owned, c, 0)
    first = tl.program_id(2) * (4 * CHUNKS)
    root = tl.load(grid + 7)
    d = root * (tl.load(grid + 5) + (first + tl.arange(0, 4)) * tl.load(grid + 6))  # the first atoms, times root
    apart = root * (4 * tl.load(grid + 6))
    strips = tl.cdiv(inner, I)
    sums = (tl.zeros((LANES, 4), s.dtype.element_ty),) * CHUNKS
    share = tl.program_id(1)
    for step in range(share * steps, (share + 1) * steps):
        o = (step // strips) * rows + lane // (G * I)
        i = (step % strips) * I + lane % I
        inside = owned & (o < outer) & (i < inner)
        at = (o.to(tl.int64) * C + c) * inner + i
        if fours:  # then loads take 128 bits
            at, inside = tl.max_contiguous(tl.multiple_of(at, 4), 4), tl.max_constancy(inside, 4)
        x = tl.load(s + at, mask=inside, other=0.0)
        up = tl.load(grad + at, mask=inside, other=0.0)
        if tl.program_id(2) == 0:
            slope = slope_at(x, c, alpha, table, grid, C, K, D, kind, LANES)
            tl.store(down + at, up * slope, mask=inside)
        more = ()
        for j in tl.static_range(CHUNKS):
            t = root * x[:, None] - (d + j * apart)[None, :]
            more = more + (sums[j] + up[:, None] * kappa(t, kind),)  # noqa: RUF005  # Triton knows no star
        sums = more
    channel = tl.program_id(0) * G + tl.arange(0, G)
    for j in tl.static_range(CHUNKS):
        total = tl.sum(tl.sum(tl.reshape(sums[j], (rows, G, I, 4)), 2), 0)  # (G, 4)
        atom = first + 4 * j + tl.arange(0, 4)
        to = parts + (share * C + channel)[:, None] * D + atom[None, :]
        tl.store(to, total, mask=(channel < C)[:, None] & (atom < D)[None, :])
