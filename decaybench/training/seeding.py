"""Separate random streams for separate purposes, and fingerprints of what they gave."""

import hashlib
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Generator, Tensor, nn

Stream = Literal["order", "augmentation"]


def stream_seed(seed: int, stream: str) -> int:
    """Derives a seed of 63 bits for one purpose of one run, so that no stream shifts another."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "little") >> 1


def generator(seed: int, stream: Stream) -> Generator:
    """Makes a generator for one purpose, always on the CPU, so that every device draws the same numbers."""
    return torch.Generator().manual_seed(stream_seed(seed, stream))


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
