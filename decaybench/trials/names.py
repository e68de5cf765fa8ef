"""The names under which metrics of other libraries are recorded."""

from collections.abc import Mapping
from typing import Any

PARTS = {"eval_": "validation_", "val_": "validation_", "valid_": "validation_"}
ASIDE = {"runtime", "epoch", "step", "num_input_tokens_seen", "model_preparation_time", "total_flos"}


def recorded_names(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Renames ``eval_loss`` and ``val_loss`` to ``validation_loss``, and leaves out what is no metric."""
    found = {}
    for name, value in metrics.items():
        prefix = next((p for p in PARTS if name.startswith(p)), "")
        whole = name.removeprefix(prefix).removeprefix("test_")
        if whole in ASIDE or whole.endswith("_per_second"):
            continue
        found[PARTS.get(prefix, "") + name.removeprefix(prefix)] = value
    return found
