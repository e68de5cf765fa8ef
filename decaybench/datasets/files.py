"""Data sets from files: finds, reads or downloads them."""

import gzip
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from decaybench.datasets.arrays import Array, Arrays
from decaybench.errors import DecaybenchError, UsageError
from decaybench.vision import torchvision

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def data_dir() -> Path:
    """Returns the folder of data files: ``--data-dir``, $DECAYBENCH_DATA, or the user's cache."""
    return Path(os.environ.get("DECAYBENCH_DATA") or Path.home() / ".cache" / "decaybench")


def read_idx(path: Path) -> Array:
    """Reads one idx file (LeCun's format), gzip or not: unsigned bytes of any number of dimensions.

    Raises:
        UsageError: When it is damaged or something else.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read ({error}); replace the file.") from error
    ndim = raw[3] if len(raw) > 3 and raw[:3] == b"\0\0\x08" else 0
    shape = tuple(np.frombuffer(raw, ">u4", count=ndim, offset=4)) if len(raw) >= 4 + 4 * ndim else ()
    if not ndim or len(raw) != 4 + 4 * ndim + int(np.prod(shape, dtype=np.int64)):
        raise UsageError(f"{path} is not a whole idx file of bytes; replace the file.")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def _idx_folder(folders: list[Path]) -> list[Path] | None:
    """Returns the four files of the first folder that has them all, plain or gzip."""
    for folder in folders:
        found = [p for name in IDX_FILES for p in (folder / name, folder / f"{name}.gz") if p.is_file()]
        if len({p.name.removesuffix(".gz") for p in found}) == len(IDX_FILES):
            return [next(p for p in found if p.name.startswith(name)) for name in IDX_FILES]
    return None


def fashion_mnist() -> Arrays:
    """Loads Fashion-MNIST, 60,000 + 10,000 images of 1×28×28 (Xiao et al. 2017, arXiv 1708.07747)."""
    root = data_dir()
    folders = [root, root / "fashion-mnist", root / "FashionMNIST" / "raw", DEBIAN]
    files = _idx_folder(folders)
    if files:
        train_x, train_y, test_x, test_y = (read_idx(p) for p in files)
        return Arrays(train_x[:, None], train_y.astype(np.int64), test_x[:, None], test_y.astype(np.int64))
    advice = (
        f"Looked for {', '.join(IDX_FILES)} (plain or .gz) in {', '.join(map(str, folders))}. "
        "On Debian or Ubuntu: apt-get install dataset-fashion-mnist. "
        f"Elsewhere put these four files into {root}, or name their folder with --data-dir"
    )
    return _through_torchvision("FashionMNIST", _grey, advice)


def mnist() -> Arrays:
    """Loads MNIST, 60,000 + 10,000 images of 1×28×28."""
    return _through_torchvision("MNIST", _grey, _advice("MNIST/raw", IDX_FILES))


def cifar10() -> Arrays:
    """Loads CIFAR-10, 50,000 + 10,000 images of 3×32×32."""
    return _through_torchvision("CIFAR10", _colour, _advice("", ["cifar-10-python.tar.gz"]))


def cifar100() -> Arrays:
    """Loads CIFAR-100, 50,000 + 10,000 images of 3×32×32."""
    return _through_torchvision("CIFAR100", _colour, _advice("", ["cifar-100-python.tar.gz"]))


def svhn() -> Arrays:
    """Loads SVHN, 73,257 + 26,032 images of 3×32×32."""
    return _through_torchvision("SVHN", _svhn, _advice("", ["train_32x32.mat", "test_32x32.mat"]))


def _advice(folder: str, files: Any) -> str:
    return f"Put {', '.join(files)} into {data_dir() / folder}, or name another folder with --data-dir"


Parts = tuple[Array, Array]


def _grey(data_set: Any) -> Parts:
    return data_set.data.numpy()[:, None], data_set.targets.numpy()


def _colour(data_set: Any) -> Parts:
    return np.ascontiguousarray(data_set.data.transpose(0, 3, 1, 2)), np.asarray(data_set.targets, np.int64)


def _svhn(data_set: Any) -> Parts:
    return data_set.data, data_set.labels.astype(np.int64)


def _through_torchvision(name: str, read: Callable[[Any], Parts], advice: str) -> Arrays:
    """Reads both parts from the data folder; downloads them where they are missing."""
    build = getattr(torchvision().datasets, name)
    parts = [{"split": "train"}, {"split": "test"}] if name == "SVHN" else [{"train": True}, {"train": False}]
    try:
        try:
            sets = [build(data_dir(), download=False, **part) for part in parts]
        except (RuntimeError, ValueError, EOFError, OSError) as error:
            if "not found" not in str(error):
                raise DecaybenchError(
                    f"The data set {name} in {data_dir()} cannot be read "
                    f"({type(error).__name__}: {error}); replace its files."
                ) from error
            sets = [build(data_dir(), download=True, **part) for part in parts]
    except DecaybenchError:
        raise
    except Exception as error:
        raise DecaybenchError(
            f"The data set {name} is not in {data_dir()} and could not be downloaded by torchvision "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}). {advice}."
        ) from error
    (train_x, train_y), (test_x, test_y) = (read(s) for s in sets)
    return Arrays(train_x, train_y, test_x, test_y)
