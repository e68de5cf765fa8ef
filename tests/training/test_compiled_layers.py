"""The compiled convolutions and poolings are torch's, for every shape, and a replica's bits are its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from decaybench.training.stacked import compiled
from helpers import REPOSITORY

REPLICAS = 3
# (B, C, H, W, out channels, kernel, stride, padding): batches around a vector's length, channels around a tile's.
CONVOLUTIONS = [
    (1, 1, 5, 5, 1, (3, 3), (1, 1), (0, 0)),
    (7, 2, 6, 5, 3, (3, 2), (2, 1), (1, 0)),
    (15, 3, 9, 7, 5, (5, 5), (1, 1), (2, 2)),
    (16, 6, 7, 7, 4, (3, 3), (2, 2), (1, 1)),
    (17, 7, 8, 8, 7, (3, 3), (1, 1), (1, 1)),
    (64, 5, 4, 4, 6, (1, 1), (2, 2), (0, 0)),
    (79, 13, 6, 6, 13, (2, 3), (1, 2), (0, 1)),
    (96, 8, 3, 3, 10, (3, 3), (1, 1), (0, 0)),
    (130, 12, 5, 6, 9, (3, 3), (3, 3), (2, 2)),
]
POOLINGS = [
    (1, (3, 3), (3, 3), (0, 0)),
    (17, (2, 2), (2, 2), (0, 0)),
    (70, (3, 2), (2, 1), (1, 1)),
    (130, (3, 3), (1, 2), (1, 0)),
]

pytestmark = pytest.mark.skipif(compiled.library(torch.float32) is None, reason="there is no C compiler here")


def gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.autograd.grad(out, inputs, torch.randn(out.shape, dtype=torch.float64).to(out.dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_a_convolution_and_its_gradients_are_torchs(shape: tuple, dtype: torch.dtype) -> None:
    B, C, H, W, out, kernel, stride, padding = shape
    torch.manual_seed(0)
    x = torch.randn(REPLICAS, C, H, W, B, dtype=torch.float64)
    weight, bias = (torch.randn(REPLICAS, out, *s, dtype=torch.float64) for s in ((C, *kernel), ()))
    exact = [t.requires_grad_() for t in (x, weight, bias)]
    ours = [t.detach().to(dtype).requires_grad_() for t in exact]
    each = [
        F.conv2d(xr.permute(3, 0, 1, 2), wr, br, stride, padding).permute(1, 2, 3, 0)
        for xr, wr, br in zip(*exact, strict=True)
    ]
    wanted = torch.stack(each)
    got = compiled.convolve(*ours, stride, padding)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 3e-5}
    torch.testing.assert_close(got.double(), wanted, **tolerance)
    for a, b in zip(gradients(got, ours), gradients(wanted, exact), strict=True):
        torch.testing.assert_close(a.double(), b, **tolerance)
    for r in range(REPLICAS):
        alone = [t[r : r + 1].detach().clone().requires_grad_() for t in ours]
        one = compiled.convolve(*alone, stride, padding)
        assert torch.equal(one[0], got[r])


def test_an_empty_batch_is_empty_and_its_gradients_are_zero() -> None:
    x, weight = torch.randn(1, 6, 5, 5, 0, requires_grad=True), torch.randn(1, 4, 6, 3, 3, requires_grad=True)
    out = compiled.max_pool(compiled.convolve(x, weight, None, (1, 1), (1, 1)), (2, 2), (2, 2), (0, 0))
    assert out.shape == (1, 4, 2, 2, 0)
    to_x, to_weight = torch.autograd.grad(out.sum(), [x, weight])
    assert to_x.shape == x.shape
    assert not to_weight.any()


def test_gradients_that_nobody_asks_for_are_not_computed() -> None:
    x, weight = torch.randn(1, 8, 5, 5, 20), torch.randn(1, 4, 8, 3, 3, requires_grad=True)
    out = compiled.convolve(x, weight, None, (1, 1), (1, 1))
    (to_weight,) = torch.autograd.grad(out.sum(), [weight])
    assert to_weight.shape == weight.shape
    assert out.grad_fn.next_functions[0][0] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("batch", "kernel", "stride", "padding"), POOLINGS)
def test_pooling_is_torchs_with_ties_and_nan(
    batch: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = torch.randint(-2, 3, (REPLICAS, 4, 8, 7, batch)).to(dtype)  # many equal ones
    x[0, 1, 3, 3, 0], x[1, 2, 0, 0, 0], x[2, 3, 7, 6, 0] = float("nan"), float("-inf"), float("inf")
    x.requires_grad_()
    images = x.permute(0, 4, 1, 2, 3).flatten(0, 1)
    wanted = F.max_pool2d(images, kernel, stride, padding).unflatten(0, (REPLICAS, batch)).permute(0, 2, 3, 4, 1)
    got = compiled.max_pool(x, kernel, stride, padding)
    assert torch.equal(got.nan_to_num(9.0), wanted.nan_to_num(9.0))
    (a,), (b,) = (gradients(out, [x]) for out in (got, wanted))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


NARROW = (
    "import torch; torch.manual_seed(0)\nfrom decaybench.training.stacked import compiled\n"
    "from torch.nn import functional as F\n"
    "for B, C, O in itertools.product((3, 8, 20, 64), (3, 7), (1, 5, 8)):\n"
    "    x, w = torch.randn(2, C, 6, 6, B).requires_grad_(), torch.randn(2, O, C, 3, 3).requires_grad_()\n"
    "    out = compiled.convolve(x, w, None, (2, 2), (1, 1)); g = torch.randn_like(out)\n"
    "    each = [F.conv2d(a.permute(3, 0, 1, 2), b, None, 2, 1).permute(1, 2, 3, 0) for a, b in zip(x, w)]\n"
    "    for p, q in zip(torch.autograd.grad(out, (x, w), g), torch.autograd.grad(torch.stack(each), (x, w), g)):\n"
    "        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-4)\n"
    "print('right')"
)


@pytest.mark.slow
@pytest.mark.parametrize("options", [["-mno-avx512f"], ["-fsanitize=address,undefined", "-fno-sanitize-recover"]])
def test_it_is_right_with_shorter_vectors_and_touches_no_other_memory(tmp_path: Path, options: list[str]) -> None:
    environment = {"CC": " ".join(["gcc", *options]), "DECAYBENCH_CACHE": str(tmp_path)}
    if "-fsanitize" in options[0]:
        where = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
        environment |= {"LD_PRELOAD": where.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    whole = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    code = "import itertools; " + NARROW
    done = subprocess.run([sys.executable, "-c", code], env=whole, capture_output=True, text=True, timeout=300)
    assert done.stdout == "right\n", done.stderr[-3000:]
