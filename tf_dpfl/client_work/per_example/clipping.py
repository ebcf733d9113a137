"""How much of each example's gradient goes into the sum: clipping and rejection.

Formal guarantees, for every example (NaN and infinities included):
  * with a squared norm that is not below the true one, its contribution has L2
    norm at most `sensitivity` in float32, whatever `scale` is;
  * weight 0, a non-finite loss or a non-finite squared norm: no contribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from tf_dpfl.protocol.clipping import CLIP_MARGIN, SMALLEST_NORM


def contribution_factors(
    squared_norms: tf.Tensor,
    losses: tf.Tensor,
    weight: tf.Tensor,
    *,
    scale: tf.Tensor,
    sensitivity: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """What to multiply gradients with, and whose gradient to look at.

    Args:
      squared_norms, losses, weight: float32 [B] (or [] for one example).
      scale: float32 [], of gradients that are not clipped; what is not > 0 counts as 0.
      sensitivity: float32 [], the largest contribution; finite and >= 0.

    Returns:
      (factor, counts): float32, 0 where `counts` (bool) is false. The gradients
      of examples that do not count must be replaced, not multiplied: NaN times
      0 is NaN.
    """
    # A comparison, not a maximum: NaN fails it.
    scale = tf.where(scale > 0.0, scale, 0.0)
    largest = sensitivity * (1.0 - CLIP_MARGIN) / tf.maximum(tf.sqrt(squared_norms), SMALLEST_NORM)
    factor = weight * tf.minimum(scale, largest)
    # Comparisons that NaN fails; TFLite has no builtin for is_finite.
    counts = tf.logical_and(
        tf.logical_and(squared_norms < tf.float32.max, tf.abs(losses) < tf.float32.max),
        weight > 0.0,
    )
    return tf.where(counts, factor, tf.zeros(factor.shape)), counts


@dataclass(frozen=True)
class Selection:
    """Whose gradients go into a sum over the batch: `factor` float32 [B], `counts` bool [B]."""

    factor: tf.Tensor
    counts: tf.Tensor

    def rows(self, values: tf.Tensor) -> tf.Tensor:
        """`values` [B, ...] with zeros for the examples that do not count.

        By copying rows, one of them of zeros: TFLite's select with a broadcast
        condition is many times slower.
        """
        return tf.reshape(self._rows(values), values.shape)

    def scaled_rows(self, values: tf.Tensor) -> tf.Tensor:
        """`rows` times each example's factor."""
        rows = self._rows(values)
        factor = tf.reshape(self.factor, [-1, *[1] * (len(rows.shape) - 1)])
        return tf.reshape(rows * factor, values.shape)

    def _rows(self, values: tf.Tensor) -> tf.Tensor:
        """Without axes of size 1: a tensor that is met with and without is copied once."""
        size, *others = values.shape
        kept = [n for n in others if n > 1]
        squeezed = tf.reshape(values, [size, *kept])
        row = tf.where(self.counts, tf.range(size), tf.fill([size], size))
        # Padding, because zeros to join would be a constant of a row's size in every
        # TFLite file.
        return tf.gather(tf.pad(squeezed, [[0, 1], *[[0, 0]] * len(kept)]), row)
