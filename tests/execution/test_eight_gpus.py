"""Eight GPUs of one machine, pretended in every process of a study: all are used, and the numbers are a CPU's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_ray import PORT, RAY, end, node

from decaybench.results.store import StudyFolder
from helpers import REPOSITORY

pytestmark = pytest.mark.slow

STUDY = [
    "run",
    "--dataset",
    "synthetic,samples=100",
    "--network",
    "mlp,width=8",
    "--name",
    "k",
    "--activation",
    "prelu",
]
STUDY += ["--strategy", "decay-all", "--seeds", "16", "--weight-decay", "0.002", "--batch-size", "32"]
HERE = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_DISABLE_IMPORT_WARNING": "1"}
THERE = {
    **HERE,
    "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY / "tests/eight_gpus", REPOSITORY / "tests", REPOSITORY))),
}


def run(folder: Path, environment: dict[str, str], *options: str) -> StudyFolder:
    folder.mkdir()
    command = [sys.executable, "-m", "decaybench", *STUDY, *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return StudyFolder(folder / "results" / "k")


def check(found: StudyFolder, wanted: StudyFolder) -> None:
    ours, theirs = (sorted(folder.load().records, key=lambda record: record.run_id) for folder in (found, wanted))
    assert {r.provenance["device_name"] for r in ours} == {f"Pretended GPU {i}" for i in range(8)}
    assert len(ours) == 16
    for a, b in zip(ours, theirs, strict=True):
        assert a.run_id == b.run_id
        assert a.history["test_loss"][:4] == pytest.approx(b.history["test_loss"][:4], rel=1e-4)


def test_every_gpu_of_a_machine_trains(tmp_path: Path) -> None:
    wanted = run(tmp_path / "cpu", HERE, "--epochs", "4", "--executor", "inline")
    check(run(tmp_path / "gpus", THERE, "--epochs", "4"), wanted)


def test_every_gpu_of_a_cluster_trains_for_a_machine_that_has_none(tmp_path: Path) -> None:
    """With jobs of some seconds, so that none is over before the last worker has started."""
    epochs = ["--epochs", "250"]
    wanted = run(tmp_path / "cpu", HERE, *epochs, "--executor", "inline")
    # Ray leaves a token in the home folder, with which clusters that were started without it cannot be reached.
    here, there = HERE | {"HOME": str(tmp_path)}, THERE | {"HOME": str(tmp_path)}
    address = f"127.0.0.1:{PORT + 1}"
    resources = ["--num-cpus=8", "--num-gpus=8", "--include-dashboard=false"]
    head = node("--head", f"--port={PORT + 1}", *resources, environment=there)
    try:
        asked = [*RAY, "status", f"--address={address}"]
        for _ in range(60):
            if subprocess.run(asked, capture_output=True, env=here).returncode == 0:
                break
        on_ray = ["--executor", "ray", "--ray-address", address, "--device", "cuda"]
        check(run(tmp_path / "gpus", here, *epochs, *on_ray), wanted)
    finally:
        end(head)
