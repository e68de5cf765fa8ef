"""vmap by channels: a replica axis of an activation is nothing but more channels."""

from torch import Tensor


def merged(x: Tensor, dim: int | None, batch: int, channels: int) -> Tensor:
    """Moves a vmapped dimension (None: there is none, every replica has the same) into the channels.

    Args:
        x: With B at ``dim``.
        dim: Where.
        batch: B.
        channels: Which dimension, without B, the channels are: 1 of (N, C, …), 0 of (C, …).

    Returns:
        B·C instead of C channels.
    """
    x = x.expand(batch, *x.shape) if dim is None else x.movedim(dim, 0)
    x = x.movedim(0, channels)
    return x.reshape(*x.shape[:channels], -1, *x.shape[channels + 2 :])


def split(x: Tensor, batch: int, channels: int) -> Tensor:
    """The reverse: B is then the dimension ``channels``."""
    return x.reshape(*x.shape[:channels], batch, -1, *x.shape[channels + 1 :])
