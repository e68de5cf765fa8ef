"""The names under which metrics of other libraries are recorded."""

from collections.abc import Mapping
from typing import Any

PARTS = {"eval_": "validation_", "val_": "validation_", "valid_": "validation_"}
ASIDE = ("runtime", "per_second", "epoch", "step", "num_input_tokens_seen", "model_preparation_time")


def recorded_names(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Renames ``eval_loss`` and ``val_loss`` to ``validation_loss``, and leaves out what is no metric."""
    found = {}
    for name, value in metrics.items():
        if name.endswith(ASIDE) or name.startswith("total_"):
            continue
        prefix = next((p for p in PARTS if name.startswith(p)), "")
        found[PARTS.get(prefix, "") + name.removeprefix(prefix)] = value
    return found
