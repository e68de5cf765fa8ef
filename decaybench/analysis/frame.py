"""A study as a pandas DataFrame, one row per run."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from decaybench.analysis.cells import Row, labels
from decaybench.analysis.comparison import alpha_columns
from decaybench.results.record import decode
from decaybench.results.store import Record, find_study_folder


def load(directory: str | Path) -> pd.DataFrame:
    """Loads a study folder as a DataFrame, one row per run.

    Args:
        directory: A study folder, such as ``results/digits``.

    Returns:
        One row per run: its configuration, seed, ``diverged`` (the epoch, or missing), the last epoch's losses
        and accuracies (fractions), the activation parameters' mean, quantiles, share near zero and share of exact
        zeros over all layers, fingerprints, device and seconds.

    Raises:
        UsageError: When it is no study folder.

    A record that cannot be read is named in a warning and left out.
    """
    loaded = find_study_folder(Path(directory)).load()
    for problem in loaded.problems:
        warnings.warn(problem, stacklevel=2)
    return frame(loaded.records)


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """Makes a DataFrame with one row per record; see `load`."""
    return pd.DataFrame([_row(record) for record in records])


def _row(record: Record) -> Row:
    alphas = [decode(layer["final"]) for layer in record["layers"]]
    return {
        "run_id": record["run_id"],
        **labels(record["config"]),
        "seed": record["config"]["seed"],
        "diverged": record["diverged"],
        **{key: series[-1] for key, series in record["history"].items()},
        **alpha_columns(np.concatenate(alphas) if alphas else np.empty(0)),
        "alpha_zero": float((np.concatenate(alphas) == 0).mean()) if alphas else None,
        **{f"{key}_fingerprint": value for key, value in record["fingerprints"].items()},
        "device": record["provenance"].get("device"),
        "seconds": record["provenance"].get("seconds"),
    }
