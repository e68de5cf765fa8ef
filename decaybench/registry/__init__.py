"""Every name a study, an audit or an executor has, with its options and where its code is. Never imports torch.

To add a strategy, an activation, a network, a data set, a recipe or an executor: write it
in a file beside its siblings and give it one entry in the file of its family here. ``list``, the checks, the run, the
report and the contract tests go through these tables and cover it.
"""

from collections.abc import Mapping

from decaybench.registry.activations import ACTIVATIONS
from decaybench.registry.datasets import DATASETS
from decaybench.registry.entry import Entry
from decaybench.registry.executors import EXECUTORS
from decaybench.registry.networks import NETWORKS
from decaybench.registry.optimizers import OPTIMIZERS, SCHEDULES
from decaybench.registry.recipes import RECIPES
from decaybench.registry.strategies import STRATEGIES
from decaybench.registry.tasks import LOSSES, TASKS

# What a run is made of.
FAMILIES: Mapping[str, Mapping[str, Entry]] = {
    "strategy": STRATEGIES,
    "activation": ACTIVATIONS,
    "network": NETWORKS,
    "dataset": DATASETS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "loss": LOSSES,
}

__all__ = [
    "ACTIVATIONS",
    "DATASETS",
    "EXECUTORS",
    "FAMILIES",
    "LOSSES",
    "NETWORKS",
    "OPTIMIZERS",
    "RECIPES",
    "SCHEDULES",
    "STRATEGIES",
    "TASKS",
]
