"""Data sets of vectors and sequences, from libraries and files that are there."""

import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from decaybench.datasets.arrays import Array, Arrays
from decaybench.datasets.files import data_dir
from decaybench.errors import DecaybenchError, UsageError

R_PACKAGE = Path("/usr/lib/R/site-library/mlbench/data")
LETTERS = "LetterRecognition.rda"
LETTER_TRAINED = 16_000  # the first ones, as Frey and Slate (1991) divided them
# Parts of the standard library that are no modules of its own, or made by machines.
ASIDE = re.compile(r"(^|/)(test|tests|idlelib|lib2to3|site-packages|dist-packages|__pycache__|_sysconfigdata.*)(/|$)")


def mnist1d() -> Arrays:
    """Makes MNIST-1D, 4,000 + 1,000 signals of 40 numbers (Greydanus and Kobak 2020, arXiv 2011.14439).

    Raises:
        UsageError: Without the authors' package.
    """
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise UsageError("The data set mnist1d needs the authors' package: pip install 'decaybench[data]'.") from error
    made = make_dataset(get_dataset_args())
    parts = ((made["x"], made["y"]), (made["x_test"], made["y_test"]))
    (train_x, train_y), (test_x, test_y) = ((x[:, None, None].astype(np.float32), y.astype(np.int64)) for x, y in parts)
    return Arrays(train_x, train_y, test_x, test_y)


def letter() -> Arrays:
    """Loads UCI's Letter, 16,000 + 4,000 × 16 numbers, 26 classes, from a file of the R package mlbench.

    Raises:
        UsageError: When the file is not there, or rdata is not.
    """
    folders = [data_dir(), R_PACKAGE]
    path = next((folder / LETTERS for folder in folders if (folder / LETTERS).is_file()), None)
    if path is None:
        raise UsageError(
            f"The data set letter: {LETTERS} is in none of {', '.join(map(str, folders))}. On Debian or Ubuntu: "
            "apt-get install r-cran-mlbench; or unpack that package and name the folder with --data-dir."
        )
    try:
        import rdata
    except ImportError as error:
        raise UsageError("The data set letter needs rdata: pip install 'decaybench[data]'.") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it says no encoding, and holds ASCII
            table: Any = rdata.read_rda(path)["LetterRecognition"]
        classes = table.pop("lettr").cat.codes.to_numpy().astype(np.int64)
        x = table.to_numpy().astype(np.float32)[:, :, None, None]  # (20000, 16, 1, 1)
    except Exception as error:
        raise DecaybenchError(f"{path} is not the file of mlbench ({type(error).__name__}: {error}).") from error
    if x.shape != (20_000, 16, 1, 1) or len(np.unique(classes)) != 26:
        raise DecaybenchError(f"{path} is not the file of mlbench: it holds {x.shape[0]} lines.")
    cut = LETTER_TRAINED
    return Arrays(x[:cut], classes[:cut], x[cut:], classes[cut:])


def python_source(context: int = 64, windows: int = 8000) -> Arrays:
    """Reads windows of the bytes of the standard library's own modules; the next byte is what is to be predicted.

    The test part has one window of each fifth module, so that its examples are independent; the training part is drawn
    from the others. What it holds depends on the version of Python, and its fingerprint says so.

    Args:
        context: Bytes of a window.
        windows: Windows of the training part.
    """
    texts = list(modules(context))
    tested, trained = texts[::5], [text for i, text in enumerate(texts) if i % 5]
    rng = np.random.Generator(np.random.PCG64(4))
    joined = np.concatenate(trained)
    starts = rng.integers(0, len(joined) - context - 1, windows)
    test = [text[start : start + context + 1] for text in tested for start in [int(rng.integers(len(text) - context))]]
    train = np.stack([joined[start : start + context + 1] for start in starts])  # (windows, T + 1)
    return Arrays(*_shifted(train), *_shifted(np.stack(test)))


def modules(context: int) -> Iterator[Array]:
    """Yields the bytes of each module of the standard library, in the order of their names.

    Args:
        context: Modules of at most four times as many bytes are left out.
    """
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        name = path.relative_to(root).as_posix()
        if not ASIDE.search(name.removesuffix(".py")):
            text = np.frombuffer(path.read_bytes(), np.uint8)
            if len(text) > 4 * context:
                yield text


def _shifted(windows: Array) -> tuple[Array, Array]:
    """Divides windows (N, T + 1) into inputs (N, T) and the bytes behind each of them (N, T)."""
    whole = windows.astype(np.int64)
    return whole[:, :-1], whole[:, 1:]
