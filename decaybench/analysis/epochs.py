"""What happened in each epoch of each run, as a DataFrame."""

from collections.abc import Sequence

import pandas as pd

from decaybench.analysis.frame import Row, labels
from decaybench.registry.hashing import config_digest
from decaybench.results.record import QUANTILE_LEVELS, Record


def epochs_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Makes one row a run and epoch.

    Args:
        records: Whole records.

    Returns:
        ``run_id``, ``cell_id``, the configuration, ``seed``, ``epoch`` (0 is before training; of scripts, how often
        was logged), each metric (missing in epoch 0), and of each activation layer ``alpha_LAYER_q05`` and so on: the
        quantiles of its activation parameters.
    """
    rows: list[Row] = []
    for record in records:
        cell = config_digest({k: v for k, v in record.config.items() if k != "seed"})
        about = {"run_id": record.run_id, "cell_id": cell, **labels(record.config), "seed": record.seed}
        quantiles = {layer.name: layer.quantiles for layer in record.layers if layer.quantiles is not None}
        longest = max([len(s) for s in record.history.values()] + [len(q) - 1 for q in quantiles.values()], default=0)
        for epoch in range(longest + 1):
            metrics = {
                name: series[epoch - 1] if 0 < epoch <= len(series) else None for name, series in record.history.items()
            }
            alphas = {
                f"alpha_{layer}_q{100 * level:02.0f}": None if epoch >= len(q) else q[epoch][i]
                for layer, q in quantiles.items()
                for i, level in enumerate(QUANTILE_LEVELS)
            }
            rows.append({**about, "epoch": epoch, **metrics, **alphas})
    return pd.DataFrame(rows)
