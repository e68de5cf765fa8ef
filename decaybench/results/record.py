"""Records as plain JSON, with exact arrays as base64 of their compressed bytes."""

import base64
import json
import zlib
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from decaybench.registry.hashing import digest

# Where learned functions are drawn, in units of the activation's input; the bins of its inputs lie between.
INPUT_GRID = [round(-6 + 0.25 * i, 2) for i in range(49)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class _Name(BaseModel):
    name: str
    options: dict[str, Any]
    source: str | None


class _Config(BaseModel):
    model_config = ConfigDict(extra="allow")
    dataset: _Name
    network: _Name
    activation: _Name
    strategy: _Name
    optimizer: _Name
    schedule: _Name
    lr: float
    weight_decay: float
    epochs: int
    seed: int


class _Fingerprints(BaseModel):
    data: str
    initial: str
    batches: str


class _History(BaseModel):
    model_config = ConfigDict(extra="forbid")
    train_loss: list[float | None]
    train_accuracy: list[Fraction]
    validation_loss: list[float | None]
    validation_accuracy: list[Fraction]
    test_loss: list[float | None]
    test_accuracy: list[Fraction]


class _Array(BaseModel):
    dtype: Literal["<f4"]
    shape: list[int]
    zlib: str


class _Layer(BaseModel):
    name: str
    type: str
    initial: _Array
    final: _Array
    quantiles: list[Any]  # these three are long lists of numbers: `_plain` checks them ten times as fast as pydantic
    distance_from_start: float | None
    distance_from_zero: float | None
    distance_from_relu: float | None
    inputs: list[Any] | None
    curve: dict[str, dict[str, list[Any]] | None]


class _Record(BaseModel):
    """What the report relies on; a record may hold more."""

    run_id: str
    config: _Config
    fingerprints: _Fingerprints
    diverged: Annotated[int, Field(ge=1)] | None
    history: _History
    layers: list[_Layer]
    provenance: dict[str, Any]


class DamagedRecordError(Exception):
    """A file that is no whole record; the message says why."""


def encode(array: npt.NDArray[Any]) -> dict[str, Any]:
    """Writes an array as JSON values: type, shape, base64 of the compressed little-endian bytes."""
    little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    return {
        "dtype": little.dtype.str,
        "shape": list(little.shape),
        "zlib": base64.b64encode(zlib.compress(little.tobytes(), 9)).decode(),
    }


def decode(value: dict[str, Any]) -> npt.NDArray[Any]:
    """Reads an array that `encode` wrote."""
    try:
        raw = zlib.decompress(base64.b64decode(value["zlib"], validate=True))
    except zlib.error as error:
        raise ValueError(str(error)) from error
    return np.frombuffer(raw, np.dtype(value["dtype"])).reshape(value["shape"])


def _plain(series: Any) -> bool:
    """Tells whether this is a list of numbers and nulls."""
    return isinstance(series, list) and set(map(type, series)) <= {float, int, type(None)}


def dumps(record: dict[str, Any]) -> str:
    """Writes a record as text."""
    return json.dumps(record, allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"


def loads(text: str | bytes, run_id: str) -> dict[str, Any]:
    """Reads a record and checks that it is whole and is the one its file name says.

    Raises:
        DamagedRecordError: When it is not.
    """
    try:
        record: dict[str, Any] = from_json(text, allow_inf_nan=False)
        whole = _Record.model_validate(record)
        if digest(record["config"]) != record["run_id"]:
            raise DamagedRecordError("its configuration is not the one of its run")
        for layer in record["layers"]:
            drawn = [series for curve in layer["curve"].values() if curve for series in curve.values()]
            if not all(map(_plain, [*layer["quantiles"], *drawn, layer["inputs"] or []])):
                raise DamagedRecordError("a series holds something else than numbers")
            if decode(layer["initial"]).shape != decode(layer["final"]).shape:
                raise DamagedRecordError("an array has the wrong shape")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise DamagedRecordError(f"{where}: {first['msg']}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedRecordError(f"not valid JSON ({error})") from error
    if record["run_id"] != run_id:
        raise DamagedRecordError(f"it holds run {record['run_id']!r}")
    epochs = whole.diverged or whole.config.epochs
    if any(len(series) != epochs for series in record["history"].values()):
        raise DamagedRecordError(f"its history does not have {epochs} epochs")
    return record
