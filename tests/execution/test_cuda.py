"""On a GPU only, and not collected elsewhere: that the step is recorded, and that a study gives what a CPU gives."""

from pathlib import Path
from typing import Any

import pytest
import torch

from decaybench.activations.kaf import triton as gpu
from decaybench.execution.inline import Inline
from decaybench.execution.scheduler import Scheduler
from decaybench.results.store import StudyFolder
from decaybench.training.data import load
from decaybench.training.trainer import Finished, Training
from helpers import CPU, tiny

CUDA = torch.device("cuda")


def records(training: Training) -> dict[str, Any]:
    found = {}
    while not training.finished:
        found |= {e.config.run_id: e.record for e in training.advance() if isinstance(e, Finished)}
    return found


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("network", ["mlp,width=16", "forum,width=8"])
def test_the_step_is_recorded_and_gives_the_same_numbers(network: str, precision: str) -> None:
    study = tiny(
        network=network,
        precision=precision,
        activation="kaf",
        strategy=["decay-all", "loss-penalty", "decay-to-init"],
        schedule="cosine",
        clip_norm=0.5,
        batch_size=48,
        seeds=2,
    )
    data = load(study.runs()[0], CUDA)
    training, plain = Training(study.runs(), data), Training(study.runs(), data)
    plain.recorded_step = None
    ours, theirs = records(training), records(plain)
    assert training.recorded_step is not None
    assert training.recorded_step.replay is not None
    for run_id, record in ours.items():
        assert record.history["train_loss"] == pytest.approx(theirs[run_id].history["train_loss"], rel=1e-3)


def test_a_study_on_a_gpu_gives_what_it_gives_on_a_cpu(tmp_path: Path) -> None:
    assert gpu.works(CUDA)
    runs = tiny(dataset="digits", network="forum", activation=["prelu", "kaf"], seeds=3, epochs=4).runs()
    accuracy = {}
    for device in (CPU, CUDA):
        folder = StudyFolder(tmp_path / device.type)
        list(Scheduler(Inline(device), folder, device).run(runs))
        loaded = folder.load()
        assert not loaded.problems
        accuracy[device.type] = {r.run_id: r.history["test_accuracy"][-1] for r in loaded.records}
    assert accuracy["cuda"].keys() == accuracy["cpu"].keys()
    for run_id, value in accuracy["cuda"].items():
        assert value == pytest.approx(accuracy["cpu"][run_id], abs=0.03)
