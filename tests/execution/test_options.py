"""Where a study is done, and how much of it at once."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from decaybench.errors import UsageError
from decaybench.execution.inline import Inline
from decaybench.execution.options import ExecutionOptions
from decaybench.execution.processes import Processes, place
from decaybench.execution.ray import Cluster
from decaybench.execution.scheduler import Scheduler, make_scheduler
from decaybench.results.store import StudyFolder
from decaybench.training.data import load
from decaybench.training.stacked.cohorts import capacity, cohort_key, cohorts
from helpers import CPU, tiny


def test_how_many_go_together_is_planned_for_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for the CPU, where the driver has the data; and what torch holds but does not use is free."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 8 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 << 30)
    run = tiny(activation="prelu", network="mlp,width=1000").runs()[0]
    data, cuda = load(run, CPU), torch.device("cuda")
    on_cpu, whole, shared = (capacity(run, data, *a) for a in ((CPU,), (cuda,), (cuda, 4)))
    assert on_cpu < shared < whole < 512
    assert whole == pytest.approx(4 * shared, abs=4)
    asked: list[Any] = []
    monkeypatch.setattr("decaybench.execution.scheduler.capacity", lambda run, data, *a: asked.append(a) or 2)
    study = Scheduler(Inline(CPU), StudyFolder(tmp_path), cuda, jobs_per_gpu=4)
    assert {len(job.configs) for job in study._plan(tiny(activation="prelu", seeds=6).runs())} == {2}
    assert set(asked) == {(cuda, 4, None)}


@pytest.mark.parametrize(
    ("device", "gpus", "wanted"),
    [
        ("auto", 0.0, ("cpu", 0.0, 1)),
        ("auto", 0.25, ("cuda", 0.25, 4)),
        ("cuda:1", 0.0, ("cuda", 1.0, 1)),
        ("cpu", 0.0, ("cpu", 0.0, 1)),
    ],
)
def test_a_cluster_has_gpus_that_this_machine_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, gpus: float, wanted: tuple[str, float, int]
) -> None:
    monkeypatch.setattr("decaybench.execution.ray.connect", lambda address: 4)
    monkeypatch.setattr("decaybench.execution.ray.cluster_gpus", lambda: 4.0)
    monkeypatch.setattr("decaybench.execution.ray.free_memory", lambda gpus: None)
    made = make_scheduler(StudyFolder(tmp_path), ExecutionOptions(device=device, executor="ray", ray_gpus=gpus), [])
    assert isinstance(made.executor, Cluster)
    assert (str(made.device), made.executor._gpus, made.jobs_per_gpu) == wanted


@pytest.mark.parametrize(
    ("device", "workers", "runs", "wanted"),
    [
        ("auto", "auto", 100, (8, [f"cuda:{i}" for i in range(8)])),
        ("cuda", "auto", 100, (8, [f"cuda:{i}" for i in range(8)])),
        ("cuda:3", "auto", 100, (1, ["cuda:3"])),
        ("auto", "auto", 3, (3, ["cuda:0", "cuda:1", "cuda:2"])),
        ("auto", "16", 100, (16, [f"cuda:{i % 8}" for i in range(16)])),
        ("cpu", "2", 100, (2, ["cpu", "cpu"])),
    ],
)
def test_every_gpu_of_a_machine_has_a_worker(
    monkeypatch: pytest.MonkeyPatch, device: str, workers: str, runs: int, wanted: tuple[int, list[str]]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    started: list[str] = []
    monkeypatch.setattr("decaybench.execution.processes.Worker", lambda number, device: started.append(device))
    placed = place(ExecutionOptions(device=device, workers=workers), runs)
    assert placed.workers == wanted[0]
    assert isinstance(placed.executor, Processes)
    for number in range(1, placed.workers + 1):
        placed.executor._worker(number)
    assert started == wanted[1]
    assert placed.jobs_per_gpu == -(-placed.workers // len(set(started)))


def test_several_gpus_are_worth_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for count, kind in ((1, Inline), (4, Processes)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        made = make_scheduler(StudyFolder(tmp_path), ExecutionOptions(), tiny(activation="prelu", seeds=6).runs())
        assert isinstance(made.executor, kind)
        assert made.workers == count


def test_a_cluster_is_planned_by_its_gpus_and_their_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny(activation="prelu", network="mlp,width=64").runs()[0]
    data = load(run, CPU)
    assert capacity(run, data, CPU) <= 32 < capacity(run, data, torch.device("cuda"), memory=70 << 30)
    monkeypatch.setattr("decaybench.execution.ray.connect", lambda address: 64)
    monkeypatch.setattr("decaybench.execution.ray.free_memory", lambda gpus: 70 << 30)
    for gpus, there, workers in ((0.0, 8.0, 8), (0.25, 8.0, 32), (2.0, 8.0, 4)):
        monkeypatch.setattr("decaybench.execution.ray.cluster_gpus", lambda there=there: there)
        options = ExecutionOptions(device="cuda", executor="ray", ray_gpus=gpus)
        made = make_scheduler(StudyFolder(tmp_path), options, [])
        assert (made.workers, made.memory) == (workers, 70 << 30)
        assert made._capacity(run) > 32
    monkeypatch.setattr("decaybench.execution.ray.cluster_gpus", lambda: 0.0)
    with pytest.raises(UsageError, match="has 0 GPUs, too few for jobs of 1"):
        make_scheduler(StudyFolder(tmp_path), ExecutionOptions(device="cuda", executor="ray"), [])


def test_runs_of_one_seed_train_together() -> None:
    runs = tiny(activation="prelu", strategy=["no-decay", "decay-all", "exclude-alpha"], seeds=10).runs()
    key = cohort_key(runs[0])
    for most in (3, 4, 7, 16):
        for cohort in cohorts(runs, {key: most}, 1):
            seeds = Counter(run.seed for run in cohort)
            assert set(seeds.values()) == {3}
    assert max(map(len, cohorts(runs, {key: 2}, 1))) == 2  # where a seed does not fit, it is cut
