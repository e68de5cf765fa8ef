"""Seeds a script that a study drives."""

import random

import numpy as np
import torch

from decaybench.trials.protocol import Task


def seed_process() -> None:
    """Seeds `random`, `numpy.random` and torch with the seed of the run."""
    task = Task.here()
    if task is not None:
        seed = int(task.config["seed"])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
