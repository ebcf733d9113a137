"""Randomness that is fed in: uniforms from outside, cut up among the random layers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import tensorflow as tf


class RandomSource:
    """Hands the uniforms of one forward pass to the layers, in the order they run."""

    def __init__(self) -> None:
        self._values: tf.Tensor | None = None
        self._taken = 0

    @property
    def taken(self) -> int:
        """How many values one example has consumed in the last pass."""
        return self._taken

    @contextlib.contextmanager
    def fed(self, values: tf.Tensor | None) -> Iterator[None]:
        """Inside, layers take from `values`, float32 [B, r] in [0, 1).

        With None they get zeros, which is for counting.
        """
        self._values, self._taken = values, 0
        try:
            yield
        finally:
            self._values = None

    def uniforms(self, batch: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
        """Float32 [rows, *shape] in [0, 1), never handed out before.

        `batch` has that many rows: one an example, or several in a row (the steps
        inside of TimeDistributed).
        """
        rows = batch.shape[0]
        examples = 1 if self._values is None else self._values.shape[0]
        count = rows // examples * math.prod(shape)
        start, self._taken = self._taken, self._taken + count
        if self._values is None:
            return tf.zeros([rows, *shape])
        return tf.reshape(self._values[:, start : start + count], [rows, *shape])

    def normals(self, batch: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
        """Standard normal values, float32 [B, *shape], by Box & Muller (1958)."""
        radius = tf.sqrt(-2.0 * tf.math.log(1.0 - self.uniforms(batch, shape)))
        return radius * tf.cos(2.0 * math.pi * self.uniforms(batch, shape))
