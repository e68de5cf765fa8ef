"""The data set of a run as tensors on its device, and its batches."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from decaybench.datasets.arrays import Array, checked, resplit, split
from decaybench.errors import UsageError
from decaybench.registry import DATASETS, TASKS
from decaybench.registry.build import construct
from decaybench.study.config import RunConfig
from decaybench.training.seeding import generator, seeded, stream_seed
from decaybench.training.tasks import outputs


@dataclass(frozen=True)
class Part:
    """Inputs x (N, C, H, W) in float32 and targets y (N,); or tokens (N, T) and those behind them (N, T)."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Data:
    """Three parts on one device; images, and numbers to predict, have mean 0 and variance 1 in the training part.

    Attributes:
        outputs: Number of outputs that a network needs.
        fingerprint: A hash of the inputs and targets of each part, before any arithmetic.
        source: A hash of the inputs and targets as they came, before they were split.
        available: Number of training examples before a limit on them.
        task: What they are for.
    """

    train: Part
    validation: Part
    test: Part
    outputs: int
    fingerprint: str
    source: str
    available: int
    task: str = "classification"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input: C, H, W of an image, T of a sequence."""
        return tuple(self.train.x.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """What networks compute in."""
        return self.train.x.dtype if self.train.x.is_floating_point() else torch.get_default_dtype()


def load(config: RunConfig, device: torch.device) -> Data:
    """Loads, splits and normalizes the data set of a run.

    Raises:
        DecaybenchError: When it is missing, damaged, or not a data set for its task.
    """
    with seeded(0):  # what a user's own code draws without a seed of its own is the same every time
        given = construct("dataset", config.dataset)
    if config.dataset.name in DATASETS:
        given = replace(given, task=DATASETS[config.dataset.name].task)
    arrays = checked(given, config.dataset.name)
    if config.augment != "none" and (TASKS[arrays.task].tokens or arrays.train_x.shape[2:] == (1, 1)):
        raise UsageError(f"augment = {config.augment}: {config.dataset.label} holds no images.")
    whole = {"train": (arrays.train_x, arrays.train_y), "test": (arrays.test_x, arrays.test_y)}
    source = _hash(whole)
    if config.split == "seed":
        arrays = resplit(arrays, stream_seed(config.seed, "split"))
    train, validation = split(arrays, config.validation, config.train_limit)
    pieces = {
        "train": (arrays.train_x[train], arrays.train_y[train]),
        "validation": (arrays.train_x[validation], arrays.train_y[validation]),
        "test": (arrays.test_x, arrays.test_y),
    }
    parts = {k: Part(x.to(device), y.to(device)) for k, (x, y) in _tensors(pieces, arrays.task).items()}
    available = len(arrays.train_x) - len(validation)
    return Data(
        **parts,
        outputs=outputs(arrays.task, arrays),
        fingerprint=_hash(pieces),
        source=source,
        available=available,
        task=arrays.task,
    )


def _tensors(pieces: dict[str, tuple[Array, Array]], task: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Makes the tensors of each part: images by channel, and numbers to predict, scaled by the training part."""
    if TASKS[task].tokens:
        return {k: (torch.tensor(x).long(), torch.tensor(y).long()) for k, (x, y) in pieces.items()}
    images = {k: torch.tensor(x, dtype=torch.float32) for k, (x, _) in pieces.items()}
    std, mean = torch.std_mean(images["train"], dim=(0, 2, 3), keepdim=True)  # (1, C, 1, 1)
    scaled = {k: (x - mean) / std.clamp(min=1e-6) for k, x in images.items()}
    if task == "classification":
        return {k: (scaled[k], torch.tensor(y).long()) for k, (_, y) in pieces.items()}
    targets = {k: torch.tensor(y, dtype=torch.float32) for k, (_, y) in pieces.items()}
    std, mean = torch.std_mean(targets["train"])
    return {k: (scaled[k], (y - mean) / std.clamp(min=1e-6)) for k, y in targets.items()}


def _hash(pieces: dict[str, tuple[Array, Array]]) -> str:
    hasher = hashlib.sha256()
    for name, arrays in pieces.items():
        for array in arrays:
            hasher.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
            hasher.update(np.ascontiguousarray(array).data)
    return hasher.hexdigest()[:16]


class Drawn(NamedTuple):
    """What decides the batches of an epoch, of each example in the order in which they come; a batch is a slice.

    Attributes:
        order: (…, N), which examples they are.
        offsets: (…, 2, N), where they are cut, rows then columns; None without cropping.
        flips: (…, N), whether they are mirrored; None without flipping.
    """

    order: Tensor
    offsets: Tensor | None
    flips: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Drawn":
        """Applies a function to each of them that there is."""
        offsets, flips = (None if drawn is None else function(drawn) for drawn in (self.offsets, self.flips))
        return Drawn(function(self.order), offsets, flips)

    @classmethod
    def stack(cls, seeds: Iterable["Drawn"]) -> "Drawn":
        """Puts those of several seeds together, (S, …, N)."""
        order, offsets, flips = ([t for t in drawn if t is not None] for drawn in zip(*seeds, strict=True))
        return cls(torch.stack(order), torch.stack(offsets) if offsets else None, torch.stack(flips) if flips else None)


class Batches:
    """The training batches of one run, with order and augmentation from its seed, the same on every device."""

    def __init__(self, part: Part, config: RunConfig) -> None:
        self._part, self._config = part, config
        self._order = generator(config.seed, "order")
        self._augmentation = generator(config.seed, "augmentation")
        self._digest = b""

    def __len__(self) -> int:
        n, size = len(self._part.y), self._config.batch_size
        return max(1, -(-n // size) - (n % size == 1))

    def draw(self) -> Drawn:
        """Draws an epoch, on the CPU, until every example was seen once.

        A last batch of one example is left out: batch normalization cannot take it.
        """
        order = torch.randperm(len(self._part.y), generator=self._order)
        self._note(order)
        crop, flip = "crop" in self._config.augment, "flip" in self._config.augment
        margin = crop_margin(self._part.x)
        offsets, flips = list[Tensor](), list[Tensor]()
        pieces = torch.split(order, self._config.batch_size)[: len(self)]
        for index in pieces:  # batch by batch, the one after the other
            if crop:
                offsets.append(self._draw(2 * margin + 1, (2, len(index))))
            if flip:
                flips.append(self._draw(2, (len(index),)))
        used = torch.cat(pieces)
        return Drawn(used, torch.cat(offsets, 1) if crop else None, torch.cat(flips).bool() if flip else None)

    def _draw(self, high: int, size: tuple[int, ...]) -> Tensor:
        drawn = torch.randint(0, high, size, generator=self._augmentation)
        self._note(drawn)
        return drawn

    @property
    def fingerprint(self) -> str:
        """A hash of the order and the augmentation so far."""
        return self._digest.hex()[:16]

    def _note(self, drawn: Tensor) -> None:
        self._digest = hashlib.sha256(self._digest + drawn.numpy().tobytes()).digest()

    def state(self) -> dict[str, Any]:
        """Returns what decides the epochs to come."""
        generators = {"order": self._order.get_state(), "augmentation": self._augmentation.get_state()}
        return {**generators, "digest": self._digest.hex()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a `state`."""
        self._order.set_state(state["order"])
        self._augmentation.set_state(state["augmentation"])
        self._digest = bytes.fromhex(state["digest"])


def gather(part: Part, drawn: Drawn) -> tuple[Tensor, Tensor]:
    """Returns the examples of a batch of S seeds, augmented: x (S, B, …) and y (S, B, …)."""
    shape, index = drawn.order.shape, drawn.order.flatten()
    x, y = part.x.index_select(0, index), part.y.index_select(0, index)  # (S·B, …)
    if drawn.offsets is not None:
        x = random_crop(x, crop_margin(x), drawn.offsets.transpose(0, 1).flatten(1))
    if drawn.flips is not None:
        x = torch.where(drawn.flips.flatten()[:, None, None, None], x.flip(-1), x)
    return x.view(*shape, *x.shape[1:]), y.view(*shape, *y.shape[1:])


def crop_margin(x: Tensor) -> int:
    """Returns how many zeros are put around images (…, W) before they are cut."""
    return max(1, x.shape[-1] // 8)


def random_crop(x: Tensor, margin: int, offsets: Tensor) -> Tensor:
    """Pads x (B, C, H, W) by ``margin`` zeros and cuts H×W at ``offsets`` (2, B), rows then columns."""
    b, _, h, w = x.shape
    padded = torch.nn.functional.pad(x, [margin] * 4)
    rows = offsets[0][:, None] + torch.arange(h, device=x.device)  # (B, H)
    columns = offsets[1][:, None] + torch.arange(w, device=x.device)  # (B, W)
    image = torch.arange(b, device=x.device)[:, None, None]  # (B, 1, 1)
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
