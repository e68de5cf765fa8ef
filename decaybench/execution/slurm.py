"""Starts scripts as jobs of Slurm, through submitit; the machines share the study folder."""

from typing import Any, NoReturn

from decaybench.errors import UsageError
from decaybench.execution.scripts import ScriptJob, ScriptOptions, ScriptResult, run_script

MOST_AT_ONCE = 1000  # jobs in Slurm's queue, where nobody says --workers
POLL_INTERVAL = 1.0  # seconds between two questions to Slurm


class SlurmPool:
    """Submits each run as a job.

    Args:
        executor: submitit's executor.
        slots: How many are in the queue at once.
    """

    def __init__(self, executor: Any, slots: int) -> None:
        self.slots, self._executor = slots, executor
        self._jobs: list[Any] = []

    def start(self, job: ScriptJob, slot: int) -> Any:
        self._jobs.append(self._executor.submit(run_script, job))
        return self._jobs[-1]

    def result(self, started: Any) -> ScriptResult | str | None:
        if not started.done():
            return None
        self._jobs.remove(started)
        error = started.exception()
        if error is not None:
            return f"Slurm's job {started.job_id} ended with {type(error).__name__}: {str(error).splitlines()[0]}"
        result: ScriptResult = started.result()
        return result

    def stop(self) -> None:
        for job in self._jobs:
            job.cancel(check=False)


def script_pool(options: ScriptOptions) -> SlurmPool:
    """Submits scripts to Slurm; see `decaybench.registry.EXECUTORS`.

    Raises:
        UsageError: When submitit or Slurm is not there, or an option is none of Slurm's.
    """
    try:
        import submitit
    except ImportError as error:
        raise UsageError("--executor slurm needs submitit: pip install 'decaybench[slurm]'.") from error
    chosen = dict(options.slurm)
    kind = chosen.pop("cluster", None)
    try:
        executor = submitit.AutoExecutor(folder=options.folder / "slurm", cluster=kind)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"--executor slurm: {error}.") from error
    if kind is None and executor.cluster != "slurm":
        raise UsageError("--executor slurm: there is no Slurm here (srun is not found).")
    if options.gpus_per_run:
        chosen["gpus_per_node"] = options.gpus_per_run
    if options.time_limit is not None:
        chosen["timeout_min"] = max(1, round(options.time_limit / 60) + 1)
    try:
        executor.update_parameters(**chosen)
    except (NameError, TypeError, ValueError) as error:
        raise UsageError(f"--slurm: {error}.") from error
    return SlurmPool(executor, MOST_AT_ONCE if options.workers == "auto" else int(options.workers))


def place(options: Any, runs: int) -> NoReturn:
    """Refuses the runs that are trained here; see `decaybench.registry.EXECUTORS`.

    Raises:
        UsageError: Always.
    """
    raise UsageError("--executor slurm starts scripts (--script); the runs of a built-in study take Ray or processes.")
