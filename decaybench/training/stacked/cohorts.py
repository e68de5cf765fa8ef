"""Chooses which runs train together, and how many."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from decaybench.registry import OPTIMIZERS
from decaybench.registry.hashing import digest
from decaybench.study.config import RunConfig
from decaybench.training.data import Data
from decaybench.training.model import build_model
from decaybench.training.stacked.stack import StackedModels, stackable

CPU_BYTES = 128 << 20  # bytes that replicas may use together on a CPU: more replicas gain little
FEW_REPLICAS = 8  # fewer gain less by training together
FEWEST_CPU = 4  # with fewer, the library's convolutions of one network are as fast, those of large ones faster
MAX_REPLICAS_CPU = 32  # replicas on a CPU, where more gain nothing
MAX_REPLICAS_GPU = 512
GPU_MEMORY_SHARE = 0.5  # share of a GPU's free memory
# What runs that train together may differ in; of an activation, also where it starts.
FREE_FIELDS = {"strategy", "weight_decay", "lr", "optimizer", "schedule", "seed"}


def cohort_key(config: RunConfig) -> str:
    """Returns a key that runs share if they can train together."""
    fixed = {"seed"} if config.split == "seed" else set[str]()
    fixed |= set() if _is_elementwise(config) else {"optimizer"}
    shared = config.model_dump(exclude=FREE_FIELDS - fixed)
    shared["activation"]["options"].pop("init", None)
    return digest(shared)


def _is_elementwise(config: RunConfig) -> bool:
    """Tells whether the optimizer treats each number by itself, so that replicas can share a tensor."""
    entry = OPTIMIZERS.get(config.optimizer.name)
    return entry is not None and entry.elementwise


def capacity(config: RunConfig, data: Data, device: torch.device, sharing: int = 1, memory: int | None = None) -> int:
    """Returns how many replicas of a run to train together; 0 where it has to train alone.

    Args:
        config: A run of the cohort.
        data: The data of the run, on any device.
        device: Where it will be trained. For a GPU that is not here and whose memory is not known, the CPU's rule is
            taken.
        sharing: How many jobs share the memory of that device, if it is a GPU.
        memory: Its free bytes, where it is a GPU of another machine.
    """
    if any(spec.source for spec in config.specs() if spec is not config.dataset) or data.train.x.ndim != 4:
        return 0
    if not _is_elementwise(config):
        return 0
    batch = min(config.batch_size, len(data.train.y))
    # On the device "meta" nothing is computed, and layers do what they do where nothing is compiled, as on a GPU.
    bytes_each = _bytes(config, data.shape, data.outputs, batch, "meta" if device.type == "cuda" else "cpu")
    if not bytes_each:
        return 0
    free = memory if device.type == "cuda" else None
    if device.type == "cuda" and free is None and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # what torch itself keeps
    if free is not None:
        return max(1, min(MAX_REPLICAS_GPU, int(GPU_MEMORY_SHARE * free / sharing) // bytes_each))
    fit = CPU_BYTES // bytes_each
    return min(MAX_REPLICAS_CPU, fit) if fit >= FEWEST_CPU else 0


def _bytes(config: RunConfig, shape: tuple[int, ...], outputs: int, batch: int, device: str) -> int:
    """Returns the bytes that one step of one replica keeps in memory; 0 for a network that cannot be stacked."""
    where = (cohort_key(config), shape, outputs, batch, device)
    if where not in _known:
        _known[where] = _measured(config, shape, outputs, batch, device)
    return _known[where]


_known: dict[tuple[Any, ...], int] = {}


def _measured(config: RunConfig, shape: tuple[int, ...], outputs: int, batch: int, device: str) -> int:
    model = build_model(config, shape, outputs)
    if not stackable(config, model):
        return 0
    net, kept = StackedModels([model.to(device)]), 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(torch.zeros(1, batch, *shape, device=device))
        F.cross_entropy(out, torch.zeros(1, batch, dtype=torch.long, device=device))
    # Parameter, gradient, two moments; and the gradients of what was kept.
    return 2 * kept + sum(4 * 4 * p.numel() for p in model.parameters())


def cohorts(runs: list[RunConfig], most: dict[str, int], workers: int) -> list[list[RunConfig]]:
    """Divides runs, in their order, into cohorts that train together.

    Args:
        runs: The runs, in the order in which they should be trained.
        most: Number of runs that fit, for each `cohort_key`.
        workers: Number of workers, none of which should be idle while others train more than a few runs.
    """
    groups: dict[str, list[RunConfig]] = {}
    for run in runs:
        groups.setdefault(cohort_key(run), []).append(run)
    few = min(FEW_REPLICAS, -(-len(runs) // workers))
    cut = []
    for key, group in groups.items():
        size = min(max(most[key], 1), max(few, -(-len(group) // workers)))
        together = max(Counter(run.seed for run in group).values())
        if size > together:  # runs of one seed are compared with each other: what trains together is rounded alike
            size -= size % together
        cut += [group[i : i + size] for i in range(0, len(group), size)]
    order = {run.run_id: i for i, run in enumerate(runs)}
    return sorted(cut, key=lambda c: order[c[0].run_id])
