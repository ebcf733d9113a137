"""Gaussian noise from the operating system's generator, and its scale.

The noise that protects somebody is made here: 53-bit uniforms from
`os.urandom`, Box-Muller in float64, and the sum of four such draws. A single
float Gaussian has reachable and unreachable values an attacker can tell apart
(Jin et al., 2112.05307); the sum of four hides them (Holohan & Braghin,
2107.10138). `docs/privacy.md` says what this covers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol.checks import require_finite_nonnegative, require_finite_positive
from tf_dpfl.protocol.tensors import Float32

DRAWS_PER_VALUE = 4


def noise_stddev_of_sum(*, clip_norm: float, noise_multiplier: float) -> float:
    """Standard deviation, per coordinate, that the sum of reports must carry."""
    require_finite_positive("clip_norm", clip_norm)
    require_finite_nonnegative("noise_multiplier", noise_multiplier)
    return clip_norm * noise_multiplier


def noise_stddev_of_share(
    *, clip_norm: float, noise_multiplier: float, smallest_cohort: int
) -> float:
    """Standard deviation, per coordinate, of one device's share.

    The shares of `smallest_cohort` reports add up to `noise_stddev_of_sum`;
    more reports carry more.
    """
    if not smallest_cohort >= 1:
        raise ValueError(f"smallest_cohort={smallest_cohort!r} must be >= 1")
    total = noise_stddev_of_sum(clip_norm=clip_norm, noise_multiplier=noise_multiplier)
    return total / math.sqrt(smallest_cohort)


def gaussian_noise(
    size: int, *, stddev: float, random_bytes: Callable[[int], bytes] = os.urandom
) -> Float32:
    """Independent N(0, stddev^2) values of shape [size], float32.

    Args:
      size: number of values, >= 0.
      stddev: finite and >= 0; 0 gives exact zeros.
      random_bytes: source of cryptographic random bytes; only tests replace it.
    """
    require_finite_nonnegative("stddev", stddev)
    total = np.zeros(size, np.float64)
    if stddev == 0:
        return total.astype(np.float32)
    for _ in range(DRAWS_PER_VALUE):
        total += _box_muller(size, random_bytes)
    total *= stddev / math.sqrt(DRAWS_PER_VALUE)
    return total.astype(np.float32)


def _box_muller(size: int, random_bytes: Callable[[int], bytes]) -> NDArray[np.float64]:
    """Standard normal values of shape [size] (Box & Muller 1958)."""
    pairs = (size + 1) // 2
    raw = np.frombuffer(random_bytes(16 * pairs), np.uint64).reshape(2, pairs)
    uniform = raw >> np.uint64(11)  # 53 bits, the precision of float64
    radius = np.sqrt(-2.0 * np.log((uniform[0] + 1.0) * 2.0**-53))  # (0, 1]: log is finite
    angle = uniform[1] * (2.0 * math.pi * 2.0**-53)
    normal: NDArray[np.float64] = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return normal[:size]
