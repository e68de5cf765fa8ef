"""Where a study is done, and how much of it at once."""

from pathlib import Path
from typing import Any

import pytest
import torch

from decaybench.execution.inline import Inline
from decaybench.execution.options import ExecutionOptions
from decaybench.execution.ray import Cluster
from decaybench.execution.scheduler import Scheduler, make_scheduler
from decaybench.results.store import StudyFolder
from decaybench.training.data import load
from decaybench.training.stacked.cohorts import capacity
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
    assert set(asked) == {(cuda, 4)}


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
    made = make_scheduler(StudyFolder(tmp_path), ExecutionOptions(device=device, executor="ray", ray_gpus=gpus), [])
    assert isinstance(made.executor, Cluster)
    assert (str(made.device), made.executor._gpus, made.jobs_per_gpu) == wanted
