"""Data sets: the embedded ones, files in every format that is read, and what is said when they are missing."""

import gzip
import hashlib
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from decaybench.datasets import files
from decaybench.datasets.arrays import Arrays, checked, split
from decaybench.datasets.embedded import digits, synthetic
from decaybench.errors import DecaybenchError, UsageError
from decaybench.training.data import Batches, Data, gather, load, random_crop
from helpers import CPU, one

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (50, 28, 28), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (50, 3, 32, 32), dtype=np.uint8)
LABELS = (np.arange(50) % 10).astype(np.uint8)


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("DECAYBENCH_DATA", str(tmp_path))
    monkeypatch.setattr(files, "DEBIAN", tmp_path / "nothing here")
    return tmp_path


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_mnist(folder: Path, suffix: str = "") -> tuple[str, ...]:
    """Writes four small files, and returns the checksums of their content."""
    for name in files.IDX_FILES:
        write_idx(folder / f"{name}{suffix}", GREY if "images" in name else LABELS)
    contents = [(folder / f"{name}{suffix}").read_bytes() for name in files.IDX_FILES]
    return tuple(hashlib.md5(gzip.decompress(c) if suffix else c).hexdigest() for c in contents)


def check(arrays: Arrays, images: np.ndarray) -> None:
    for x, y in ((arrays.train_x, arrays.train_y), (arrays.test_x, arrays.test_y)):
        np.testing.assert_array_equal(x, images)
        np.testing.assert_array_equal(y, LABELS)
    checked(arrays, "it")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("below", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_fashion_mnist_is_found(data_dir: Path, monkeypatch: pytest.MonkeyPatch, below: str, suffix: str) -> None:
    monkeypatch.setitem(files.CHECKSUMS, "Fashion-MNIST", write_mnist(data_dir / below, suffix))
    check(files.fashion_mnist(), GREY[:, None])


def test_mnist_is_found_where_torchvision_puts_it(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(files.CHECKSUMS, "MNIST", write_mnist(data_dir / "MNIST" / "raw"))
    check(files.mnist(), GREY[:, None])


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_files_of_another_data_set_are_not_taken_for_it(data_dir: Path, name: str) -> None:
    """Four files with the right names and shapes, such as MNIST's for Fashion-MNIST."""
    write_mnist(data_dir / "MNIST" / "raw")
    write_mnist(data_dir)
    with pytest.raises(UsageError, match=r"train-images-idx3-ubyte is not the file of (Fashion-)?MNIST"):
        getattr(files, name)()


def test_the_real_fashion_mnist_is_what_it_is_known_to_be() -> None:
    arrays = files._idx_data_set("Fashion-MNIST", files._idx_folder([files.DEBIAN]) or [])
    assert (arrays.train_x.shape, arrays.test_x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))


def test_a_folder_that_was_named_is_used_or_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's copy is there, and is not taken silently."""
    monkeypatch.setenv("DECAYBENCH_DATA", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", lambda *a, **k: 1 / 0)
    (tmp_path / "somewhere" / "else").mkdir(parents=True)
    write_mnist(tmp_path / "somewhere" / "else")
    with pytest.raises(DecaybenchError, match="is not in"):
        files.fashion_mnist()


@pytest.mark.parametrize(("name", "file"), [("svhn", "train_32x32.mat"), ("cifar10", "cifar-10-python.tar.gz")])
def test_files_that_are_there_but_damaged_are_not_called_missing(data_dir: Path, name: str, file: str) -> None:
    (data_dir / file).write_text("<html>404 Not Found</html>")
    with pytest.raises(DecaybenchError, match=rf"is damaged: {file} cannot be read or is not what"):
        getattr(files, name)()


def test_a_damaged_file_of_mnist_is_named(data_dir: Path) -> None:
    write_mnist(data_dir / "MNIST" / "raw")
    victim = data_dir / "MNIST" / "raw" / "train-images-idx3-ubyte"
    victim.write_bytes(victim.read_bytes()[:-5])
    with pytest.raises(UsageError, match="train-images-idx3-ubyte is not a whole idx file"):
        files.mnist()


@pytest.mark.parametrize(("name", "key"), [("CIFAR10", b"labels"), ("CIFAR100", b"fine_labels")])
def test_cifar_through_torchvision(data_dir: Path, monkeypatch, name: str, key: bytes) -> None:
    build = getattr(torchvision.datasets, name)
    folder = data_dir / build.base_folder
    folder.mkdir()

    def write(file: str, content: dict) -> list[str]:
        raw = pickle.dumps(content)
        (folder / file).write_bytes(raw)
        return [file, hashlib.md5(raw).hexdigest()]

    batch = {"data": COLOUR.reshape(50, -1), key.decode(): LABELS.tolist()}
    monkeypatch.setattr(build, "train_list", [write("train", batch)])
    monkeypatch.setattr(build, "test_list", [write("test", batch)])
    key_name = build.meta["key"]
    file, md5 = write("meta", {key_name: [str(i) for i in range(10)]})
    monkeypatch.setattr(build, "meta", {"filename": file, "key": key_name, "md5": md5})
    check({"CIFAR10": files.cifar10, "CIFAR100": files.cifar100}[name](), COLOUR)


def test_svhn_through_torchvision(data_dir: Path, monkeypatch) -> None:
    from scipy.io import savemat

    lists = {}
    for part in ("train", "test"):
        path = data_dir / f"{part}_32x32.mat"
        labels = np.where(LABELS == 0, 10, LABELS)[:, None]  # the files call zero ten
        savemat(path, {"X": COLOUR.transpose(2, 3, 1, 0), "y": labels})
        lists[part] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", lists)
    check(files.svhn(), COLOUR)


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist", "cifar10", "cifar100", "svhn"])
def test_a_missing_data_set_says_what_was_looked_for_where_and_how_to_get_it(data_dir: Path, monkeypatch, name) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", no_network)
    with pytest.raises(DecaybenchError) as caught:
        getattr(files, name)()
    message = str(caught.value)
    assert str(data_dir) in message
    assert "--data-dir" in message
    assert "could not be downloaded" in message
    assert any(word in message for word in ("ubyte", ".tar.gz", ".mat"))
    assert ("apt-get install dataset-fashion-mnist" in message) == (name == "fashion_mnist")


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\0\0\x08\x01\0\0\0\x05abc", b"hello world, no idx at all"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_damaged_idx_file_is_named(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(UsageError, match="is not a whole idx file"):
        files.read_idx(path)


def test_a_cut_gzip_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    write_idx(path, GREY)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UsageError, match=r"x.gz cannot be read"):
        files.read_idx(path)


def test_a_torchvision_that_does_not_import_is_explained(data_dir: Path, monkeypatch) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(DecaybenchError, match=r"nms does not exist.*pip install --force-reinstall torch torchvision"):
        files.mnist()


def test_digits_are_all_there_once() -> None:
    arrays = digits()
    assert (arrays.train_x.shape, arrays.test_x.shape, arrays.classes) == ((1297, 1, 8, 8), (500, 1, 8, 8), 10)
    from sklearn.datasets import load_digits

    ours = np.concatenate([arrays.train_x, arrays.test_x]).reshape(-1, 64)
    np.testing.assert_array_equal(np.sort(ours, 0), np.sort(load_digits().data, 0))


def test_synthetic_is_the_same_every_time_and_can_be_learned() -> None:
    one_time, other_time = synthetic(noise=0.0), synthetic(noise=0.0)
    np.testing.assert_array_equal(one_time.train_x, other_time.train_x)
    for c in range(4):  # without noise all images of a class are one image
        assert np.ptp(one_time.train_x[one_time.train_y == c], axis=0).max() == 0


def test_the_validation_part_is_fixed_and_apart() -> None:
    arrays = synthetic()
    train, val = split(arrays, 0.25, None)
    assert len(val) == 120
    assert sorted([*train, *val]) == list(range(480))
    short, same_val = split(arrays, 0.25, 7)
    assert list(short) == list(train[:7])
    assert list(same_val) == list(val)
    with pytest.raises(UsageError, match="one part would be empty"):
        split(arrays, 0.0001, None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "returned NoneType"),
        ((1, 2), "must return"),
        ((np.zeros((2, 3)), np.zeros(2, int)) * 2, "train_x has shape (2, 3)"),
        ((np.zeros((2, 1, 3, 3)), np.zeros(2)) * 2, "whole numbers"),
        ((np.full((2, 1, 3, 3), np.nan), np.zeros(2, int)) * 2, "NaN"),
    ],
    ids=str,
)
def test_somebodys_own_data_set_is_checked(value: object, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        checked(value, "my:data")
    assert "my:data" in str(caught.value)
    assert message in str(caught.value)


def test_images_are_normalized_by_the_training_part() -> None:
    data = load(one(dataset="digits"), CPU)
    assert float(data.train.x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(data.train.x.std()) == pytest.approx(1, abs=1e-4)
    assert abs(float(data.test.x.mean())) > 1e-5  # not by its own


def batches_of(data: Data, **overrides: Any) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], Batches]:
    """The x (B, …) and y (B,) of an epoch, and what drew them."""
    config = one(**overrides)
    batches = Batches(data.train, config)
    drawn = batches.draw().map(lambda t: t[None])  # of one seed
    cuts = range(0, drawn.order.shape[1], config.batch_size)
    given = [gather(data.train, drawn.map(lambda t, a=a: t[..., a : a + config.batch_size])) for a in cuts]
    return [(x[0], y[0]) for x, y in given], batches


def test_batches_hold_every_example_once_and_each_seed_has_its_order() -> None:
    data = load(one(), CPU)
    orders = [Batches(data.train, one().model_copy(update={"seed": seed})).draw().order for seed in (0, 0, 1)]
    seen = [data.train.y[order] for order in orders]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    for order in seen:
        assert torch.equal(order.bincount(), data.train.y.bincount())
    pairs, batches = batches_of(data)
    assert len(pairs) == len(batches)
    pairs, _ = batches_of(data, batch_size=len(data.train.y) - 1)
    assert [len(y) for _, y in pairs] == [len(data.train.y) - 1]  # batch norm cannot take a batch of one


def test_random_crop_against_a_loop() -> None:
    x = torch.arange(2 * 3 * 5 * 4, dtype=torch.float32).reshape(2, 3, 5, 4)
    offsets = torch.tensor([[0, 3], [4, 2]])
    out = random_crop(x, 2, offsets)
    for b, c, i, j in np.ndindex(2, 3, 5, 4):
        row, column = i + int(offsets[0, b]) - 2, j + int(offsets[1, b]) - 2
        inside = 0 <= row < 5 and 0 <= column < 4
        assert out[b, c, i, j] == (x[b, c, row, column] if inside else 0)


def test_augmentation_has_a_stream_of_its_own() -> None:
    data = load(one(), CPU)
    plain, flipped, cropped = (batches_of(data, augment=a) for a in ("none", "flip", "crop-flip"))
    for (x, y), (xf, yf), (xc, yc) in zip(plain[0], flipped[0], cropped[0], strict=True):
        assert torch.equal(y, yf)
        assert torch.equal(y, yc)
        is_flipped = (xf == x.flip(-1)).flatten(1).all(1)
        assert (is_flipped | (xf == x).flatten(1).all(1)).all()
        assert 0 < int(is_flipped.sum()) < len(y)
        assert not torch.equal(xc, x)
    assert len({batches.fingerprint for _, batches in (plain, flipped, cropped)}) == 3
