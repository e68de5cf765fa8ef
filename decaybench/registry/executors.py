"""The executors: where the runs of a study are trained."""

from collections.abc import Mapping

from decaybench.registry.entry import Entry

_PACKAGE = "decaybench.execution."
# Each target takes `decaybench.execution.options.ExecutionOptions` and the number of runs, and returns a `Placement`.
EXECUTORS: Mapping[str, Entry] = {
    "inline": Entry("this process, one job after another: for debugging and small studies", _PACKAGE + "inline:place"),
    "processes": Entry("processes of this machine: one for each core", _PACKAGE + "processes:place"),
    "ray": Entry("a Ray cluster", _PACKAGE + "ray:place"),
}
