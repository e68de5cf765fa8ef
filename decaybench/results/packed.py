"""Many records in one Parquet file: ``runs.parquet``, which pandas and DuckDB read without decaybench.

One row a run. Configuration and final metrics are plain columns; the rest keeps every number exactly. Beside it stands
``runs.parquet.sha256``, as ``sha256sum`` writes it. Where the two do not agree, every row is checked by its own digest.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from decaybench.registry.hashing import canonical, config_digest
from decaybench.registry.spec import label_of
from decaybench.results.record import SHORT, DamagedRecordError, Layer, Outcomes, Record, content_digest

SPECS = ("dataset", "network", "activation", "strategy", "optimizer", "schedule")
PLAIN = {"lr": float, "weight_decay": float, "epochs": int, "batch_size": int, "seed": int}
FINGERPRINTS = ("data", "initial", "batches", "source")
Detail = Literal["summary", "figures", "all"]
# What a table or a verdict needs of a layer, and what figures need, too.
_SUMMARY = ("name", "final", "distance_from_start", "distance_from_zero", "distance_from_relu")
_FIGURES = (*_SUMMARY, "quantiles", "inputs", "curve_start.mean", "curve_end", "curve_channels")

_SERIES = pa.list_(pa.float64())
_LINES = ("mean", "low", "high")
_DRAWN = pa.struct([(key, _SERIES) for key in _LINES])
_LAYER = pa.struct(
    [
        ("name", pa.string()),
        ("type", pa.string()),
        ("final", pa.list_(pa.float32())),
        ("initial", pa.list_(pa.float32())),
        ("quantiles", pa.list_(_SERIES)),
        ("distance_from_start", pa.float64()),
        ("distance_from_zero", pa.float64()),
        ("distance_from_relu", pa.float64()),
        ("inputs", _SERIES),
        ("curve_start", _DRAWN),
        ("curve_end", _DRAWN),
        ("curve_channels", pa.list_(_SERIES)),
        ("curve_keys", pa.list_(pa.string())),
    ]
)
_FIXED = [
    ("run_id", pa.string()),
    ("cell_id", pa.string()),
    *((key, pa.string()) for key in SPECS),
    *(("lr", pa.float64()), ("weight_decay", pa.float64())),
    *(("epochs", pa.int64()), ("batch_size", pa.int64()), ("seed", pa.int64())),
    ("diverged", pa.int64()),
    *((f"{key}_fingerprint", pa.string()) for key in FINGERPRINTS),
    *(("device", pa.string()), ("device_name", pa.string()), ("seconds", pa.float64())),
    *(("config", pa.string()), ("provenance", pa.string()), ("metrics", pa.string()), ("extra", pa.string())),
    *(("protected", pa.bool_()), ("digest", pa.string())),
    ("history", pa.map_(pa.string(), _SERIES)),
    ("layers", pa.list_(_LAYER)),
    *(("test_correct", pa.binary()), ("test_examples", pa.int64()), ("test_losses", pa.binary())),
]
# Of metrics other than those two; files of before it have no such column.
_OUTCOMES = pa.map_(pa.string(), pa.list_(pa.float32()))
_COLUMNS = {name for name, _ in _FIXED}
# Numbers that never repeat: their bytes compress better apart, first all of the exponents.
_SPLIT = (
    "layers.list.element.final.list.element",
    "layers.list.element.quantiles.list.element.list.element",
    "history.key_value.value.list.element",
)


def to_table(records: Sequence[Record]) -> pa.Table:
    """Makes a table with one row a run; cells stay together, in the order of their seeds."""
    cells = {r.run_id: config_digest({k: v for k, v in r.config.items() if k != "seed"}) for r in records}
    ordered = sorted(records, key=lambda r: (cells[r.run_id], r.seed, r.run_id))
    metrics = list(dict.fromkeys(name for record in ordered for name in record.history if name not in _COLUMNS))
    schema = pa.schema([*_FIXED, ("outcomes", _OUTCOMES), *((name, pa.float64()) for name in metrics)])
    return pa.Table.from_pylist([_row(record, cells[record.run_id], metrics) for record in ordered], schema)


def _row(record: Record, cell_id: str, metrics: Iterable[str]) -> dict[str, Any]:
    config, about = record.config, record.provenance
    correct = _of_type(record.outcomes, SHORT["correct"], np.bool_)
    losses = _of_type(record.outcomes, SHORT["loss"], np.float16)
    others = {key: value for key, value in record.fingerprints.items() if key not in FINGERPRINTS}
    return {
        "run_id": record.run_id,
        "cell_id": cell_id,
        **{key: label_of(config[key]) if isinstance(config.get(key), dict) else config.get(key) for key in SPECS},
        **{key: None if config.get(key) is None else kind(config[key]) for key, kind in PLAIN.items()},
        "diverged": record.diverged,
        **{f"{key}_fingerprint": record.fingerprints.get(key) for key in FINGERPRINTS},
        **{key: about.get(key) for key in ("device", "device_name", "seconds")},
        "provenance": canonical(record.provenance),
        "extra": canonical({**record.extra, **({"fingerprints": others} if others else {})}),
        "config": json.dumps(config, ensure_ascii=False, separators=(",", ":")),
        "metrics": canonical(dict(record.metrics)),
        "protected": record.protected,
        "digest": content_digest(record),
        "history": list(record.history.items()),
        "layers": [_layer_row(layer) for layer in record.layers],
        "test_correct": None if correct is None else np.packbits(correct).tobytes(),
        "test_examples": None if correct is None else len(correct),
        "test_losses": None if losses is None else losses.tobytes(),
        "outcomes": [(name, values) for name, values in record.outcomes.items() if values.dtype == np.float32],
        **{name: record.history[name][-1] if name in record.history else None for name in metrics},
    }


def _of_type(outcomes: Outcomes, name: str, kind: type) -> np.ndarray[Any, Any] | None:
    values = outcomes.get(name)
    return values if values is not None and values.dtype == kind else None


def _layer_row(layer: Layer) -> dict[str, Any]:
    row = {key: getattr(layer, key) for key in Layer.__dataclass_fields__ if key != "curve"}
    curve = layer.curve or {}
    return {
        **row,
        "curve_start": curve.get("start"),
        "curve_end": curve.get("end"),
        "curve_channels": curve.get("channels"),
        "curve_keys": None if layer.curve is None else list(curve),
    }


def write(table: pa.Table, path: Path) -> str:
    """Writes a table to a file, and returns the SHA-256 of the file."""
    leaves = [leaf for field in table.schema for leaf in _leaves(field.name, field.type)]
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=9,
        row_group_size=4096,
        use_dictionary=[leaf for leaf in leaves if leaf not in _SPLIT],
        use_byte_stream_split=list(_SPLIT),
    )
    return file_digest(path)


def _leaves(path: str, kind: pa.DataType) -> list[str]:
    """Returns the columns that Parquet makes of a type, by their paths."""
    if pa.types.is_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type)
    if pa.types.is_map(kind):
        parts = {"key": kind.key_type, "value": kind.item_type}
        return [leaf for name, part in parts.items() for leaf in _leaves(f"{path}.key_value.{name}", part)]
    if pa.types.is_struct(kind):
        return [leaf for part in kind for leaf in _leaves(f"{path}.{part.name}", part.type)]
    return [path]


def file_digest(path: Path) -> str:
    """Computes the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads columns of a packed file, or all.

    Raises:
        DamagedRecordError: When it is no such file.
    """
    try:
        with pq.ParquetFile(path) as file:
            # One group of rows at a time: what unpacking needs beside the result is then small.
            groups = [file.read_row_group(i, columns) for i in range(file.num_row_groups)]
            table = pa.concat_tables(groups) if groups else file.read(columns=columns)
    except (pa.ArrowException, OSError, ValueError, UnicodeDecodeError) as error:
        raise DamagedRecordError(f"it is no readable Parquet file ({str(error).splitlines()[0]})") from error
    wanted = [name for name, _ in _FIXED] if columns is None else [name.partition(".")[0] for name in columns]
    if lacking := [name for name in wanted if name not in table.column_names]:
        raise DamagedRecordError(f"it has no column {lacking[0]}")
    return table


def columns_for(detail: Detail, path: Path) -> list[str] | None:
    """Returns the columns to read for a table or for figures; None, which means all, for whole records.

    Raises:
        DamagedRecordError: When it is no such file.
    """
    if detail == "all":
        return None
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedRecordError(f"it is no readable Parquet file ({str(error).splitlines()[0]})") from error
    unneeded = {"history", "layers", "digest"} | ({"extra"} if detail == "summary" else set())
    fields = _SUMMARY if detail == "summary" else _FIGURES
    return [name for name in names if name not in unneeded] + [f"layers.list.element.{field}" for field in fields]


def records_of(table: pa.Table, check: bool) -> tuple[list[Record], list[str]]:
    """Makes records of rows.

    Args:
        table: A whole table, as `to_table` makes it.
        check: Whether to compare each row with its digest.

    Returns:
        The records, and the run ids of rows whose content is not what was written.
    """
    records, damaged = [], []
    for batch in table.to_batches(max_chunksize=256):
        for row in _rows(batch):
            try:
                record = _record(row)
                whole = not check or content_digest(record) == row["digest"]
            except (KeyError, TypeError, ValueError, OverflowError):
                whole = False
            if whole:
                records.append(record)
            else:
                damaged.append(str(row.get("run_id", "of an unreadable row")))
    return records, damaged


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Makes Python values of rows; an empty dict for a row that cannot be read."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist(maps_as_pydicts="strict")
        return rows
    except (pa.ArrowException, ValueError, KeyError):  # a UnicodeDecodeError is a ValueError
        return [{}] if batch.num_rows == 1 else [r for i in range(batch.num_rows) for r in _rows(batch.slice(i, 1))]


def ids_of(path: Path, whole: bool) -> frozenset[str]:
    """Reads the ids of the runs in a packed file that can be believed.

    Args:
        path: The file.
        whole: Whether it is known to be what was written; otherwise every row is checked.
    """
    try:
        if whole:
            return frozenset(read(path, ["run_id"])["run_id"].to_pylist())
        return frozenset(record.run_id for record in records_of(read(path), check=True)[0])
    except (DamagedRecordError, ValueError):
        return frozenset()


def _record(row: dict[str, Any]) -> Record:
    extra = json.loads(row["extra"])
    known = {k: v for k in FINGERPRINTS if (v := row[f"{k}_fingerprint"]) is not None}
    return Record(
        run_id=row["run_id"],
        config=json.loads(row["config"]),
        fingerprints={**known, **extra.pop("fingerprints", {})},
        diverged=row["diverged"],
        history=row["history"],
        layers=tuple(_layer(layer) for layer in row["layers"]),
        provenance=json.loads(row["provenance"]),
        metrics=json.loads(row["metrics"]),
        outcomes=_outcomes(row),
        protected=row["protected"],
        extra=extra,
    )


def outcomes_of(table: pa.Table) -> list[Outcomes]:
    """Makes the values on each test example of every row."""
    names = [
        name for name in ("test_correct", "test_examples", "test_losses", "outcomes") if name in table.column_names
    ]
    columns = [table[name].to_pylist(maps_as_pydicts="strict") for name in names]
    return [_outcomes(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def _outcomes(row: dict[str, Any]) -> Outcomes:
    found = {}
    if row["test_correct"] is not None:
        bits = np.frombuffer(row["test_correct"], np.uint8)
        found[SHORT["correct"]] = np.unpackbits(bits, count=row["test_examples"]).astype(bool)
    if row["test_losses"] is not None:
        found[SHORT["loss"]] = np.frombuffer(row["test_losses"], np.float16)
    return found | {name: np.array(values, np.float32) for name, values in (row.get("outcomes") or {}).items()}


def _layer(row: dict[str, Any]) -> Layer:
    fields: dict[str, Any] = {key: row[key] for key in Layer.__dataclass_fields__ if key != "curve"}
    if row["curve_keys"] is not None:
        fields["curve"] = {key: row.get(f"curve_{key}") for key in row["curve_keys"]}
    for key in ("final", "initial"):
        fields[key] = None if row[key] is None else np.array(row[key], np.float32)
    return Layer(**fields)


def layers_of(column: pa.ChunkedArray) -> list[tuple[Layer, ...]]:
    """Makes the layers of every row from the column ``layers``, of which `columns_for` has read some fields.

    Long series are views of one array.
    """
    found: list[tuple[Layer, ...]] = []
    for chunk in column.chunks:
        parts = chunk.flatten()  # one struct a layer
        names = [field.name for field in parts.type]
        plain = ("name", "distance_from_start", "distance_from_zero", "distance_from_relu")
        fields = {key: parts.field(key).to_pylist() for key in plain}
        fields |= {key: _views(parts.field(key)) for key in ("final", "inputs") if key in names}
        if "quantiles" in names:
            fields["quantiles"] = _tables(parts.field("quantiles"))
            starts = _views(parts.field("curve_start").field("mean"))
            channels = parts.field("curve_channels").to_pylist() if "curve_channels" in names else [None] * len(parts)
            ends = zip(*(_views(parts.field("curve_end").field(key)) for key in _LINES), strict=True)
            fields["curve"] = [
                None
                if end[0] is None
                else {"start": {"mean": start}, "end": dict(zip(_LINES, end, strict=True)), "channels": lines}
                for start, end, lines in zip(starts, ends, channels, strict=True)
            ]
        layers = [Layer(type="", **dict(zip(fields, row, strict=True))) for row in zip(*fields.values(), strict=True)]
        found += [tuple(layers[a:b]) for a, b in pairwise(_ends(chunk))]
    return found


def _ends(lists: pa.ListArray) -> list[int]:
    """Returns where each list begins in the flattened values, and where the last one ends."""
    lengths = pa.compute.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    ends: list[int] = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    return ends


def _views(lists: pa.ListArray) -> list[Any]:
    """Cuts the flattened values into one array a list; None where there is no list."""
    values = lists.flatten().to_numpy(zero_copy_only=False)
    valid = lists.is_valid().to_numpy(zero_copy_only=False)
    return [values[a:b] if ok else None for (a, b), ok in zip(pairwise(_ends(lists)), valid, strict=True)]


def _tables(lists: pa.ListArray) -> list[Any]:
    """Cuts lists of lists of one width into two-dimensional arrays."""
    inner = lists.flatten()
    values = inner.flatten().to_numpy(zero_copy_only=False)
    width = len(values) // max(len(inner), 1)
    rows = values.reshape(-1, width) if width else values.reshape(len(inner), 0)
    valid = lists.is_valid().to_numpy(zero_copy_only=False)
    return [rows[a:b] if ok else None for (a, b), ok in zip(pairwise(_ends(lists)), valid, strict=True)]
