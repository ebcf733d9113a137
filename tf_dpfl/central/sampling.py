"""Poisson sampling that is really done: every example joins every step by its own coin."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol.noise import fresh_key_stream

_COINS = 1 << 16  # tossed at once
_WORD_BYTES = 8


class PoissonSampler:
    """Draws batches of expected size `expected` out of `examples`.

    Coins have 64 bits, from ChaCha20 under a fresh key from the operating system for
    each batch; rounding makes the probability smaller, by less than 2^-64.

    Args:
      examples: how many there are, >= 1.
      expected: 1 to `examples`.
      random_bytes: gives the bytes of the keys; only tests replace it.
    """

    def __init__(
        self,
        examples: int,
        *,
        expected: int,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ):
        if not 1 <= expected <= examples:
            raise ValueError(
                f"batch_size={expected!r} must be from 1 to the number of examples, {examples}"
            )
        self._examples = examples
        self._threshold = int(Fraction(expected, examples) * 2**64)
        self._random_bytes = random_bytes
        self.probability = expected / examples
        """That one example is in one batch, in (0, 1]."""

    def draw(self) -> NDArray[np.int64]:
        """The examples of one batch, ascending, int64 [n]; n is private, and may be 0."""
        if self.probability == 1:
            return np.arange(self._examples)
        stream = fresh_key_stream(self._random_bytes)
        drawn = []
        for first in range(0, self._examples, _COINS):
            count = min(_COINS, self._examples - first)
            coins = np.frombuffer(stream(count * _WORD_BYTES), np.uint64)
            drawn.append(np.flatnonzero(coins < np.uint64(self._threshold)) + first)
        return np.concatenate(drawn)
