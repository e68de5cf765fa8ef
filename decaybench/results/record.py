"""The record of a finished run: its type, its text, and the checks of what is read.

The text is JSON whose first field is the SHA-256 of everything behind it, so that no changed digit goes unnoticed.
Records of before version 2 have no digest: they are checked as far as types and shapes go, and are said to be
unprotected.
"""

import base64
import binascii
import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from decaybench.registry import TASKS
from decaybench.registry.hashing import canonical, config_digest
from decaybench.registry.metrics import PARTS, Direction, kind_of

SCHEMA = 2
# Where learned functions are drawn, in units of the activation's input; the bins of its inputs lie between.
INPUT_GRID = [round(-6 + 0.25 * i, 2) for i in range(49)]
QUANTILE_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
# What every record of before there were other tasks holds.
METRICS: Mapping[str, Direction] = TASKS["classification"].recorded
# What a run's row holds beside its metrics, so that no metric can be called so.
RESERVED = frozenset(
    {
        *("run_id", "cell_id", "config", "seed", "seeds", "diverged", "device", "device_name", "seconds", "provenance"),
        *("metrics", "protected", "layers", "outcomes", "history", "extra", "digest", "watched", "data_key", "pairs"),
        *("strategy", "weight_decay", "script", "source", "method"),
    }
)
LARGEST_LOSS = 65504.0  # of an example: the largest number of float16
MAX_TEXT = 1 << 28  # bytes of one record; a record of a network that is trained here has some ten thousand
HEADER = b'{"digest":"'
_HEX = 64  # digits of a digest
Numbers = Sequence[float | None] | npt.NDArray[np.float64]
Series = list[float | None]
Floats = npt.NDArray[np.float32]


class DamagedRecordError(Exception):
    """A record that cannot be believed; the message says why."""


class OtherVersionError(Exception):
    """A record that a newer version wrote, which is no damage."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """The learned activation of one layer of a run.

    Attributes:
        name: Name of the module.
        type: Name of its class.
        final: All its parameters after training, flat.
        initial: The same before training.
        quantiles: Quantiles at `QUANTILE_LEVELS`: before training, then after each epoch.
        distance_from_start, distance_from_zero, distance_from_relu: RMS distances of the learned functions, on the
            inputs that the layer really gets.
        inputs: Share of the inputs in each bin of `INPUT_GRID`.
        curve: ``start`` and ``end``: the functions at `INPUT_GRID`, each as ``mean``, ``low`` and ``high`` of channels;
            ``channels``, in some runs: those of some channels at the end.
    """

    name: str
    type: str
    final: Floats
    initial: Floats | None = None
    quantiles: Sequence[Numbers] | npt.NDArray[np.float64] | None = None
    distance_from_start: float | None = None
    distance_from_zero: float | None = None
    distance_from_relu: float | None = None
    inputs: Numbers | None = None
    curve: Mapping[str, Any] | None = None

    def content(self) -> tuple[Any, ...]:
        """Returns everything in it, arrays as bytes."""
        arrays = [None if a is None else (a.dtype.str, a.shape, a.tobytes()) for a in (self.final, self.initial)]
        rest = (self.name, self.type, self.quantiles, self.inputs, self.curve)
        return (*rest, self.distance_from_start, self.distance_from_zero, self.distance_from_relu, *arrays)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layer) and self.content() == other.content()

    def __hash__(self) -> int:
        return hash(self.name)


# The value of a metric on each test example, (examples,), by its name: bool where it is right or wrong; float16, at
# most `LARGEST_LOSS`, for losses of training on classes; float32 for what a script gives.
Outcomes = Mapping[str, npt.NDArray[Any]]
# How the two that every record of training on classes has are called in a record.
SHORT = {"correct": "test_accuracy", "loss": "test_loss"}


LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """A finished run.

    Attributes:
        run_id: Identity of the run, the hash of its configuration.
        config: The fields of its `RunConfig`, or those of a script of the user's.
        fingerprints: Hashes of ``data`` (after the split), ``initial`` tensors and ``batches``, and of the data's
            ``source`` before the split.
        diverged: The epoch in which the loss was no longer finite.
        history: A value an epoch for each metric.
        metrics: For each metric, whether ``higher`` or ``lower`` is better.
        layers: The learned activations.
        provenance: Device, versions, time: never part of the identity.
        outcomes: Values on each test example; empty where they were not recorded.
        protected: Whether a digest protects the record.
        extra: Fields that this version does not know.
    """

    run_id: str
    config: dict[str, Any]
    fingerprints: dict[str, str]
    diverged: int | None
    history: dict[str, Series]
    layers: tuple[Layer, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Direction] = field(default_factory=lambda: METRICS)
    outcomes: Outcomes = field(default_factory=dict)
    protected: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.config["seed"])

    @property
    def lacks_layers(self) -> bool:
        """Whether what became of each activation was left out when the record was packed."""
        return self.provenance.get("layers") == LEFT_OUT

    def without_layers(self) -> "Record":
        """Returns the record without what became of each activation; its provenance says so."""
        return replace(self, layers=(), provenance={**self.provenance, "layers": LEFT_OUT})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and content_digest(self) == content_digest(other)

    def __hash__(self) -> int:
        return hash(self.run_id)

    def final(self, metric: str) -> float:
        """Returns the last epoch's value of a metric; NaN where it is not finite."""
        value = self.history[metric][-1]
        return math.nan if value is None else float(value)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Name(_Strict):
    name: str
    options: dict[str, bool | int | float | str | None]
    source: str | None


class _Config(_Strict):
    """What the analysis relies on; the run id covers the rest."""

    dataset: _Name
    network: _Name
    activation: _Name
    strategy: _Name
    optimizer: _Name
    schedule: _Name
    lr: float
    weight_decay: float
    epochs: Count
    batch_size: Count
    seed: Count
    training_version: int


class _ScriptConfig(_Strict):
    script: str
    source: str
    strategy: _Name
    weight_decay: float
    args: dict[str, bool | int | float | str | None]
    seed: Count


Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class _Fingerprints(_Strict):
    data: Hash | None = None
    initial: Hash | None = None
    batches: Hash | None = None
    source: Hash | None = None


class _Array(_Strict):
    dtype: str
    shape: list[int]
    zlib: str


class _Layer(_Strict):
    name: str
    type: str
    final: _Array
    initial: _Array | None = None
    distance_from_start: float | None
    distance_from_zero: float | None
    distance_from_relu: float | None


class _Means(_Strict):
    device: str | None = None
    device_name: str | None = None
    backends: dict[str, str] = {}
    versions: dict[str, str] = {}


class _Provenance(_Means):
    seconds: Annotated[float, Field(ge=0, le=1e12)] | None = None
    resumed_from: _Means = _Means()
    examples: dict[str, Annotated[int, Field(ge=1)]] | None = None


class _Record(_Strict):
    run_id: str
    config: _Config | _ScriptConfig
    fingerprints: _Fingerprints
    diverged: Annotated[int, Field(ge=1)] | None
    layers: list[_Layer]
    provenance: _Provenance
    metrics: dict[str, Direction] | None = None
    outcomes: dict[str, _Array] | None = None


def content_digest(record: Record) -> str:
    """Hashes everything that a record holds, whatever the form it is written in."""
    fields = (record.run_id, record.config, record.fingerprints, record.diverged, record.history)
    rest = (record.provenance, dict(record.metrics), record.extra, record.protected)
    hasher = hashlib.sha256(canonical([*fields, *rest]).encode())
    for layer in record.layers:
        hasher.update(repr(layer.content()).encode())
    if record.outcomes:
        for name in SHORT.values():
            array = record.outcomes.get(name)
            hasher.update(b"-" if array is None else f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
        for name, array in sorted(record.outcomes.items()):
            if name not in SHORT.values():
                hasher.update(f"{name}:{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return hasher.hexdigest()


def encode(array: npt.NDArray[Any]) -> dict[str, Any]:
    """Writes an array as JSON values: type, shape, base64 of the compressed little-endian bytes."""
    little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    return {
        "dtype": little.dtype.str,
        "shape": list(little.shape),
        "zlib": base64.b64encode(zlib.compress(little.tobytes(), 9)).decode(),
    }


def decode(value: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Reads an array that `encode` wrote.

    Raises:
        ValueError: When the content is not what type and shape say.
    """
    dtype, shape = np.dtype(value["dtype"]), tuple(value["shape"])
    if dtype.kind not in "fbu" or any(n < 0 for n in shape):
        raise ValueError(f"no array is of type {value['dtype']} and shape {value['shape']}")
    size = dtype.itemsize * math.prod(shape)
    if size > MAX_TEXT:
        raise ValueError(f"an array of {size} bytes is too large")
    try:
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(base64.b64decode(value["zlib"], validate=True), size + 1)
    except (zlib.error, binascii.Error) as error:
        raise ValueError(str(error)) from error
    if len(raw) != size or not unpacker.eof:
        raise ValueError("an array has the wrong size")
    return np.frombuffer(raw, dtype).reshape(shape)


def dumps(record: Record) -> bytes:
    """Writes a record as text, with its digest in front."""
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "run_id": record.run_id,
        "config": record.config,
        "fingerprints": record.fingerprints,
        "diverged": record.diverged,
        "history": record.history,
        "metrics": dict(record.metrics),
        "layers": [_layer_body(layer) for layer in record.layers],
        "provenance": record.provenance,
    }
    if record.outcomes:
        short = {name: key for key, name in SHORT.items()}
        body["outcomes"] = {short.get(name, name): _outcome_body(a) for name, a in record.outcomes.items()}
    if not record.protected:  # a digest of today says nothing of what was before it
        body["protected"] = False
    text = json.dumps({**body, **record.extra}, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    return HEADER + hashlib.sha256(text).hexdigest().encode() + b'",' + text[1:] + b"\n"


def _outcome_body(values: npt.NDArray[Any]) -> dict[str, Any]:
    return {**encode(np.packbits(values)), "count": len(values)} if values.dtype == bool else encode(values)


def _layer_body(layer: Layer) -> dict[str, Any]:
    body: dict[str, Any] = {"name": layer.name, "type": layer.type, "final": encode(layer.final)}
    if layer.initial is not None:
        body["initial"] = encode(layer.initial)
    for key in ("distance_from_start", "distance_from_zero", "distance_from_relu"):
        body[key] = getattr(layer, key)
    body |= {k: v for k in ("quantiles", "inputs", "curve") if (v := getattr(layer, k)) is not None}
    return body


def loads(text: bytes, run_id: str) -> Record:
    """Reads a record and checks that it can be believed and is the one its file name says.

    Raises:
        DamagedRecordError: When it cannot.
        OtherVersionError: When a newer version wrote it.
    """
    protected = _is_protected(text)
    try:
        body: dict[str, Any] = from_json(text, allow_inf_nan=False)
        schema = body.get("schema", 1) if isinstance(body, dict) else 1
        if isinstance(schema, int) and schema > SCHEMA:
            raise OtherVersionError(f"a newer decaybench wrote it (format {schema}, this one reads {SCHEMA})")
        if schema != 1 and not protected:
            raise DamagedRecordError("its digest is missing")
        _Record.model_validate(body)
        record = _record(body, protected)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise DamagedRecordError(f"{where}: {first['msg']}") from error
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise DamagedRecordError(f"not a valid record ({type(error).__name__}: {error})") from error
    if record.run_id != run_id:
        raise DamagedRecordError(f"it holds run {record.run_id!r}")
    return record


def _is_protected(text: bytes) -> bool:
    """Checks the digest of a text; False where it has none.

    Raises:
        DamagedRecordError: When the digest is that of another text.
    """
    if not text.startswith(HEADER):
        return False
    start, stop = len(HEADER), len(HEADER) + _HEX
    body = b"{" + text[stop + 2 :].removesuffix(b"\n")
    if text[stop : stop + 2] != b'",' or hashlib.sha256(body).hexdigest().encode() != text[start:stop]:
        raise DamagedRecordError("its digest is that of another text: something in it was changed")
    return True


def _check_names(config: Mapping[str, Any]) -> None:
    """Checks that every table in a configuration is the name of something, with its options."""
    for key, value in config.items():
        if key != "args" and isinstance(value, dict) and not value.keys() >= {"name", "options", "source"}:
            raise DamagedRecordError(f"config.{key} is no name with options")


KNOWN = {"digest", "schema", *Record.__dataclass_fields__} - {"extra"}


def _record(body: dict[str, Any], protected: bool) -> Record:
    config, history = body["config"], body["history"]
    _check_names(config)
    if config_digest(config) != body["run_id"]:
        raise DamagedRecordError("its configuration is not the one of its run")
    check_history(config, history, body["diverged"])
    if "script" not in config and not body["fingerprints"].keys() >= {"data", "initial", "batches"}:
        raise DamagedRecordError("its fingerprints are missing")
    if config.get("split") == "seed" and not body["provenance"].get("examples", {}).keys() >= {"available", "test"}:
        raise DamagedRecordError("the sizes of its own split are missing")
    metrics = body.get("metrics") or METRICS
    if missing := metrics.keys() - history.keys():
        raise DamagedRecordError(f"its history lacks {min(missing)}")
    epochs = None if "script" in config else len(next(iter(history.values())))
    return Record(
        run_id=body["run_id"],
        config=config,
        fingerprints=body["fingerprints"],
        diverged=body["diverged"],
        history=history,
        layers=tuple(_layer(layer, epochs) for layer in body["layers"]),
        provenance=body["provenance"],
        metrics=metrics,
        outcomes=_outcomes(body.get("outcomes"), "script" in config),
        protected=protected and body.get("protected") is not False,
        extra={key: value for key, value in body.items() if key not in KNOWN},
    )


def check_history(config: Mapping[str, Any], history: Mapping[str, Any], diverged: int | None) -> None:
    """Checks the series of a record: numbers, as many as epochs, shares between 0 and 1.

    Raises:
        DamagedRecordError: When they are something else.
    """
    if not isinstance(history, dict) or not history or not all(map(is_series, history.values())):
        raise DamagedRecordError("its history holds something else than numbers")
    if "script" in config:
        return
    if missing := {f"{part}_loss" for part in PARTS} - history.keys():
        raise DamagedRecordError(f"its history lacks {min(missing)}")
    epochs = diverged or config["epochs"]
    if any(len(series) != epochs for series in history.values()):
        raise DamagedRecordError(f"its history does not have {epochs} epochs")
    for name, series in history.items():
        kind = kind_of(name)
        is_share = kind is not None and kind.scale == "percent"
        if is_share and not all(x is not None and 0 <= x <= 1 for x in series):
            raise DamagedRecordError(f"{name} is no fraction")


def is_series(series: Any) -> bool:
    """Tells whether this is a list of numbers that a float can hold, and nulls."""
    if not isinstance(series, list) or not (types := set(map(type, series))) <= {float, int, type(None)}:
        return False
    return int not in types or all(abs(x) < 1 << 63 for x in series if type(x) is int)


def _layer(body: dict[str, Any], epochs: int | None) -> Layer:
    final = _floats(body["final"])
    initial = _floats(body["initial"]) if body.get("initial") is not None else None
    if initial is not None and initial.shape != final.shape:
        raise DamagedRecordError("an array has the wrong shape")
    quantiles, inputs, curve = (body.get(key) for key in ("quantiles", "inputs", "curve"))
    height = len(quantiles or ()) if epochs is None else epochs + 1
    if quantiles is not None and not _is_table(quantiles, height, len(QUANTILE_LEVELS)):
        raise DamagedRecordError("the quantiles of a layer have the wrong shape")
    if inputs is not None and not _is_table([inputs], 1, len(INPUT_GRID) - 1):
        raise DamagedRecordError("the inputs of a layer have the wrong shape")
    _check_curve(curve)
    return Layer(
        body["name"],
        body["type"],
        final,
        initial,
        quantiles,
        body["distance_from_start"],
        body["distance_from_zero"],
        body["distance_from_relu"],
        inputs,
        curve,
    )


def _check_curve(curve: Any) -> None:
    if curve is None:
        return
    if not isinstance(curve, dict) or not curve.keys() <= {"start", "end", "channels"}:
        raise DamagedRecordError("the drawn functions of a layer are something else")
    channels = curve.get("channels", [])
    if not isinstance(channels, list) or not _is_table(channels, len(channels), len(INPUT_GRID)):
        raise DamagedRecordError("the drawn channels of a layer have the wrong shape")
    for drawn in (curve[key] for key in ("start", "end") if key in curve):
        lines = [drawn[key] for key in ("mean", "low", "high")] if drawn is not None else []
        if not _is_table(lines, len(lines), len(INPUT_GRID)):
            raise DamagedRecordError("a drawn function has the wrong shape")


def _is_table(rows: Any, height: int, width: int) -> bool:
    if not isinstance(rows, list) or len(rows) != height:
        return False
    return all(is_series(row) and len(row) == width for row in rows)


def _floats(value: Mapping[str, Any]) -> Floats:
    array = decode(value)
    if array.dtype.str != "<f4" or array.ndim != 1:
        raise DamagedRecordError("the parameters of a layer are no flat float32 array")
    return array


def _outcomes(body: Mapping[str, Any] | None, any_length: bool) -> Outcomes:
    found = {SHORT.get(key, key): _outcome(value) for key, value in (body or {}).items() if value is not None}
    correct, loss = (found.get(name) for name in SHORT.values())
    if not any_length and correct is not None and loss is not None and len(correct) != len(loss):
        raise DamagedRecordError("the losses of test examples have the wrong shape")
    return found


def _outcome(value: Mapping[str, Any]) -> npt.NDArray[Any]:
    array, count = decode(value), value.get("count")
    if array.dtype.str in ("<f2", "<f4") and array.ndim == 1 and count is None:
        return array
    if array.dtype != np.uint8 or type(count) is not int or not 8 * array.size - 8 < count <= 8 * array.size:
        raise DamagedRecordError("the outcomes of test examples have the wrong shape")
    return np.unpackbits(array, count=count).astype(bool)
