"""Every activation against a formula written here, in float64, and by finite differences."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from decaybench import registry
from decaybench.activations import KAF, compiled
from decaybench.registry.activations import KAFOptions
from decaybench.registry.build import construct
from decaybench.registry.spec import parse

SHAPES = [(6, 3), (4, 3, 5), (2, 3, 4, 5)]


COMPILED = compiled.library(torch.float32) is not None  # CI has a C compiler; a newcomer's machine may have none


@pytest.fixture(params=["native", "torch"] if COMPILED else ["torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to compute: the compiled one for inputs of any size, and that of torch's own operations."""
    monkeypatch.setattr(compiled, "MIN_COMPILED_SIZE", 0 if request.param == "native" else 10**18)
    return request.param


def kaf_formula(s: Tensor, alpha: Tensor, D: int, kernel: Callable[[Tensor, float], Tensor]) -> Tensor:
    """Σ α κ(s, d), one atom at a time over d = −4 … 4."""
    delta = 8 / (D - 1)
    out = torch.zeros_like(s)
    for i in range(D):
        d = -4 + i * delta
        out = out + alpha[:, i].reshape(1, -1, *[1] * (s.ndim - 2)) * kernel(s - d, delta)
    return out


def rational_formula(s: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Σ a sʲ / (1 + |Σ b sᵏ|), equation 4 of arXiv 1907.06732, power by power."""
    shape = (1, -1, *[1] * (s.ndim - 2))
    top = sum(a[:, j].reshape(shape) * s**j for j in range(6))
    bottom = sum(b[:, k - 1].reshape(shape) * s**k for k in range(1, 5))
    return top / (1 + abs(bottom))


KERNELS = {
    "gaussian": lambda x, delta: torch.exp(-(x**2) / (8 * delta**2)),
    "relu": lambda x, delta: torch.where(x > 0, x, 0.0),
    "softplus": lambda x, delta: torch.log1p(torch.exp(x)),
}
FORMULAS: dict[str, Callable[[Tensor, list[Tensor]], Tensor]] = {
    "relu": lambda s, p: torch.where(s > 0, s, 0.0),
    "leaky-relu": lambda s, p: torch.where(s > 0, s, 0.01 * s),
    "prelu": lambda s, p: torch.where(s > 0, s, p[0].reshape(1, -1, *[1] * (s.ndim - 2)) * s),
    "prelu,shared=true": lambda s, p: torch.where(s > 0, s, p[0] * s),
    "swish": lambda s, p: s / (1 + torch.exp(-p[0].reshape(1, -1, *[1] * (s.ndim - 2)) * s)),
    "xielu": lambda s, p: (
        torch.where(
            s > 0,
            torch.log1p(torch.exp(p[0])) * s**2,
            (0.5 + torch.log1p(torch.exp(p[1]))) * (torch.exp(s) - 1 - s),
        )
        + 0.5 * s
    ),
    "rational": lambda s, p: rational_formula(s, *p),
    "rational,init=silu": lambda s, p: rational_formula(s, *p),
    "kaf": lambda s, p: kaf_formula(s, p[0], 20, KERNELS["gaussian"]),
    "kaf,init=random": lambda s, p: kaf_formula(s, p[0], 20, KERNELS["gaussian"]),
    "kaf,init=random,D=7": lambda s, p: kaf_formula(s, p[0], 7, KERNELS["gaussian"]),
    "kaf,init=random,D=2": lambda s, p: kaf_formula(s, p[0], 2, KERNELS["gaussian"]),
    "kaf,init=random,D=200": lambda s, p: kaf_formula(s, p[0], 200, KERNELS["gaussian"]),
    "kaf,kernel=relu": lambda s, p: kaf_formula(s, p[0], 20, KERNELS["relu"]),
    "kaf,kernel=softplus,init=random": lambda s, p: kaf_formula(s, p[0], 20, KERNELS["softplus"]),
}


def build(spec: str, channels: int = 3, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    (parsed,) = parse("activation", spec)
    module: nn.Module = construct("activation", parsed, channels)
    return module.to(dtype)


def test_every_activation_of_the_registry_has_a_formula() -> None:
    assert {spec.split(",")[0] for spec in FORMULAS} == set(registry.ACTIVATIONS)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spec", FORMULAS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)], ids=str)
@pytest.mark.usefixtures("path")
def test_values_and_gradients(spec: str, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    module = build(spec, dtype=dtype)
    s = (torch.randn(shape, dtype=torch.float64) * 3).requires_grad_()
    parameters = [p.detach().double().requires_grad_() for p in module.parameters()]
    weight = torch.randn(shape, dtype=torch.float64)  # of an arbitrary linear loss
    wanted = FORMULAS[spec](s, parameters)
    wanted_grads = torch.autograd.grad((wanted * weight).sum(), [s, *parameters])

    s2 = s.detach().to(dtype).requires_grad_()
    got = module(s2)
    got_grads = torch.autograd.grad((got * weight.to(dtype)).sum(), [s2, *module.parameters()])
    for ours, theirs in zip([got, *got_grads], [wanted, *wanted_grads], strict=True):
        scale = max(1.0, float(theirs.detach().abs().max()))
        assert float((ours.double() - theirs).detach().abs().max()) <= tolerance * scale


@pytest.mark.parametrize("spec", FORMULAS)
@pytest.mark.usefixtures("path")
def test_gradcheck(spec: str) -> None:
    module = build(spec, channels=2)
    s = (torch.randn(3, 2, 2, dtype=torch.float64) * 2).requires_grad_()
    names = [name for name, _ in module.named_parameters()]

    def function(s: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(module, dict(zip(names, parameters, strict=True)), (s,))

    assert torch.autograd.gradcheck(function, (s, *module.parameters()))
    if "D=200" not in spec and "leaky" not in spec:
        assert torch.autograd.gradgradcheck(function, (s, *module.parameters()))


@pytest.mark.parametrize("target", ["elu", "gelu", "identity", "leaky-relu", "relu", "sigmoid", "silu", "tanh"])
def test_ridge_regression_follows_its_target(target: str) -> None:
    functions = {
        "elu": F.elu,
        "gelu": F.gelu,
        "identity": lambda s: s,
        "leaky-relu": F.leaky_relu,
        "relu": F.relu,
        "sigmoid": torch.sigmoid,
        "silu": F.silu,
        "tanh": torch.tanh,
    }
    s = torch.linspace(-4, 4, 200, dtype=torch.float64)[:, None]
    error = (build(f"kaf,init={target}", channels=1)(s) - functions[target](s)).abs().max()
    assert float(error.detach()) < 0.1  # the ridge and the kink of relu at 0 cost this much; a wrong fit costs more


def test_ridge_coefficients_solve_the_authors_equation() -> None:
    module = build("kaf,D=5,epsilon=0.01", channels=2)
    d = torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0], dtype=torch.float64)
    K = torch.exp(-((d[:, None] - d[None, :]) ** 2) / (8 * 4.0))
    left = (K + 0.01 * torch.eye(5, dtype=torch.float64)) @ module.alpha[0]
    torch.testing.assert_close(left, F.elu(d), rtol=0, atol=1e-5)  # α was made in float32


def test_random_initialization_has_the_authors_deviation() -> None:
    alpha = build("kaf,init=random", channels=2000).alpha
    assert float(alpha.detach().std()) == pytest.approx(0.8, rel=0.02)
    assert abs(float(alpha.detach().mean())) < 0.02


def test_a_ridge_fit_with_the_relu_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="singular"):
        KAF(3, kernel="relu", init="elu")
    with pytest.raises(ValueError, match="singular"):
        KAFOptions(kernel="relu", init="elu")
    assert KAFOptions(kernel="relu").init == "random"


@pytest.mark.usefixtures("path")
def test_far_away_inputs_give_nothing_and_nan_stays_nan() -> None:
    out = build("kaf", channels=1, dtype=torch.float32)(torch.tensor([[1e30], [-1e30], [float("nan")], [1e-30]]))
    assert out[:2].abs().max() < 1e-8
    assert out[2].isnan()
    assert torch.isfinite(out[3])


def test_xielu_is_that_of_transformers_and_decays_to_ln_2() -> None:
    from transformers.activations import XIELUActivation

    from decaybench.activations.xielu import XIELU

    ours, theirs = XIELU(4), XIELUActivation(dtype=torch.float32)
    s = torch.randn(50, 4) * 3
    torch.testing.assert_close(ours(s), theirs._xielu_python(s), rtol=1e-5, atol=1e-5)
    for p in ours.parameters():
        p.data.zero_()
    assert float(ours(torch.ones(1, 4))[0, 0].detach()) == pytest.approx(0.5 + float(torch.log(torch.tensor(2.0))))
    with pytest.raises(ValueError, match="above beta"):
        XIELU(4, n=0.4)


@pytest.mark.parametrize(("init", "target", "error"), [("leaky-relu", F.leaky_relu, 0.0336), ("silu", F.silu, 1.3e-6)])
def test_a_rational_starts_near_its_target_and_never_overflows(
    init: str, target: Callable[[Tensor], Tensor], error: float
) -> None:
    module = build(f"rational,init={init}", channels=1)
    s = torch.linspace(-3, 3, 601, dtype=torch.float64)[:, None]
    assert float((module(s) - target(s)).detach().abs().max()) <= error
    far = torch.tensor([[1e30], [-1e30], [float("inf")]], requires_grad=True)
    out = module.float()(far)
    out[:2].sum().backward()
    assert far.grad is not None
    assert torch.isfinite(out[:2]).all()
    assert torch.isfinite(far.grad[:2]).all()
    assert out[2] == float("inf")
