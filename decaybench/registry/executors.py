"""The executors: where the runs of a study are trained, or its script is started."""

from collections.abc import Mapping
from dataclasses import dataclass

from decaybench.registry.entry import Entry

_PACKAGE = "decaybench.execution."
_LOCAL = _PACKAGE + "scripts:local_pool"


@dataclass(frozen=True)
class ExecutorEntry(Entry):
    """Names what trains the runs of a study somewhere, and what starts scripts there.

    Its target takes `decaybench.execution.options.ExecutionOptions` and the number of runs, and returns a `Placement`.

    Attributes:
        scripts: The same for scripts: takes `decaybench.execution.scripts.ScriptOptions`, and returns a `Pool`.
    """

    scripts: str = ""


EXECUTORS: Mapping[str, ExecutorEntry] = {
    "inline": ExecutorEntry(
        "this process, one job after another: for debugging and small studies",
        _PACKAGE + "inline:place",
        scripts=_LOCAL,
    ),
    "processes": ExecutorEntry(
        "processes of this machine: one for each core", _PACKAGE + "processes:place", scripts=_LOCAL
    ),
    "ray": ExecutorEntry("a Ray cluster", _PACKAGE + "ray:place", scripts=_PACKAGE + "ray:script_pool"),
    "slurm": ExecutorEntry(
        "Slurm, through submitit; scripts only", _PACKAGE + "slurm:place", scripts=_PACKAGE + "slurm:script_pool"
    ),
}
