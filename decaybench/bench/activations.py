"""Times learned activations, forward and backward, beside torch's own and beside their definitions.

What was tried for the CPU (2 cores of a Zen 3, AVX2, float32; the input 128×32×28×28, D = 20; one run each):

- the definition, with its (…, D) tensor: 2541 ms;
- the Gaussian factored into two exponentials and a Horner polynomial of degree D − 1, in torch's operations: 743 ms,
  and more with D. In C it would have been near to what follows for D = 20, and fifteen times as much for D = 256;
- the function of each channel as polynomials of degree 6 on pieces of the line (`kaf.piecewise`), in C:
  36 ms with one gather for each coefficient, 19 ms with rows that are loaded whole and transposed in registers, 7 ms
  once nothing in the inner loop had a variable length. The same in torch's operations, tile by tile: 194 ms;
- the definition through ``torch.compile``: 276 ms, and 9.0 s for the first call, which needs a C++ compiler; a C
  compiler needs 0.5 s, once. Not tried: numba.

For GPUs the pieces are written in Triton (`kaf.triton_kernels`): it comes with torch, needs no CUDA
toolkit, and its interpreter runs in CI. The kernels compile for sm_80 and sm_90 without spilling a register in float32;
what they cost has not been measured, since no GPU was at hand.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from decaybench.activations import KAF, KAF2D, PReLU
from decaybench.activations.kaf.basis_kernels import kernel
from decaybench.activations.kaf.functional import atoms
from decaybench.activations.kaf.module import plain
from decaybench.activations.kaf.two_dimensional import plain2d
from decaybench.bench.timing import best, peak_memory

MAIN = (128, 32, 28, 28)
SMALL = ((512, 256), (128, 10, 7, 7))
SHAPES = (MAIN, (128, 16, 14, 14), *SMALL)
Row = dict[str, Any]


def definition(module: KAF) -> Callable[[Tensor], Tensor]:
    """Returns a KAF's function by its definition."""
    d = torch.tensor(module.atoms, device=module.alpha.device)
    value = kernel(module.kernel, module.precision).value
    return lambda s: plain(s, module.alpha, d, value)


def step(module: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: torch.device, last: bool) -> Any:
    """Prepares a forward and backward pass over one input, to be timed."""
    s = torch.randn(shape, device=device)
    s = (s.to(memory_format=torch.channels_last) if last else s).requires_grad_()
    with torch.no_grad():
        upstream = torch.randn_like(module(s))

    def run() -> None:
        s.grad = None
        torch.autograd.backward(module(s), upstream)

    return run


PASSES = 5  # tensors that any activation must move: s to f, and then s and the gradient to a gradient


def costs(device: torch.device, rounds: int, rate: float) -> Iterator[Row]:
    """Times each activation on each shape, contiguous and channels_last.

    Args:
        device: The device to measure.
        rounds: Number of measurements of each.
        rate: The rate of a copy, in GB/s.
    """
    for shape in SHAPES:
        for last in (False, True) if len(shape) == 4 else (False,):
            C = shape[1]
            kaf = KAF(C).to(device)
            modules = {"nn.ReLU": nn.ReLU(), "nn.PReLU": nn.PReLU(C), "PReLU": PReLU(C), "KAF": kaf}
            runs = {k: step(m.to(device), shape, device, last) for k, m in modules.items()}
            times = best(runs, rounds, device)
            times |= best({"definition": step(definition(kaf), shape, device, last)}, 1 + rounds // 10, device)
            for name, ms in times.items():
                yield {
                    "shape": _text(shape) + (" channels_last" if last else ""),
                    "activation": name,
                    "ms": ms,
                    "× nn.ReLU": ms / times["nn.ReLU"],
                    "× nn.PReLU": ms / times["nn.PReLU"],
                    "definition ÷": times["definition"] / ms,
                    "of the copy's rate": PASSES * 4e-6 * torch.Size(shape).numel() / ms / rate,
                }


def growth(device: torch.device, rounds: int) -> Iterator[Row]:
    """Times a KAF for several D, kernels and numbers of inputs."""
    options: list[dict[str, Any]] = [{"D": D} for D in (8, 20, 64, 256)]
    options += [{"kernel": "relu", "init": "random"}, {"kernel": "softplus"}]
    made = {", ".join(f"{k}={v}" for k, v in o.items()): KAF(MAIN[1], **o).to(device) for o in options}
    times = best({k: step(m, MAIN, device, False) for k, m in made.items()}, rounds, device)
    kernels = {key: definition(module) for key, module in made.items() if "kernel" in key}
    plains = best({k: step(f, MAIN, device, False) for k, f in kernels.items()}, 1 + rounds // 10, device)
    for key, ms in times.items():
        ratio = plains[key] / ms if key in plains else None
        yield {
            "KAF": key,
            "shape": _text(MAIN),
            "ms": ms,
            "ns per number": _ns(ms, MAIN),
            "definition ÷": ratio,
        }
    two = KAF2D(MAIN[1] // 2).to(device)
    d = torch.tensor(atoms(two.D, two.boundary), device=device)
    pairs: dict[str, Callable[[Tensor], Tensor]] = {
        "KAF2D": two,
        "definition": lambda s: plain2d(s, two.alpha, d, two.precision),
    }
    ours, theirs = best({k: step(m, MAIN, device, False) for k, m in pairs.items()}, 1 + rounds // 10, device).values()
    yield {"KAF": "KAF2D, D=10", "shape": _text(MAIN), "ms": ours, "definition ÷": theirs / ours}
    for n in (16, 32, 64, 128, 256):
        shape = (n, *MAIN[1:])
        (ms,) = best({"KAF": step(made["D=20"], shape, device, False)}, rounds, device).values()
        yield {"KAF": "D=20", "shape": _text(shape), "ms": ms, "ns per number": _ns(ms, shape)}


def _text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _ns(ms: float, shape: tuple[int, ...]) -> float:
    return 1e6 * ms / torch.Size(shape).numel()


LEARNED: dict[str, Callable[[], nn.Module]] = {
    "nn.ReLU": nn.ReLU,
    "nn.PReLU": lambda: nn.PReLU(MAIN[1]),
    "PReLU": lambda: PReLU(MAIN[1]),
    "KAF": lambda: KAF(MAIN[1]),
}


def memory(device: torch.device) -> Iterator[Row]:
    """Measures the peak memory of a forward and backward pass, in tensors of the input's size."""
    for name in LEARNED:
        if device.type == "cuda":
            yield {"activation": name, "peak, inputs": peak(name, device)}
            continue
        # In a process of its own, whose allocator gives back what is freed, so that the peak is that of this pass.
        code = f"from decaybench.bench.activations import peak; print(peak({name!r}))"
        found = _python(code, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="0")
        yield {"activation": name, "peak, inputs": None if found == "None" else float(found)}


def peak(name: str, device: torch.device = torch.device("cpu")) -> float | None:  # noqa: B008
    """Measures the peak memory of one activation, after a first pass that compiles and starts threads."""
    s = torch.randn(MAIN, device=device).requires_grad_()
    module, upstream = LEARNED[name]().to(device), torch.randn(MAIN, device=device)
    torch.autograd.backward(module(s), upstream)
    s.grad = None
    used = peak_memory(lambda: torch.autograd.backward(module(s), upstream), device)
    return None if used is None else used / s.nbytes


def _python(code: str, **environment: str) -> str:
    """Runs code in a new process and returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def first_calls() -> Iterator[Row]:
    """Times the first call in a new process: nothing compiled before, compiled before, and without a compiler."""
    code = (
        "import time, torch; from decaybench.activations import KAF\n"
        "s = torch.randn(128, 32, 28, 28, requires_grad=True); m = KAF(32)\n"
        "t = time.perf_counter(); m(s).sum().backward(); print(time.perf_counter() - t)"
    )
    with tempfile.TemporaryDirectory() as cache:
        for name, native in (("compiles", "1"), ("compiled before", "1"), ("no compiler", "0")):
            seconds = float(_python(code, DECAYBENCH_CACHE=cache, DECAYBENCH_NATIVE=native))
            yield {"first call": name, "s": seconds}


def copy_rate(device: torch.device, rounds: int) -> float:
    """Measures the rate of a copy of the main input in GB/s, read and written."""
    a, b = torch.randn(MAIN, device=device), torch.empty(MAIN, device=device)
    (ms,) = best({"copy": lambda: b.copy_(a)}, rounds, device).values()
    return 2 * a.nbytes / ms / 1e6


def goals(rows: list[Row], device: torch.device) -> Iterator[Row]:
    """Compares what was measured on the main shape with the goals."""
    main = {r["activation"]: r for r in rows if r["shape"] == _text(MAIN)}
    kaf, prelu = main["KAF"], main["PReLU"]
    if device.type == "cuda":
        yield _goal("KAF: times the cost of nn.PReLU, at most", 1.2, kaf["× nn.PReLU"], kaf["× nn.PReLU"] <= 1.2)
        return
    yield _goal("KAF: times faster than its definition, at least", 80, kaf["definition ÷"], kaf["definition ÷"] >= 80)
    yield _goal("KAF: times the cost of nn.PReLU, at most", 1.0, kaf["× nn.PReLU"], kaf["× nn.PReLU"] <= 1)
    faster = 1 / prelu["× nn.PReLU"]
    yield _goal("PReLU: times faster than nn.PReLU, at least", 3, faster, faster >= 3)
    yield _goal("PReLU: times the cost of nn.ReLU, at most", 1.3, prelu["× nn.ReLU"], prelu["× nn.ReLU"] <= 1.3)
    for shape in SMALL:
        (small,) = (r["× nn.PReLU"] for r in rows if r["shape"] == _text(shape) and r["activation"] == "KAF")
        yield _goal(f"KAF at {_text(shape)}: times nn.PReLU, at most", 1.0, small, small <= 1)


def _goal(text: str, goal: float, measured: float, met: bool) -> Row:
    return {"goal": text, "is": goal, "measured": measured, "met": "yes" if met else "no"}


def timestamp() -> str:
    """Returns the date and time of day."""
    return time.strftime("%Y-%m-%d %H:%M")
