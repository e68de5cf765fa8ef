"""The kernels for GPUs: their numbers, by Triton's interpreter where there is no GPU; and that they compile."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from test_fused import by_definition, error, ours
from torch import Tensor

from decaybench.activations import KAF
from decaybench.activations.kaf import triton
from decaybench.activations.kaf.basis_kernels import kernel
from decaybench.activations.kaf.module import plain
from helpers import REPOSITORY

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is for Linux")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KINDS = {"gaussian": {}, "relu": {"kernel": "relu", "init": "random"}, "softplus": {"kernel": "softplus"}}
every = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every device takes the kernels; the interpreter's NumPy keeps quiet about what is not finite."""
    monkeypatch.setattr(triton, "DEVICES", ("cuda", "cpu"))
    assert triton.works(DEVICE)
    with np.errstate(all="ignore"):
        yield


def compare(module: KAF, s: Tensor, tolerance: float) -> None:
    out, to_s, to_alpha = by_definition(module, s)
    got = ours(module.to(DEVICE), s.to(DEVICE))
    assert error(got[0].cpu(), out) <= tolerance
    assert error(got[2].cpu(), to_alpha) <= tolerance
    assert error(got[1].cpu(), to_s) <= 2 * tolerance


@every
@pytest.mark.parametrize("shape", [(300, 3), (1, 2, 500), (2, 3, 5, 4), (70, 2, 9)], ids=str)
def test_the_kernels_are_right_to_1e_5(options: dict, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    compare(KAF(shape[1], **options), 3 * torch.randn(shape), 1e-5)


@pytest.mark.parametrize("D", [2, 33, 70])
def test_any_number_of_atoms(D: int) -> None:
    torch.manual_seed(0)
    extremes = torch.tensor([[1e-30, -1e-30], [1e30, -1e30], [4.0, -4.0]])
    compare(KAF(2, D=D, init="random"), torch.cat([3 * torch.randn(60, 2), extremes]), 1e-5)


def test_double_precision() -> None:
    torch.manual_seed(0)
    compare(KAF(3, D=3).double(), 3 * torch.randn(20, 3).double(), 1e-11)


@every
def test_infinite_and_nan_inputs_give_what_the_formula_gives(options: dict) -> None:
    module = KAF(3, D=6, **{"init": "random", **options})
    s = torch.tensor([[np.inf, 1.0, 0.3], [-np.inf, np.nan, -2.0], [0.5, -0.5, 9.0]], requires_grad=True)
    d = torch.tensor(module.atoms)
    wanted = plain(s, module.alpha, d, kernel(module.kernel, module.precision).value)
    gradients = torch.autograd.grad(wanted.sum(), (s, module.alpha))
    s = s.detach().to(DEVICE).requires_grad_()
    module.to(DEVICE)
    got = module(s)
    torch.testing.assert_close(got.cpu(), wanted, equal_nan=True, rtol=1e-5, atol=1e-5)
    for ours_, theirs in zip(torch.autograd.grad(got.sum(), (s, module.alpha)), gradients, strict=True):
        torch.testing.assert_close(ours_.cpu(), theirs, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_layouts_do_not_matter_and_the_bits_are_the_same_every_time() -> None:
    torch.manual_seed(0)
    module, s = KAF(3, D=5).to(DEVICE), torch.randn(12, 3, 9, 9, device=DEVICE)
    wanted = ours(module, s)
    for other in (s, s.to(memory_format=torch.channels_last), s.repeat_interleave(2, -1)[..., ::2]):
        again, twice = ours(module, other), ours(module, other)
        for a, b, c in zip(again, twice, wanted, strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-5)
    assert ours(module, s[:0])[2].abs().max() == 0


COMPILE = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from decaybench.activations import KAF
from decaybench.activations.kaf import triton as gpu

NAMES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int32: "*i32"}
calls = []
gpu.launch = lambda kernel, grid, *arguments: calls.append((kernel, arguments))
gpu.DEVICES, gpu.works = ("cpu",), lambda device: True
for options in ({}, {"kernel": "relu", "init": "random"}, {"kernel": "softplus"}):
    for dtype in (torch.float32, torch.float64):
        module = KAF(40, **options).to(dtype)
        module(torch.randn(8, 40, 6, 6, dtype=dtype, requires_grad=True)).sum().backward()
made = set()
for kernel, arguments in calls:
    constants = {(i,): a for i, a in enumerate(arguments) if kernel.params[i].is_constexpr}
    kinds = [NAMES[a.dtype] if isinstance(a, torch.Tensor) else "i32" for a in arguments]
    signature = {p.name: "constexpr" if p.is_constexpr else k for p, k in zip(kernel.params, kinds, strict=True)}
    key = (kernel.fn.__name__, *signature.values(), *constants.values())
    if key not in made:
        made.add(key)
        target = GPUTarget("cuda", int(sys.argv[1]), 32)
        assert triton.compile(ASTSource(kernel, signature, constants), target=target).asm["cubin"]
print(len(made))
"""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_gpus(capability: int, tmp_path) -> None:
    """Down to machine code, which needs no GPU; with the arguments they are really given."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "TRITON_CACHE_DIR": str(tmp_path)}
    (tmp_path / "build.py").write_text(COMPILE)
    command = [sys.executable, str(tmp_path / "build.py"), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "16\n"  # a table with and without a straight tail, forward, backward; two types


BUDGET = """
import json, re, subprocess, sys, torch, triton
from pathlib import Path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from decaybench.activations import KAF
from decaybench.activations.kaf import triton as gpu

tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
calls, found = [], {}
gpu.launch = lambda kernel, grid, *arguments: calls.append((kernel, arguments))
gpu.DEVICES, gpu.works = ("cpu",), lambda device: True
KAF(16)(torch.randn(64, 16, 14, 14, requires_grad=True)).sum().backward()
for kernel, arguments in calls:
    constants = {(i,): a for i, a in enumerate(arguments) if kernel.params[i].is_constexpr}
    kinds = [{torch.int32: "*i32", torch.float64: "*fp64", torch.float32: "*fp32"}[a.dtype]
             if isinstance(a, torch.Tensor) else "i32" for a in arguments]
    signature = {p.name: "constexpr" if p.is_constexpr else k for p, k in zip(kernel.params, kinds, strict=True)}
    # Tensors begin at multiples of 16 bytes, which the launcher finds out and the compiler makes use of.
    sixteen = {(i,): [["tt.divisibility", 16]] for i, a in enumerate(arguments) if isinstance(a, torch.Tensor)}
    target = GPUTarget("cuda", 90, 32)
    made = triton.compile(ASTSource(kernel, signature, constants, sixteen), target=target)
    binary = Path(sys.argv[1]) / "kernel.cubin"
    binary.write_bytes(made.asm["cubin"])
    shown = lambda option: subprocess.run([tool, option, binary], capture_output=True, text=True, check=True).stdout
    code = re.findall(r"^\\s+/\\*[0-9a-f]{4,}\\*/\\s+(?:@!?\\w+ +)?([A-Z0-9_.]+)", shown("-sass"), re.M)
    used = dict(re.findall(r"(REG|STACK|LOCAL):(\\d+)", shown("-res-usage")))
    found[kernel.fn.__name__] = {
        "instructions": len(code), "wide": sum(c.startswith("LDG") and c.endswith("128") for c in code),
        "powers": sum(c.startswith("MUFU.EX2") for c in code), "registers": int(used["REG"]),
        "spilled": int(used["STACK"]) + int(used["LOCAL"]),
    }
print(json.dumps(found))
"""


@pytest.mark.slow
def test_the_kernels_stay_within_their_budget(tmp_path: Path) -> None:
    """For a GPU of compute capability 9.0, 20 Gaussian atoms, four numbers a thread.

    What can be counted without a GPU: before, the gradient took 856 instructions for one number a thread, and 32
    powers of 2 for 20 atoms.
    """
    (tmp_path / "budget.py").write_text(BUDGET)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, str(tmp_path / "budget.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    forward, backward = found["forward"], found["backward"]
    assert backward["instructions"] <= 1500
    assert 80 <= backward["powers"] <= 84 + 32  # 20 atoms × 4 numbers, and what is odd, atom by atom
    assert backward["registers"] <= 176
    assert backward["wide"] == 2  # s and its gradient, 128 bits each
    assert forward["instructions"] <= 850
    assert forward["registers"] <= 80
    assert all(kernel["spilled"] == 0 for kernel in found.values())
