"""What weight decay does to learned activation functions: compare, audit, prove."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decaybench.analysis.frame import load as load
    from decaybench.datasets.arrays import Arrays as Arrays
    from decaybench.parameter_roles.param_groups import param_groups as param_groups
    from decaybench.parameter_roles.param_groups import penalty as penalty
    from decaybench.parameter_roles.regroup import regroup_state as regroup_state
    from decaybench.parameter_roles.roles import mark_activation as mark_activation
    from decaybench.parameter_roles.roles import roles as roles
    from decaybench.strategies.plan import Plan as Plan
    from decaybench.strategies.plan import Setup as Setup
    from decaybench.trials.trial import Trial as Trial
    from decaybench.trials.trial import run_seed as run_seed
    from decaybench.trials.trial import trial as trial
    from decaybench.trials.watch import watch as watch

__version__ = "0.1.0"

# Imported when first used: `import decaybench` costs nothing, and only what needs torch imports it.
_HOMES = {
    "Arrays": "decaybench.datasets.arrays",
    "Plan": "decaybench.strategies.plan",
    "Setup": "decaybench.strategies.plan",
    "load": "decaybench.analysis.frame",
    "mark_activation": "decaybench.parameter_roles.roles",
    "param_groups": "decaybench.parameter_roles.param_groups",
    "penalty": "decaybench.parameter_roles.param_groups",
    "regroup_state": "decaybench.parameter_roles.regroup",
    "roles": "decaybench.parameter_roles.roles",
    "run_seed": "decaybench.trials.trial",
    "trial": "decaybench.trials.trial",
    "Trial": "decaybench.trials.trial",
    "watch": "decaybench.trials.watch",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'decaybench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


if os.environ.get("DECAYBENCH_TRIAL"):  # a study drives this script: what it draws is the run's from here on
    from decaybench.trials.seeding import seed_process

    seed_process()
