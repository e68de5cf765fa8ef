"""The fused activations in every surrounding they must work in, by both ways to compute them."""

import copy
import io
import pickle
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_activations import path  # noqa: F401
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from decaybench.activations import KAF, PReLU, compiled
from decaybench.activations.kaf.basis_kernels import kernel
from decaybench.activations.kaf.module import plain

MAKE = {
    "kaf": lambda: KAF(3, D=8),
    "kaf relu": lambda: KAF(3, D=8, kernel="relu", init="random"),
    "kaf softplus": lambda: KAF(3, D=8, kernel="softplus"),
    "kaf narrow": lambda: KAF(3, D=8, gamma=1e9, init="random"),
    "prelu": lambda: PReLU(3),
    "prelu shared": lambda: PReLU(1),
}
pytestmark = pytest.mark.usefixtures("path")
every = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


def by_definition(module: KAF, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """f, its gradient in s and that in α for an upstream of ones, in float64 by the definition."""
    s, alpha = s.detach().double().requires_grad_(), module.alpha.detach().double().requires_grad_()
    d = torch.tensor(module.atoms, dtype=torch.float64)
    out = plain(s, alpha, d, kernel(module.kernel, module.precision).value)
    return out.detach(), *torch.autograd.grad(out.sum(), (s, alpha))


def ours(module: nn.Module, s: Tensor) -> tuple[Tensor, ...]:
    s = s.detach().requires_grad_()
    out = module(s)
    return out.detach(), *torch.autograd.grad(out.sum(), (s, *module.parameters()))


def error(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-30))


@settings(max_examples=60, deadline=None)
@given(
    D=st.integers(2, 256),
    boundary=st.floats(1e-3, 1e3),
    gamma=st.floats(0.02, 2.0),
    kind=st.sampled_from(["gaussian", "relu", "softplus"]),
    seed=st.integers(0, 99),
)
def test_every_dictionary_is_right_to_1e_5(D: int, boundary: float, gamma: float, kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    module = KAF(2, D=D, boundary=boundary, gamma=gamma, kernel=kind, init="random")
    s = torch.cat([torch.randn(60, 2) * boundary, torch.tensor([[1e-30, -1e-30], [1e30, -1e30], [0.0, boundary]])])
    out, to_s, to_alpha = by_definition(module, s)
    got = ours(module, s)
    assert error(got[0], out) <= 1e-5
    assert error(got[2], to_alpha) <= 1e-5
    # At a kink, and where float32 cannot say on which side of it a number lies, the slope is either of the two.
    near = torch.zeros_like(s, dtype=torch.bool)
    if kind == "relu":
        near = ((s[..., None] - torch.tensor(module.atoms)).abs() < 1e-5 * boundary).any(-1)
    assert float(((got[1].double() - to_s).abs() * ~near).max()) <= 2e-5 * float(to_s.abs().max())


@pytest.mark.parametrize("kind", ["gaussian", "relu", "softplus"])
def test_infinite_and_nan_inputs_give_what_the_formula_gives(kind: str) -> None:
    module = KAF(2, D=6, kernel=kind, init="random")
    s = torch.tensor([[float("inf"), 1.0], [-float("inf"), float("nan")], [0.5, -0.5]])
    d = torch.tensor(module.atoms)
    expected = plain(s, module.alpha, d, kernel(kind, module.precision).value)
    torch.testing.assert_close(module(s), expected, equal_nan=True, rtol=1e-5, atol=1e-5)


@every
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 7), (2, 3, 4, 5), (2, 3, 40, 40), (2, 3, 2, 3, 4), (300, 3)], ids=str)
def test_layouts_do_not_matter(make, shape: tuple[int, ...]) -> None:
    module, s = make(), torch.randn(shape)
    wanted = ours(module, s)
    others = [s.transpose(0, -1).contiguous().transpose(0, -1), s.repeat_interleave(2, -1)[..., ::2]]
    if s.ndim == 4:
        others.append(s.to(memory_format=torch.channels_last))
    for other in others:
        for a, b in zip(ours(module, other), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@every
def test_compilers_are_told_the_layout_that_comes_out(make) -> None:
    module, images = make(), torch.randn(2, 6, 5, 7)
    last = images.to(memory_format=torch.channels_last)
    layouts = [
        images[:, :3],
        last[:, :3],
        last[:, ::2],
        images.transpose(2, 3)[:, :3],
        torch.randn(7, 3, 4).movedim(0, -1),
    ]
    constants = (module.kernel, module.precision, module.boundary) if isinstance(module, KAF) else ()
    name = "kaf" if isinstance(module, KAF) else "prelu"
    (parameter,) = module.parameters()
    for s in layouts:
        s = s if s.ndim == 4 else s.permute(2, 0, 1)
        learned = parameter.detach() if len(parameter) == s.shape[1] else parameter.detach().expand(s.shape[1])
        for op, tensors in ((name, (s, learned)), (f"{name}_backward", (torch.randn(s.shape), s, learned))):
            op = getattr(torch.ops.decaybench, op).default
            torch.library.opcheck(op, (*tensors, *constants), test_utils=("test_schema", "test_faketensor"))


def test_tensors_on_different_devices_are_refused() -> None:
    for module in (KAF(3), PReLU(3)):
        with pytest.raises(RuntimeError, match="the input is on meta, the activation's parameters on cpu"):
            ops = torch.ops.decaybench
            (p,) = module.parameters()
            args = (torch.empty(4, 3, device="meta"), p.detach())
            ops.kaf(*args, "gaussian", 1.0, 4.0) if isinstance(module, KAF) else ops.prelu(*args)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("n", [64, 4096])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_does_not_round_a_slope(dtype: torch.dtype, n: int, shared: bool) -> None:
    module = PReLU(1 if shared else 3, init=0.2506)
    s, upstream = torch.randn(n, 3).to(dtype), torch.randn(n, 3).to(dtype)
    wide = s.float()
    wanted = torch.where(wide > 0, wide, 0.2506 * wide).to(dtype)
    rounded = torch.where(s > 0, s, torch.tensor(0.2506, dtype=torch.bfloat16) * s)
    assert not torch.equal(wanted, rounded)
    to_slope = (torch.where(wide > 0, 0.0, wide) * upstream.float()).sum(0)
    for context in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            out = module(s)
            stacked = {"weight": torch.stack([module.weight, module.weight]).detach()}
            both = vmap(lambda p: functional_call(module, p, (s,)))(stacked)
        assert out.dtype == dtype
        torch.testing.assert_close(out, wanted, rtol=1e-6, atol=0.0)
        torch.testing.assert_close(both, torch.stack([wanted, wanted]), rtol=1e-6, atol=0.0)
        (got,) = torch.autograd.grad(out, module.parameters(), upstream)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, to_slope.sum()[None] if shared else to_slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [64, 4096])
def test_types_that_do_not_fit_are_refused_as_torch_does(n: int) -> None:
    for weight, given_ in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        for module in (PReLU(3), nn.PReLU(3)):
            with pytest.raises(RuntimeError, match="Type promoting not supported"):
                module.to(weight)(torch.randn(n, 3).to(given_))


@every
def test_the_same_bits_whatever_the_threads(make) -> None:
    module, s = make(), torch.randn(64, 3, 20, 20)
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            runs.append(ours(module, s))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            # nn.PReLU, which small inputs take, sums in an order that depends on the threads.
            assert torch.equal(a, b) or (isinstance(module, PReLU) and s.numel() < compiled.MIN_COMPILED_SIZE)


@pytest.mark.parametrize("channels", [1, 2, 8, 9, 10, 16, 17, 18, 32, 33])
def test_nor_do_threads_change_a_bit_where_channels_lie_side_by_side(channels: int) -> None:
    before = torch.get_num_threads()
    images = torch.randn(30, channels, 12, 12).to(memory_format=torch.channels_last)
    try:
        for s in (torch.randn(5000, channels), images):
            for module in (KAF(channels), PReLU(channels)):
                runs = []
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    runs.append(ours(module, s))
                for other in runs[1:]:
                    assert all(
                        torch.equal(a, b) for a, b in zip(runs[0], other, strict=True)
                    ) or not compiled.large_enough(s)
    finally:
        torch.set_num_threads(before)


@every
def test_compiled_exported_copied_saved(make) -> None:
    module, s = make(), torch.randn(4, 3, 5, 5)
    wanted = ours(module, s)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    for a, b in zip(ours(compiled, s), wanted, strict=True):
        torch.testing.assert_close(a, b)
    exported = torch.export.export(module, (s,)).module()
    torch.testing.assert_close(exported(s), wanted[0])
    assert torch.equal(pickle.loads(pickle.dumps(module))(s), wanted[0])
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = make()
    for p in other.parameters():
        p.data.zero_()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(s), wanted[0])


@every
def test_vmap_and_grad_are_loops(make) -> None:
    module = make()
    stacked = {n: torch.stack([p, 2 * p, p + 1]).detach() for n, p in module.named_parameters()}
    inputs = torch.randn(3, 4, 3, 5)

    def loss(parameters: dict[str, Tensor], s: Tensor) -> Tensor:
        return functional_call(module, parameters, (s,)).square().sum()

    for dims in ((0, 0), (None, 0), (0, None)):
        parameters = stacked if dims[0] == 0 else {n: p[0] for n, p in stacked.items()}
        s = inputs if dims[1] == 0 else inputs[0]
        together = vmap(grad(loss, argnums=(0, 1)), in_dims=dims)(parameters, s)
        for i in range(3):
            one = {n: p[i] if dims[0] == 0 else p for n, p in parameters.items()}
            apart = grad(loss, argnums=(0, 1))(one, s[i] if dims[1] == 0 else s)
            for name in one:
                torch.testing.assert_close(together[0][name][i], apart[0][name])
            torch.testing.assert_close(together[1][i], apart[1])


@every
def test_meta_empty_and_half_precision(make) -> None:
    module = make()
    out, to_s, *_ = ours(module, torch.zeros(0, 3, 4, 4))
    assert out.shape == to_s.shape == (0, 3, 4, 4)
    s = torch.randn(4, 3, 5, 5)
    assert copy.deepcopy(module).to("meta")(s.to("meta")).shape == s.shape
    for dtype in (torch.bfloat16, torch.float16):
        rounded = copy.deepcopy(module).to(dtype)
        half, wanted = rounded(s.to(dtype)), rounded.float()(s.to(dtype).float())
        assert half.dtype == dtype
        torch.testing.assert_close(half.float(), wanted, rtol=0.02, atol=0.02)
        with torch.autocast("cpu", dtype):
            out = module(s.to(dtype).requires_grad_())
            out.float().sum().backward()
        assert out.dtype == dtype
        assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_only_the_input_and_the_coefficients_are_kept_for_the_backward_pass() -> None:
    module, s = KAF(4, D=20), torch.randn(8, 4, 16, 16, requires_grad=True)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        module(s)
    assert sorted(sizes) == [4 * 20, s.numel()]


def test_prelu_is_a_drop_in() -> None:
    for channels in (1, 3):
        mine, theirs = PReLU(channels, 0.1), nn.PReLU(channels, 0.1)
        mine.load_state_dict(theirs.state_dict())
        theirs.load_state_dict(mine.state_dict())
        assert repr(mine) == repr(theirs).replace("nn.", "")
        for shape in ((4, 3), (2, 3, 50, 50)):
            s = torch.randn(shape)
            s.view(-1)[0] = 0.0
            for a, b in zip(ours(mine, s), ours(theirs, s), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert torch.equal(PReLU(1)(torch.tensor([-1.0, 2.0])), torch.tensor([-0.25, 2.0]))


def test_a_wrong_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"KAF\(3\) takes \(N, 3, …\), not \(2, 4\)"):
        KAF(3)(torch.zeros(2, 4))
