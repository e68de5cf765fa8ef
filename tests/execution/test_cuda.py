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
@pytest.mark.parametrize("network", ["mlp,width=16", "forum,width=8", "vgg,depth=3,width=4,norm=true"])
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
        epochs=4,
    )
    data = load(study.runs()[0], CUDA)
    training, plain = Training(study.runs(), data), Training(study.runs(), data)
    assert training.recorded is not None
    for recorded in plain.recorded or ():
        recorded.reason = "for comparison"
    ours, theirs = records(training), records(plain)
    assert training.remark == ""
    assert all(recorded.replays for recorded in training.recorded)
    for run_id, record in ours.items():
        assert record.history["train_loss"] == pytest.approx(theirs[run_id].history["train_loss"], rel=1e-3)


@pytest.mark.parametrize("network", ["resnet18", "mlp,width=16,dropout=0.2"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop"])
def test_a_network_that_trains_alone_is_recorded(network: str, optimizer: str) -> None:
    """With dropout every replay must draw anew: the loss of steps that see the same batch differs."""
    (run,) = tiny(
        network=network, activation="prelu", strategy="exclude-alpha", optimizer=optimizer, epochs=6, seeds=1
    ).runs()
    training = Training([run], load(run, CUDA))
    (record,) = records(training).values()
    assert training.remark == ""
    losses = record.history["train_loss"]
    assert len(set(losses)) == len(losses)
    assert losses[-1] < losses[0]


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
