"""Times several contenders in turn, so that what else the machine does falls on all of them."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def best(contenders: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Returns the shortest time of each in milliseconds, over rounds in which each runs in turn, after a warm-up."""
    measure = _events if device.type == "cuda" else _clock
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            ms = measure(run)
            if number:
                times[name].append(ms)
    return {name: min(series) for name, series in times.items()}


def _clock(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


CALLS = 20  # between two events on a GPU, so that its queue never runs empty


def _events(run: Callable[[], object]) -> float:
    """Times a GPU by its own clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    for _ in range(CALLS):
        run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / CALLS


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Returns the bytes that a call needs at its peak beyond what was there before; None where unmeasurable."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        Path("/proc/self/clear_refs").write_text("5")  # from here on, the peak is counted anew
        before = _status("VmRSS")
        run()
        return _status("VmHWM") - before
    except OSError:
        return None


def _status(key: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])
