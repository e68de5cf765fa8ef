"""A real Ray cluster of two nodes on this machine: the same bits, and a lost node costs only time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from test_killed import numbers

from helpers import REPOSITORY

pytestmark = pytest.mark.slow

PORT = 6397
RAY = [str(Path(sys.executable).with_name("ray"))]
STUDY = ["run", "--dataset", "synthetic,samples=400", "--network", "mlp", "--name", "k", "--epochs", "30"]
STUDY += ["--activation", "prelu", "--activation", "kaf", "--strategy", "decay-all", "--seeds", "12"]
STUDY += ["--weight-decay", "0.002"]
ON_RAY = [*STUDY, "--executor", "ray", "--ray-address", f"127.0.0.1:{PORT}", "--checkpoint-every", "0.5"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_DISABLE_IMPORT_WARNING": "1"}


def node(*arguments: str, environment: dict[str, str] = ENVIRONMENT) -> "subprocess.Popen[bytes]":
    """Starts a node that lives as long as its process."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [*RAY, "start", "--block", "--disable-usage-stats", *arguments]
    return subprocess.Popen(command, env=environment, start_new_session=True, **quiet)  # type: ignore[call-overload]


def end(process: "subprocess.Popen[bytes]") -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, Any]]:
    head = node("--head", f"--port={PORT}", "--num-cpus=2", "--include-dashboard=false")
    second = None
    try:
        for _ in range(60):
            status = subprocess.run(
                [*RAY, "status", f"--address=127.0.0.1:{PORT}"], capture_output=True, env=ENVIRONMENT
            )
            if status.returncode == 0:
                break
        second = node(f"--address=127.0.0.1:{PORT}", "--num-cpus=1")
        yield {"second": second}
    finally:
        for process in (second, head):
            if process is not None and process.poll() is None:
                end(process)


def test_ray_gives_the_same_bits_and_a_lost_node_costs_only_time(
    cluster: dict[str, Any], cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    assert cli(*STUDY, "--executor", "inline", cwd=tmp_path / "here").returncode == 0
    command = [sys.executable, "-m", "decaybench", *ON_RAY, "--verbose"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path / "there", env=ENVIRONMENT, **pipes) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "[1/" in line:
                end(cluster["second"])
        table = process.stdout.read()
    assert process.returncode == 0, "".join(lines)
    assert "synthetic,samples=400 · mlp · kaf" in table
    assert numbers(tmp_path / "there") == numbers(tmp_path / "here")
    assert len(numbers(tmp_path / "here")) == 24


def test_no_cluster_is_one_clear_sentence(cli: Cli) -> None:
    start = time.monotonic()
    done = cli(*STUDY, "--executor", "ray", "--ray-address", "127.0.0.1:6398")
    assert done.returncode == 2
    assert "no Ray cluster answers" in done.stderr
    assert "ray start --head" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - start < 120


ON_GPU_SLOTS = """
import logging, ray, torch
ray.init(address="local", num_cpus=2, num_gpus=1, logging_level=logging.ERROR, include_dashboard=False)
import decaybench.execution.ray as cluster
from pathlib import Path
from decaybench.execution.scheduler import Scheduler
from decaybench.results.store import StudyFolder
from helpers import tiny

print(cluster.cluster_gpus(), cluster.free_memory(1.0))
runs = tiny(network=["mlp,width=8", "mlp,width=16", "mlp,width=24"], activation="prelu").runs()
study = Scheduler(cluster.Cluster(torch.device("cpu"), gpus=1.0), StudyFolder(Path("k")), torch.device("cpu"))
events = list(study.run(runs))
print(len({event.configs[0].run_id for event in events}), len({event.worker for event in events}))
"""


def test_a_worker_with_a_gpu_is_kept_from_job_to_job(tmp_path: Path) -> None:
    """A real Ray that believes in a GPU; it has none, so that the work is a CPU's and nobody can tell its memory."""
    # Ray leaves a token in the home folder, with which clusters that were started without it cannot be reached.
    environment = {
        **ENVIRONMENT,
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]),
    }
    command = [sys.executable, "-c", ON_GPU_SLOTS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    gpus, memory, jobs, workers = done.stdout.split()[-4:]
    assert (gpus, memory) == ("1.0", "None")
    assert int(jobs) >= 3
    assert workers == "1"
