"""Data sets as NumPy arrays: checks and the validation split."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from decaybench.errors import UsageError
from decaybench.registry.user_code import user_code

Array = npt.NDArray[Any]


MAX_CLASSES = 100_000  # of a data set, each an output of its networks


@dataclass(frozen=True)
class Arrays:
    """A classification data set as NumPy arrays.

    Attributes:
        train_x, test_x: Images (N, C, H, W), any numeric type.
        train_y, test_y: Class of each, (N,), whole numbers from 0.
    """

    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array

    @property
    def classes(self) -> int:
        return int(max(self.train_y.max(), self.test_y.max())) + 1


def checked(value: object, origin: str) -> Arrays:
    """Checks what a data set's function returned and makes `Arrays` of it.

    Args:
        value: `Arrays`, or (train_x, train_y, test_x, test_y) of anything numpy can read.
        origin: The function's name, for the error.

    Raises:
        UsageError: When shapes or values cannot be a classification data set.
    """
    if not isinstance(value, Arrays):
        if not isinstance(value, tuple | list) or len(value) != 4:
            raise UsageError(
                f"The data set {origin} returned {type(value).__name__}; it must return "
                "decaybench.Arrays or (train_x, train_y, test_x, test_y)."
            )
        try:
            value = Arrays(*(np.asarray(part) for part in value))
        except Exception as error:  # ragged lists, tensors that want a gradient …
            raise UsageError(f"The data set {origin}: numpy cannot read what it returned: {error}.") from error
    value = Arrays(*(_native(part, origin) for part in (value.train_x, value.train_y, value.test_x, value.test_y)))
    for part in ("train", "test"):
        x, y = getattr(value, f"{part}_x"), getattr(value, f"{part}_y")
        if x.ndim != 4 or y.shape != (len(x),) or len(x) == 0:
            raise UsageError(
                f"The data set {origin}: {part}_x has shape {x.shape} and {part}_y {y.shape}; "
                "allowed are (N, C, H, W) and (N,) with N at least 1."
            )
        if x.dtype.kind not in "biuf":
            raise UsageError(f"The data set {origin}: {part}_x holds {x.dtype}, not real numbers.")
        if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
            raise UsageError(f"The data set {origin}: {part}_y must hold whole numbers from 0.")
        if 0 in x.shape:
            raise UsageError(f"The data set {origin}: {part}_x has the shape {x.shape}, which holds no numbers.")
        with np.errstate(over="ignore"):
            finite = np.isfinite(x.astype(np.float32)).all()
        if not finite:
            raise UsageError(f"The data set {origin}: {part}_x holds NaN or values that are infinite in float32.")
        if y.max() >= MAX_CLASSES:
            raise UsageError(
                f"The data set {origin}: {part}_y holds the class {y.max()}; allowed are 0 … {MAX_CLASSES - 1}."
            )
    if value.train_x.shape[1:] != value.test_x.shape[1:]:
        shapes = f"{value.train_x.shape[1:]} and {value.test_x.shape[1:]}"
        raise UsageError(f"The data set {origin}: images for training and test differ in shape, {shapes}.")
    return value


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
    return Arrays(x[count:], y[count:], x[:count], y[:count])


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
