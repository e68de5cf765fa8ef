"""The runs of a study as a pandas DataFrame, one row a run: what everything else here works on."""

import json
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from decaybench.registry.hashing import config_digest
from decaybench.registry.metrics import Direction
from decaybench.registry.spec import label_of, plain_value
from decaybench.results.record import Layer, Record
from decaybench.results.store import Loaded, find_study_folder
from decaybench.study.config import ADDED_FIELDS

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
SPECS = ("dataset", "network", "activation", "strategy", "optimizer", "schedule")
FINGERPRINTS = ("data", "initial", "batches")
NEAR_ZERO = 0.01
ALPHA_COLUMNS = ("alpha_mean", "alpha_q05", "alpha_q50", "alpha_q95", "alpha_near_zero")
_NOT_METRICS = {
    *("run_id", "cell_id", *SPECS, "lr", "weight_decay", "epochs", "batch_size", "seed", "diverged"),
    *("device", "device_name", "seconds", "config", "provenance", "metrics", "extra", "protected", "digest"),
    *("history", "layers", "test_correct", "test_examples", "test_losses", "outcomes"),
}


def load(directory: str | Path, epochs: bool = False) -> pd.DataFrame:
    """Loads a study folder as a DataFrame, one row per run, or one per run and epoch.

    Args:
        directory: A study folder, such as ``results/digits``.
        epochs: Whether every epoch is wanted, as `decaybench.analysis.epochs.epochs_frame` makes it.

    Returns:
        One row per run: its configuration, seed, ``diverged`` (the epoch, or missing), the last value of each metric
        (of training on classes: loss and accuracy, a fraction, of each part), the activation parameters' mean,
        quantiles, share near zero and share of exact zeros over all layers, fingerprints, device and seconds;
        ``outcomes``, which holds for metrics of the test part an array with the value on each example (bool, float16
        or float32), where they were recorded. Runs of one ``cell_id`` differ in nothing but the seed.

    Raises:
        UsageError: When it is no study folder.

    A record that cannot be read is named in a warning and left out.
    """
    if epochs:
        from decaybench.analysis.epochs import epochs_frame

        return epochs_frame(find_study_folder(Path(directory)).load_records())
    loaded = find_study_folder(Path(directory)).load(detail="summary")
    for problem in loaded.problems:
        warnings.warn(problem, stacklevel=2)
    runs = runs_frame(loaded)
    return pd.DataFrame([_public_row({str(k): v for k, v in row.items()}) for row in runs.to_dict("records")])


def _public_row(row: Row) -> Row:
    layers = row["layers"]
    alphas = np.concatenate([layer.final for layer in layers]) if layers else np.empty(0, np.float32)
    inside = ("config", "provenance", "layers", "protected", "data_key", "metrics", "watched")
    known = {key: row[key] for key in row if key not in inside}
    return {
        **{key: known.pop(key) for key in ("run_id", "cell_id")},
        **labels(config_of(row["config"])),
        **known,
        **alpha_columns(alphas),
        "alpha_zero": float((alphas == 0).mean()) if len(alphas) else None,
    }


def runs_frame(loaded: Loaded) -> pd.DataFrame:
    """Makes a DataFrame of the records of a study.

    Returns:
        Columns ``run_id``, ``cell_id``, ``config`` (of the first run of its cell: the seed is apart; see `config_of`),
        ``seed``, ``diverged`` (NaN where it did not),
        the last value of each metric, ``…_fingerprint``, ``data_key`` (equal where the data are), ``device``,
        ``seconds``, ``provenance`` and ``metrics`` (JSON), ``protected``, ``layers`` (a tuple of `Layer` each),
        ``outcomes`` (of metrics of the test part, an array with the value on each example).
    """
    parts = [_from_records(loaded.records)] if loaded.records else []
    if loaded.packed is not None and loaded.packed.num_rows:
        parts.append(_from_table(loaded.packed))
    if not parts:
        return pd.DataFrame(columns=["run_id", "cell_id", "config", "seed", "diverged", "layers", "data_key"])
    runs = parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)
    runs["data_key"] = _data_keys(runs)
    return runs


def _from_records(records: Sequence[Record]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run_id": record.run_id,
            "cell_id": config_digest({k: v for k, v in record.config.items() if k != "seed"}),
            "config": record.config,
            "seed": record.seed,
            "diverged": np.nan if record.diverged is None else float(record.diverged),
            **{name: record.final(name) for name in record.history},
            **{f"{key}_fingerprint": record.fingerprints.get(key) for key in (*FINGERPRINTS, "source")},
            **{key: record.provenance.get(key) for key in ("device", "device_name", "seconds")},
            "provenance": json.dumps(record.provenance, sort_keys=True),
            "protected": record.protected,
            "layers": record.layers,
            "metrics": json.dumps(dict(record.metrics)),
            "watched": record.extra.get("watched"),
            "outcomes": record.outcomes,
        }
        for record in records
    )


def _from_table(table: "pa.Table") -> pd.DataFrame:
    from decaybench.results.packed import layers_of, outcomes_of

    names = [name for name in table.column_names if name not in _NOT_METRICS and not name.endswith("_fingerprint")]
    prints = [f"{key}_fingerprint" for key in (*FINGERPRINTS, "source")]
    chosen = ["run_id", "cell_id", "seed", "diverged", *names, *prints]
    chosen += ["device", "device_name", "seconds", "provenance", "metrics", "protected"]
    runs: pd.DataFrame = table.select(chosen).to_pandas(strings_to_categorical=True)
    runs = runs.astype({key: object for key in runs.columns if isinstance(runs[key].dtype, pd.CategoricalDtype)})
    runs["diverged"] = runs["diverged"].astype(float)
    first = runs["cell_id"].drop_duplicates()
    configs = dict(zip(first, table["config"].take(first.index.to_numpy()).to_pylist(), strict=True))
    runs["config"] = runs["cell_id"].map(configs)
    runs["layers"] = pd.Series(layers_of(table["layers"]), index=runs.index, dtype=object)
    runs["outcomes"] = pd.Series(outcomes_of(table), index=runs.index, dtype=object)
    extra = table["extra"].to_pylist() if "extra" in table.column_names else []
    runs["watched"] = pd.Series([json.loads(e).get("watched") for e in extra] or None, index=runs.index, dtype=object)
    return runs


def recorded_metrics(runs: pd.DataFrame) -> dict[str, Direction]:
    """Returns the direction of each metric that some run has recorded."""
    found: dict[str, Direction] = {}
    for text in runs["metrics"].unique() if "metrics" in runs else ():
        found |= json.loads(text)
    return found


def recorded_columns(runs: pd.DataFrame) -> list[str]:
    """Returns the names of everything that runs recorded, with a direction or without."""
    apart = {*_NOT_METRICS, "watched", "data_key"}
    return [str(name) for name in runs.columns if name not in apart and not str(name).endswith("_fingerprint")]


def _data_keys(runs: pd.DataFrame) -> pd.Series:
    """Names the data of each run: by the source's fingerprint where it is known, otherwise by that of the split."""
    known = runs.dropna(subset=["source_fingerprint"]).set_index("data_fingerprint")["source_fingerprint"]
    by_split = known[~known.index.duplicated()]
    keys = runs["source_fingerprint"].fillna(runs["data_fingerprint"].map(by_split)).fillna(runs["data_fingerprint"])
    return keys.fillna("")  # a script may say nothing of its data


def config_of(value: Row | str) -> Row:
    """Returns a configuration, which may be written as JSON."""
    return _parsed(value) if isinstance(value, str) else value


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Row:
    config: Row = json.loads(text)
    return config


def labels(config: Row) -> Row:
    """Writes a configuration without its seed as a person would: every named part as one text."""
    named = {
        key: label_of(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in ("seed", "args", *ADDED_FIELDS)
    }
    if "script" in config:
        return {**named, **{key: _number_of(value, key == "lr") for key, value in config["args"].items()}}
    added = {key: config.get(key, default) for key, default in ADDED_FIELDS.items()}
    return {**named, **{key: label_of(value) if isinstance(value, dict) else value for key, value in added.items()}}


def _number_of(value: Any, whatever: bool) -> Any:
    """Returns the number that a text is, where it is written as that number is, or whatever way it is written."""
    number = plain_value(value) if isinstance(value, str) else value
    return number if whatever or str(number) == str(value) else value


def alpha_columns(alphas: Any) -> Row:
    """Computes mean, quantiles and the share within 0.01 of zero; all None where nothing is learned.

    Args:
        alphas: The parameters, flat; their order is changed.
    """
    if not len(alphas):
        return dict.fromkeys(ALPHA_COLUMNS)
    mean = float(alphas.mean(dtype=np.float64))
    near_zero = float(((alphas >= -NEAR_ZERO) & (alphas <= NEAR_ZERO)).mean())
    # Partly sorted in place: with a hundred million numbers a copy would matter.
    quantiles = np.quantile(alphas, [0.05, 0.5, 0.95], overwrite_input=True).tolist()
    return dict(zip(ALPHA_COLUMNS, [mean, *quantiles, near_zero], strict=True))


def pooled(layers: Sequence[Layer]) -> Any:
    """Joins the final parameters of layers, (all,) in float32."""
    return np.concatenate([layer.final for layer in layers]) if layers else np.empty(0, np.float32)
