"""Trains jobs on a Ray cluster; Ray places them, and the records are still written on this machine.

Ray's own retries are off: a task that begins again would repeat its messages. What is lost is planned again by
`decaybench.execution.scheduler.Scheduler`, from its checkpoint, as with processes.
"""

import logging
import os
import socket
import time
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decaybench.errors import UsageError
from decaybench.execution.device import resolve
from decaybench.execution.job import DataSource, Failure, Job, Jobs, Message, failed, run_job, single_thread, to_device
from decaybench.execution.options import ExecutionOptions, Placement
from decaybench.execution.scripts import ScriptJob, ScriptOptions, ScriptResult, run_script
from decaybench.registry import imports
from decaybench.registry.metrics import PARTS
from decaybench.study.config import RunConfig
from decaybench.training.data import Data, Part

ASKED_SECONDS = 120.0  # for a worker that has to import torch first


def connect(address: str) -> int:
    """Connects to a Ray cluster.

    Returns:
        Number of cores of the cluster.

    Raises:
        UsageError: When Ray is not installed or there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError("--executor ray needs Ray: pip install 'decaybench[ray]'.") from error
    if not ray.is_initialized():
        try:
            _check_reachable(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(
                f"--ray-address {address}: no Ray cluster answers ({reason}); start one with: ray start --head."
            ) from error
    return int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]


def _check_reachable(address: str) -> None:
    """Checks that an address answers, since Ray itself would try for minutes.

    Raises:
        OSError: When nothing answers.
    """
    host, _, port = address.rpartition(":")
    if host and "/" not in address and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()


class Cluster:
    """Trains jobs on the Ray cluster that `connect` connected to.

    Args:
        device: The device of every worker.
        gpus: Number of GPUs of each job; with a fraction several jobs share one.
        patience: Seconds without a message after which a job that has begun is lost.
    """

    def __init__(self, device: torch.device, gpus: float = 0.0, patience: float = 600.0) -> None:
        self._device, self._gpus, self._patience = str(device), gpus, patience
        self._key: Any = None
        self._reference: Any = None

    def run(self, jobs: Jobs, data: DataSource) -> Iterator[Message]:
        import ray

        # max_calls: Ray would end the worker of a GPU's task after each job, and with it what torch has loaded.
        remote = ray.remote(num_cpus=1, num_gpus=self._gpus, max_retries=0, max_calls=0, num_returns="streaming")(
            _run_job
        )
        going: dict[Any, list[Any]] = {}  # a stream of messages: its job, when it last gave a sign
        while True:
            while job := jobs.take():
                stream = remote.remote(job, self._data(job.configs[0], data), self._device, str(Path.cwd()))
                going[stream] = [job, None]
            if not going:
                return
            ready, _ = ray.wait(list(going), timeout=1.0, fetch_local=False)
            for stream in ready:
                message = self._next(stream, going[stream][0])
                going[stream][1] = time.monotonic()
                if message.ended:
                    del going[stream]
                yield message
            for stream, (job, sign) in list(going.items()):
                if sign is not None and time.monotonic() - sign > self._patience:
                    ray.cancel(stream, force=True)
                    del going[stream]
                    why = f"a job sent no message for {self._patience:g} s"
                    yield failed(job.id, "ray", Failure.lost, why)

    def _next(self, stream: Any, job: Job) -> Message:
        import ray

        try:
            message: Message = ray.get(next(stream))
        except StopIteration:
            return failed(job.id, "ray", Failure.lost, "its messages ended early")
        except ray.exceptions.RayError as error:
            why = f"a worker of the cluster was lost: {type(error).__name__}"
            return failed(job.id, "ray", Failure.lost, why)
        return message

    def _data(self, config: RunConfig, data: DataSource) -> Any:
        """Puts the data into Ray's object store, once, and returns the reference."""
        import ray

        if self._key != config.data_key():
            whole = data(config)
            arrays = {name: (getattr(whole, name).x.numpy(), getattr(whole, name).y.numpy()) for name in PARTS}
            stored = (arrays, {f.name: getattr(whole, f.name) for f in fields(whole) if f.name not in PARTS})
            self._key, self._reference = config.data_key(), ray.put(stored)
        return self._reference


# The images and classes of each part, and the other fields of `Data`.
Stored = tuple[dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]], dict[str, Any]]


def _run_job(job: Job, stored: Stored, device: str, folder: str) -> Iterator[Message]:
    """Trains a job in a worker of the cluster."""
    import ray

    if Path(folder).is_dir():  # the user's own files, where the machines share them
        os.chdir(folder)
    imports.pin(job.sources)
    arrays, rest = stored
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the arrays cannot be written to, and nobody does
        parts: dict[str, Any] = {name: Part(*map(torch.from_numpy, pair)) for name, pair in arrays.items()}
    data = Data(**parts, **rest)
    where = torch.device(device)
    node = ray.get_runtime_context().get_node_id()[:6]
    with single_thread(where):
        yield from run_job(job, to_device(data, where), f"node {node}/{os.getpid()}")


def place(options: ExecutionOptions, runs: int) -> Placement:
    """Places the jobs of a study on a Ray cluster; see `decaybench.registry.EXECUTORS`.

    A job sees only the GPUs it was given, the first of which is its device. This machine may have none: how many runs
    fit is asked on the cluster's side, and there are as many workers as its GPUs hold jobs.

    Raises:
        UsageError: When there is no cluster, or it has no GPU where one is asked for.
    """
    cores = connect(options.ray_address)
    kind = options.device.partition(":")[0]
    kind = ("cuda" if options.ray_gpus else "cpu") if kind == "auto" else kind
    if kind != "cuda":
        device = resolve(kind)
        return Placement(Cluster(device, 0.0, options.patience), device, cores)
    gpus, there = options.ray_gpus or 1.0, cluster_gpus()
    workers = int(there / gpus) if gpus <= 1 else int(there // gpus)
    if not workers:
        raise UsageError(f"The Ray cluster has {there:g} GPUs, too few for jobs of {gpus:g}; use --device cpu.")
    sharing = max(1, round(1 / gpus))
    cuda = torch.device("cuda")
    return Placement(Cluster(cuda, gpus, options.patience), cuda, workers, sharing, free_memory(gpus))


def cluster_gpus() -> float:
    """Returns the number of GPUs of the cluster that `connect` connected to."""
    import ray

    return float(ray.cluster_resources().get("GPU", 0.0))  # type: ignore[no-untyped-call]


def free_memory(gpus: float) -> int | None:
    """Asks a worker with a GPU how many bytes are free on it; None where it cannot tell."""
    import ray

    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_free_memory)
    try:
        return int(ray.get(remote.remote(), timeout=ASKED_SECONDS))
    except ray.exceptions.RayError:
        return None


def _free_memory() -> int:
    free, _ = torch.cuda.mem_get_info()
    return free


class ScriptCluster:
    """Starts scripts on the Ray cluster that `connect` connected to; its machines share the study folder.

    Args:
        slots: How many are handed to Ray at once.
        gpus: Number of GPUs of each.
    """

    def __init__(self, slots: int, gpus: int) -> None:
        import ray

        self.slots = slots
        self._remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_run_script)
        self._running: list[Any] = []

    def start(self, job: ScriptJob, slot: int) -> Any:
        self._running.append(self._remote.remote(job, str(Path.cwd())))
        return self._running[-1]

    def result(self, started: Any) -> ScriptResult | str | None:
        import ray

        if not ray.wait([started], timeout=0)[0]:
            return None
        self._running.remove(started)
        try:
            result: ScriptResult = ray.get(started)
        except ray.exceptions.RayTaskError as error:
            return f"it could not be started there: {str(error.cause).splitlines()[0]}"
        except ray.exceptions.RayError as error:
            return f"a worker of the cluster was lost: {type(error).__name__}"
        return result

    def stop(self) -> None:
        import ray

        for started in self._running:
            ray.cancel(started, force=True)


def _run_script(job: ScriptJob, folder: str) -> ScriptResult:
    """Runs a script in a worker of the cluster, which may have been given GPUs."""
    os.chdir(folder)
    return run_script(job)


def script_pool(options: ScriptOptions) -> ScriptCluster:
    """Starts scripts on a Ray cluster; see `decaybench.registry.EXECUTORS`."""
    cores = connect(options.ray_address)
    return ScriptCluster(cores if options.workers == "auto" else int(options.workers), options.gpus_per_run)
