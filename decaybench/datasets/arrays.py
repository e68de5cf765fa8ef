"""Data sets as NumPy arrays: checks and the validation split."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from decaybench.errors import UsageError, unknown
from decaybench.registry import TASKS
from decaybench.registry.user_code import user_code

Array = npt.NDArray[Any]


MAX_CLASSES = 100_000  # of a data set, each an output of its networks


@dataclass(frozen=True)
class Arrays:
    """A data set as NumPy arrays.

    Attributes:
        train_x, test_x: Images (N, C, H, W), any numeric type; vectors as (N, F, 1, 1); tokens (N, T), whole numbers.
        train_y, test_y: Class of each, (N,), whole numbers from 0; a number of each, (N,), to be predicted; or the
            token behind each, (N, T).
        task: ``classification``, ``regression`` or ``next-token``.
    """

    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array
    task: str = "classification"

    @property
    def classes(self) -> int:
        return int(max(self.train_y.max(), self.test_y.max())) + 1


def checked(value: object, origin: str) -> Arrays:
    """Checks what a data set's function returned and makes `Arrays` of it.

    Args:
        value: `Arrays`, or (train_x, train_y, test_x, test_y) of anything numpy can read.
        origin: The function's name, for the error.

    Raises:
        UsageError: When shapes or values cannot be a data set for its task.
    """
    if not isinstance(value, Arrays):
        if not isinstance(value, tuple | list) or len(value) != 4:
            raise UsageError(
                f"The data set {origin} returned {type(value).__name__}; it must return "
                "decaybench.Arrays or (train_x, train_y, test_x, test_y)."
            )
        try:
            train_x, train_y, test_x, test_y = (np.asarray(part) for part in value)
            value = Arrays(train_x, train_y, test_x, test_y)
        except Exception as error:  # ragged lists, tensors that want a gradient …
            raise UsageError(f"The data set {origin}: numpy cannot read what it returned: {error}.") from error
    if value.task not in TASKS:
        raise unknown(f"task of the data set {origin}", value.task, TASKS)
    train_x, train_y, test_x, test_y = (
        _native(part, origin) for part in (value.train_x, value.train_y, value.test_x, value.test_y)
    )
    value = Arrays(train_x, train_y, test_x, test_y, value.task)
    for part in ("train", "test"):
        _check_part(value, part, origin)
    if value.train_x.shape[1:] != value.test_x.shape[1:]:
        shapes = f"{value.train_x.shape[1:]} and {value.test_x.shape[1:]}"
        raise UsageError(f"The data set {origin}: images for training and test differ in shape, {shapes}.")
    return value


def _check_part(value: Arrays, part: str, origin: str) -> None:
    """Checks the inputs and targets of one part."""
    x, y = getattr(value, f"{part}_x"), getattr(value, f"{part}_y")
    tokens = TASKS[value.task].tokens
    if x.ndim != (2 if tokens else 4) or y.shape != (x.shape if tokens else (len(x),)) or len(x) == 0:
        allowed = "(N, T) and (N, T)" if tokens else "(N, C, H, W) and (N,)"
        raise UsageError(
            f"The data set {origin}: {part}_x has shape {x.shape} and {part}_y {y.shape}; "
            f"allowed are {allowed} with N at least 1."
        )
    if x.dtype.kind not in ("iu" if tokens else "biuf"):
        what = "whole" if tokens else "real"
        raise UsageError(f"The data set {origin}: {part}_x holds {x.dtype}, not {what} numbers.")
    if 0 in x.shape:
        raise UsageError(f"The data set {origin}: {part}_x has the shape {x.shape}, which holds no numbers.")
    _check_finite(x, f"The data set {origin}: {part}_x")
    if value.task == "regression":
        if y.dtype.kind not in "biuf":
            raise UsageError(f"The data set {origin}: {part}_y holds {y.dtype}, not real numbers.")
        _check_finite(y, f"The data set {origin}: {part}_y")
    else:
        for name, numbers in ((f"{part}_y", y), *([(f"{part}_x", x)] if tokens else [])):
            _check_whole(numbers, f"The data set {origin}: {name}", value.task)


def _check_finite(numbers: Array, what: str) -> None:
    with np.errstate(over="ignore"):
        finite = np.isfinite(numbers.astype(np.float32)).all()
    if not finite:
        raise UsageError(f"{what} holds NaN or values that are infinite in float32.")


def _check_whole(numbers: Array, what: str, task: str) -> None:
    """Checks that numbers are classes or tokens."""
    if not np.issubdtype(numbers.dtype, np.integer) or numbers.min() < 0:
        advice = " (or give decaybench.Arrays with task='regression')" if numbers.dtype.kind == "f" else ""
        raise UsageError(f"{what} must hold whole numbers from 0{advice}.")
    if numbers.max() >= MAX_CLASSES:
        kind = "token" if task == "next-token" else "class"
        raise UsageError(f"{what} holds the {kind} {numbers.max()}; allowed are 0 … {MAX_CLASSES - 1}.")


def _native(part: Any, origin: str) -> Any:
    """Returns an array in the machine's byte order and in C order, as torch wants it."""
    if np.ma.is_masked(part):
        raise UsageError(f"The data set {origin} holds masked values; allowed are arrays in which every number counts.")
    with user_code(f"The data set {origin}, made into arrays,"):
        array = np.asarray(part)
    if array.dtype.kind in "biufc":
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return np.ascontiguousarray(array) if array.ndim else array


def resplit(arrays: Arrays, seed: int) -> Arrays:
    """Joins the training and the test part and divides them anew at random, into parts as large as before."""
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(arrays.train_x) + len(arrays.test_x))
    x, y = (
        np.concatenate([arrays.train_x, arrays.test_x])[order],
        np.concatenate([arrays.train_y, arrays.test_y])[order],
    )
    count = len(arrays.test_x)
    return Arrays(x[count:], y[count:], x[:count], y[:count], task=arrays.task)


def split(arrays: Arrays, validation: float, train_limit: int | None) -> tuple[Array, Array]:
    """Cuts a fixed validation part from the training part, the same examples for every seed.

    Returns:
        The indices of the training and of the validation examples in ``train_x``.

    Raises:
        UsageError: When either part would be empty.
    """
    n = len(arrays.train_x)
    held_out = round(n * validation)
    order = np.random.Generator(np.random.PCG64(0)).permutation(n)
    train, val = order[held_out:], order[:held_out]
    if not len(train) or not len(val):
        raise UsageError(f"validation = {validation}: of {n} training examples, one part would be empty.")
    return train[:train_limit], val
