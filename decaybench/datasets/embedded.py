"""Data sets that need no file and no network."""

import numpy as np
from sklearn.datasets import load_diabetes, load_digits

from decaybench.datasets.arrays import Arrays


def digits() -> Arrays:
    """Loads UCI digits, 1,797 images of 1×8×8; a fixed 500 of them are the test part."""
    bunch = load_digits()
    order = np.random.Generator(np.random.PCG64(1)).permutation(len(bunch.target))
    x, y = bunch.images[order, None].astype(np.float32), bunch.target[order].astype(np.int64)
    return Arrays(x[500:], y[500:], x[:500], y[:500])


def synthetic(samples: int = 640, classes: int = 4, size: int = 8, noise: float = 3.0) -> Arrays:
    """Draws noisy copies of one random image per class, 1×size×size; a quarter of them are the test part."""
    rng = np.random.Generator(np.random.PCG64(2))
    prototypes = rng.standard_normal((classes, 1, size, size))
    y = np.arange(samples) % classes
    x = (prototypes[y] + noise * rng.standard_normal((samples, 1, size, size))).astype(np.float32)
    cut = samples // 4
    return Arrays(x[cut:], y[cut:], x[:cut], y[:cut])


def diabetes() -> Arrays:
    """Loads the diabetes data of Efron et al. (2004), 442 × 10 numbers; a fixed 110 of them are the test part."""
    bunch = load_diabetes()
    order = np.random.Generator(np.random.PCG64(3)).permutation(len(bunch.target))
    x = bunch.data[order, :, None, None].astype(np.float32)  # (442, 10, 1, 1): each feature is scaled by itself
    y = bunch.target[order].astype(np.float32)
    return Arrays(x[110:], y[110:], x[:110], y[:110])
