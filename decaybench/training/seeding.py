"""Separate random streams for separate purposes, and fingerprints of what they gave."""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Generator, Tensor, nn

Stream = Literal["order", "augmentation"]


def stream_seed(seed: int, stream: str) -> int:
    """Derives a seed of 63 bits for one purpose of one run, so that no stream shifts another."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "little") >> 1


def generator(seed: int, stream: Stream) -> Generator:
    """Makes a generator for one purpose, always on the CPU, so that every device draws the same numbers."""
    return torch.Generator().manual_seed(stream_seed(seed, stream))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch (on the CPU), `random` and `numpy.random`, and restores them afterwards."""
    others = OtherStreams.now()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % (1 << 32))
            yield
    finally:
        others.restore()


@dataclass(frozen=True)
class OtherStreams:
    """The states of `random` and `numpy.random`, from which a user's own network may draw."""

    python: tuple[Any, ...]
    numpy: Any

    @classmethod
    def now(cls) -> Self:
        """Returns the states of this moment."""
        return cls(random.getstate(), np.random.get_state())

    def restore(self) -> None:
        """Restores the states."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)

    def dumps(self) -> str:
        """Writes the states as text."""
        kind, keys, *others = self.numpy
        return json.dumps([self.python, [kind, keys.tolist(), *others]])

    @classmethod
    def loads(cls, text: str) -> Self:
        """Reads what `dumps` wrote."""
        (version, numbers, gauss), (kind, keys, *others) = json.loads(text)
        return cls((version, tuple(numbers), gauss), (kind, np.array(keys, np.uint32), *others))


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hashes names, types, shapes and every bit of tensors."""
    hasher = hashlib.sha256()
    for name, tensor in tensors:
        data = tensor.detach().cpu().contiguous()
        hasher.update(f"{name}:{data.dtype}:{tuple(data.shape)};".encode())
        hasher.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()[:16]


def model_fingerprint(model: nn.Module) -> str:
    """Hashes every parameter and buffer of a model."""
    return fingerprint(model.state_dict().items())
