"""The scripts a user would write, run after run, each as a process of its own.

``tutorial`` is what tutorials show: torchvision's data set, a `DataLoader` with workers, stock modules. ``strong`` is
what somebody with experience writes: tensors in memory, batches by an index, one thread. A process per core is for the
caller.
Both train on the first 54,000 images and test on the other 16,000 after every epoch, as a study does.
"""

import gzip
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Subset

from decaybench.activations import KAF
from decaybench.activations.kaf.basis_kernels import kernel
from decaybench.activations.kaf.module import plain
from decaybench.datasets.files import DEBIAN, IDX_FILES, data_dir
from decaybench.errors import UsageError
from decaybench.networks.small import forum, mlp
from decaybench.vision import torchvision

NETWORKS: dict[str, Callable[..., nn.Module]] = {"forum": forum, "mlp": mlp}
TRAINING_IMAGES = 54_000  # the others are validation's and the test's
BATCH, RATE, MOMENTUM, DECAY = 128, 0.05, 0.9, 5e-4
Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]


class PlainKAF(nn.Module):
    """A KAF by the authors' formula, with its (…, D) tensor."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        start = KAF(channels)
        self.alpha = nn.Parameter(start.alpha.detach().clone())  # (C, D)
        self.register_buffer("d", torch.tensor(start.atoms))
        self._kernel = kernel("gaussian", start.precision).value

    def forward(self, s: Tensor) -> Tensor:
        return plain(s, self.alpha, self.get_buffer("d"), self._kernel)


ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {"prelu": nn.PReLU, "kaf": PlainKAF}


def run(style: str, network: str, activation: str, epochs: int, folder: str, device: str = "cpu") -> dict[str, float]:
    """Trains and tests one network.

    Args:
        style: ``tutorial`` or ``strong``.
        network: ``forum`` or ``mlp``.
        activation: ``prelu`` or ``kaf``.
        epochs: Number of epochs; with 0 it only starts up.
        folder: Where Fashion-MNIST is, laid out for torchvision.
        device: Where to train.

    Returns:
        The seconds of all epochs, and the last accuracy on the images that were not trained on.
    """
    where = torch.device(device)
    train, rest = (_loaders if style == "tutorial" else _tensors)(Path(folder), where)
    torch.manual_seed(0)
    model = NETWORKS[network]((1, 28, 28), 10, ACTIVATIONS[activation]).to(where)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    start, accuracy = time.perf_counter(), 0.0
    for _ in range(epochs):
        model.train()
        for x, y in train():
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(x.to(where)), y.to(where)))
            optimizer.step()
        accuracy = _test(model, rest(), where)
    return {"seconds": time.perf_counter() - start, "accuracy": accuracy}


def _loaders(folder: Path, device: torch.device) -> tuple[Batches, Batches]:
    transforms = torchvision().transforms
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.2860,), (0.3530,))])
    parts = [torchvision().datasets.FashionMNIST(folder, train=train, transform=steps) for train in (True, False)]
    train = Subset(parts[0], range(TRAINING_IMAGES))
    rest: Any = ConcatDataset([Subset(parts[0], range(TRAINING_IMAGES, len(parts[0]))), parts[1]])
    one: Any = DataLoader(train, BATCH, shuffle=True, num_workers=2)
    other: Any = DataLoader(rest, BATCH, num_workers=2)
    return lambda: iter(one), lambda: iter(other)


def _tensors(folder: Path, device: torch.device) -> tuple[Batches, Batches]:
    torch.set_num_threads(1)
    parts = [torchvision().datasets.FashionMNIST(folder, train=train) for train in (True, False)]
    x = torch.cat([part.data for part in parts])[:, None].float().div(255).sub(0.2860).div(0.3530).to(device)
    y = torch.cat([part.targets for part in parts]).to(device)

    def train() -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.split(torch.randperm(TRAINING_IMAGES, device=device), BATCH):
            yield x[index], y[index]

    held_out = [torch.split(part[TRAINING_IMAGES:], 512) for part in (x, y)]
    return train, lambda: iter(zip(*held_out, strict=True))


@torch.no_grad()
def _test(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], device: torch.device) -> float:
    model.eval()
    pairs = [(model(x.to(device)).argmax(1) == y.to(device)) for x, y in batches]
    return float(torch.cat(pairs).float().mean())


def prepare_fashion_mnist(folder: Path) -> Path:
    """Lays out Fashion-MNIST's files as torchvision wants them.

    Raises:
        UsageError: When they are not on this machine.
    """
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in IDX_FILES:
        places = [p / f"{name}.gz" for p in (DEBIAN, data_dir(), data_dir() / "FashionMNIST" / "raw")]
        found = next((p for p in places if p.is_file()), None)
        if found is None:
            raise UsageError("decaybench bench study needs Fashion-MNIST: apt-get install dataset-fashion-mnist.")
        (raw / name).write_bytes(gzip.decompress(found.read_bytes()))
    return folder


if __name__ == "__main__":
    print(json.dumps(run(**json.loads(sys.argv[1]))))
