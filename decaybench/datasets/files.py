"""Data sets from files: finds, reads or downloads them."""

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from decaybench.datasets.arrays import Array, Arrays
from decaybench.errors import DecaybenchError, UsageError
from decaybench.paths import user_cache
from decaybench.vision import torchvision

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# MD5 of the unpacked files, whatever packed them.
CHECKSUMS = {
    "Fashion-MNIST": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
    "MNIST": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
}


def data_dir() -> Path:
    """Returns the folder of data files: ``--data-dir``, $DECAYBENCH_DATA, or the user's cache."""
    return Path(os.environ.get("DECAYBENCH_DATA") or user_cache())


def read_idx(path: Path) -> Array:
    """Reads one idx file (LeCun's format), gzip or not: unsigned bytes of any number of dimensions.

    Raises:
        UsageError: When it is damaged or something else.
    """
    return _parsed(path, _unpacked(path))


def _unpacked(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read ({error}); replace the file.") from error


def _parsed(path: Path, raw: bytes) -> Array:
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


def _idx_data_set(name: str, files: list[Path]) -> Arrays:
    """Reads four idx files and checks that they are those of a data set.

    Raises:
        UsageError: When one is damaged, or that of another data set.
    """
    parts = []
    for path, checksum in zip(files, CHECKSUMS[name], strict=True):
        raw = _unpacked(path)
        parts.append(_parsed(path, raw))
        found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
        if found != checksum:
            raise UsageError(
                f"{path} is not the file of {name} (the MD5 of its unpacked content is {found}, not {checksum}); "
                "replace it, or name another folder with --data-dir."
            )
    train_x, train_y, test_x, test_y = parts
    return Arrays(train_x[:, None], train_y.astype(np.int64), test_x[:, None], test_y.astype(np.int64))


def fashion_mnist() -> Arrays:
    """Loads Fashion-MNIST, 60,000 + 10,000 images of 1×28×28 (Xiao et al. 2017, arXiv 1708.07747).

    A folder that was named with --data-dir is the only one that is looked into.
    """
    root = data_dir()
    folders = [root, root / "fashion-mnist", root / "FashionMNIST" / "raw"]
    folders += [] if os.environ.get("DECAYBENCH_DATA") else [DEBIAN]
    if files := _idx_folder(folders):
        return _idx_data_set("Fashion-MNIST", files)
    advice = (
        f"Looked for {', '.join(IDX_FILES)} (plain or .gz) in {', '.join(map(str, folders))}. "
        "On Debian or Ubuntu: apt-get install dataset-fashion-mnist, without --data-dir. "
        f"Elsewhere put these four files into {root}, or name their folder with --data-dir"
    )
    return _through_torchvision("FashionMNIST", _grey, advice)


def mnist() -> Arrays:
    """Loads MNIST, 60,000 + 10,000 images of 1×28×28."""
    if files := _idx_folder([data_dir() / "MNIST" / "raw"]):
        return _idx_data_set("MNIST", files)
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


def _expected(name: str) -> list[Path]:
    """Returns the files that torchvision looks for."""
    if name == "SVHN":
        return [data_dir() / f"{part}_32x32.mat" for part in ("train", "test")]
    folders = {"CIFAR10": "cifar-10", "CIFAR100": "cifar-100"}
    if name not in folders:
        return []
    stem = folders[name]
    unpacked = data_dir() / ("cifar-10-batches-py" if name == "CIFAR10" else "cifar-100-python")
    return [data_dir() / f"{stem}-python.tar.gz", unpacked]


def _through_torchvision(name: str, read: Callable[[Any], Parts], advice: str) -> Arrays:
    """Reads both parts from the data folder; downloads them where they are missing."""
    build = getattr(torchvision().datasets, name)
    parts = [{"split": "train"}, {"split": "test"}] if name == "SVHN" else [{"train": True}, {"train": False}]
    try:
        try:
            sets = [build(data_dir(), download=False, **part) for part in parts]
        except (RuntimeError, ValueError, EOFError, OSError) as error:
            there = [path.name for path in _expected(name) if path.exists()]
            if "not found" not in str(error) or there:
                raise DecaybenchError(
                    f"The data set {name} in {data_dir()} is damaged: {', '.join(there) or 'its files'} cannot be read "
                    f"or is not what torchvision expects ({type(error).__name__}: {error}); delete or replace it."
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
