"""The script a user would write: torchvision's data set, a `DataLoader` with workers, stock modules, run after run."""

import gzip
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from decaybench.activations import KAF
from decaybench.activations.kaf.basis_kernels import kernel
from decaybench.activations.kaf.module import plain
from decaybench.datasets.files import DEBIAN, IDX_FILES, data_dir
from decaybench.errors import UsageError
from decaybench.networks.small import forum, mlp
from decaybench.vision import torchvision

CPU = torch.device("cpu")
NETWORKS = {"forum": forum, "mlp": mlp}


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


@dataclass(frozen=True)
class Script:
    """A plain training script and its settings.

    Attributes:
        network: ``forum`` or ``mlp``.
        activation: ``prelu`` or ``kaf``.
        batch_size, lr, decay: Settings of SGD with momentum 0.9.
        workers: Number of worker processes of the loader.
    """

    network: str
    activation: str
    batch_size: int = 128
    lr: float = 0.05
    decay: float = 5e-4
    workers: int = 2

    def run(self, folder: Path, epochs: int, device: torch.device = CPU) -> tuple[float, float]:
        """Trains, tests after each epoch, and returns the seconds it took and the last test accuracy."""
        transforms = torchvision().transforms
        steps = [transforms.ToTensor(), transforms.Normalize((0.2860,), (0.3530,))]
        parts = [
            torchvision().datasets.FashionMNIST(folder, train=train, transform=transforms.Compose(steps))
            for train in (True, False)
        ]
        torch.manual_seed(0)
        activation = nn.PReLU if self.activation == "prelu" else PlainKAF
        model = NETWORKS[self.network]((1, 28, 28), 10, activation).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9, weight_decay=self.decay)
        start, accuracy = time.perf_counter(), 0.0
        train: Any = DataLoader(parts[0], self.batch_size, shuffle=True, num_workers=self.workers)
        test: Any = DataLoader(parts[1], self.batch_size, num_workers=self.workers)
        for _ in range(epochs):
            model.train()
            for x, y in train:
                optimizer.zero_grad()
                torch.autograd.backward(F.cross_entropy(model(x.to(device)), y.to(device)))
                optimizer.step()
            accuracy = _test(model, test, device)
        return time.perf_counter() - start, accuracy


@torch.no_grad()
def _test(model: nn.Module, loader: Any, device: torch.device) -> float:
    model.eval()
    correct = sum(int((model(x.to(device)).argmax(1) == y.to(device)).sum()) for x, y in loader)
    return correct / len(loader.dataset)


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
