"""The two-dimensional KAF against its definition, and in the surroundings it must work in."""

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from decaybench import roles
from decaybench.activations import KAF2D
from decaybench.activations.kaf.two_dimensional import plain2d

SHAPES = [(5, 6), (2, 6, 7), (3, 6, 4, 5), (40, 6, 20, 20)]


def formula(s: Tensor, alpha: Tensor, D: int) -> Tensor:
    """One atom of the grid at a time, pairs (0, 1), (2, 3), …; Δ = 8/(D − 1), γ = 1/(8Δ²)."""
    delta = 8 / (D - 1)
    out = torch.zeros_like(s[:, ::2])
    for i in range(D):
        for j in range(D):
            left, right = s[:, ::2] - (-4 + i * delta), s[:, 1::2] - (-4 + j * delta)
            weight = alpha[:, i, j].reshape(1, -1, *[1] * (s.ndim - 2))
            out = out + weight * torch.exp(-(left**2 + right**2) / (8 * delta**2))
    return out


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
@pytest.mark.parametrize("D", [2, 5, 10])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_values_and_gradients(shape: tuple[int, ...], D: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    module = KAF2D(3, D=D).to(dtype)
    s = (2 * torch.randn(shape, dtype=torch.float64)).requires_grad_()
    alpha = module.alpha.detach().double().requires_grad_()
    wanted = formula(s, alpha, D)
    weight = torch.randn_like(wanted)
    wanted_grads = torch.autograd.grad((wanted * weight).sum(), (s, alpha))
    s2 = s.detach().to(dtype).requires_grad_()
    got = module(s2)
    got_grads = torch.autograd.grad((got * weight.to(dtype)).sum(), (s2, module.alpha))
    for ours, theirs in zip([got, *got_grads], [wanted, *wanted_grads], strict=True):
        assert float((ours.double() - theirs).detach().abs().max()) <= tolerance * float(theirs.detach().abs().max())
    d = torch.linspace(-4, 4, D, dtype=torch.float64)
    torch.testing.assert_close(plain2d(s, alpha, d, 1 / (8 * (8 / (D - 1)) ** 2)), wanted)


def test_gradcheck_twice() -> None:
    module = KAF2D(2, D=3).double()
    s = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)

    def function(s: Tensor, alpha: Tensor) -> Tensor:
        return functional_call(module, {"alpha": alpha}, (s,))

    assert torch.autograd.gradcheck(function, (s, module.alpha))
    assert torch.autograd.gradgradcheck(function, (s, module.alpha))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_compiled_exported_copied_and_the_same_bits_twice(shape: tuple[int, ...]) -> None:
    module, s = KAF2D(3, D=4), torch.randn(shape, requires_grad=True)
    wanted = module(s)
    (to_s, to_alpha) = torch.autograd.grad(wanted.sum(), (s, module.alpha))
    again = torch.autograd.grad(module(s).sum(), (s, module.alpha))
    assert torch.equal(again[0], to_s)
    assert torch.equal(again[1], to_alpha)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(s), wanted)
    torch.testing.assert_close(torch.export.export(module, (s,)).module()(s), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(module))(s), wanted)
    assert module.to("meta")(s.to("meta")).shape == wanted.shape


def test_vmap_and_grad_are_loops() -> None:
    module = KAF2D(3, D=4)
    alphas, inputs = torch.randn(5, 3, 4, 4), torch.randn(5, 2, 6, 3)

    def loss(alpha: Tensor, s: Tensor) -> Tensor:
        return functional_call(module, {"alpha": alpha}, (s,)).square().sum()

    for dims in ((0, 0), (None, 0), (0, None)):
        alpha, s = (x if dim == 0 else x[0] for x, dim in zip((alphas, inputs), dims, strict=True))
        together = vmap(grad(loss, argnums=(0, 1)), in_dims=dims)(alpha, s)
        for i in range(5):
            one = (x[i] if dim == 0 else x for x, dim in zip((alpha, s), dims, strict=True))
            for a, b in zip(together, grad(loss, argnums=(0, 1))(*one), strict=True):
                torch.testing.assert_close(a[i], b)


def test_half_precision_empty_inputs_and_what_is_kept() -> None:
    module = KAF2D(3, D=4)
    assert module(torch.zeros(0, 6, 2, requires_grad=True)).sum().backward() is None
    with torch.autocast("cpu", torch.bfloat16):
        assert module(torch.randn(2, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
    sizes: list[int] = []
    s = torch.randn(8, 6, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        module(s)
    assert sorted(sizes) == [3 * 4 * 4, s.numel()]


def test_far_inputs_and_wrong_ones() -> None:
    module = KAF2D(1, D=4)
    out = module(torch.tensor([[1e30, 0.0], [float("inf"), 0.0], [float("nan"), 0.0]]))
    assert out[:2].abs().max() == 0
    assert out[2].isnan()
    with pytest.raises(ValueError, match=r"KAF2D\(1\) takes \(N, 2, …\), not \(4, 3\)"):
        module(torch.zeros(4, 3))


def test_its_coefficients_are_activation_parameters() -> None:
    assert roles(torch.nn.Sequential(torch.nn.Linear(2, 2), KAF2D(1)))["1.alpha"] == "activation"
