"""Parameters and images drawn from seeds, alike in both environments: with MindSpore, and without it in the test run.

NumPy alone, and its old generators: their numbers are the same in every version.
"""

from __future__ import annotations

import zlib

import numpy as np

KEPT = 2000  # values of an output, about

# Factors on the weights of norms, whose drawn statistics are not the network's own: where a hundred of them make values
# of 10^5 otherwise, float32 has no fifth digit left, in MindCV as here.
GAINS = {"repmlp_t224": 0.6}


def generator(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))


def drawn(network: str, name: str, shape: tuple[int, ...], trainable: bool) -> np.ndarray | None:
    """The values of MindCV's parameter `name`; None for one that is neither trained nor a statistic, which is a table."""
    random, last = generator(name), name.rpartition(".")[2]
    if last in ("moving_variance", "gamma", "gamma_"):
        value = random.uniform(0.5, 1.5, shape)
        if last == "gamma":
            value *= GAINS.get(network, 1.0)
    elif last in ("moving_mean", "beta", "bias"):
        value = random.normal(0, 0.1, shape)
    elif not trainable:
        return None
    elif last == "weight" and len(shape) >= 2:
        value = random.normal(0, np.prod(shape[1:]) ** -0.5, shape)
    else:
        value = random.normal(0, 0.1, shape)
    return np.asarray(value, dtype=np.float32)


def image(size: int) -> np.ndarray:
    """One image of `size` x `size` pixels (1 3 H W)."""
    return generator(f"image {size}").standard_normal((1, 3, size, size)).astype(np.float32)


def sampled(values: np.ndarray) -> np.ndarray:
    """About two thousand of the values at even distances; the distance is odd, to meet every row and column."""
    flat = values.reshape(-1)
    return flat[:: (flat.size // KEPT) | 1].copy()
