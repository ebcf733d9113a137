"""From a client's update to its report: clipping the whole update, adding given noise.

The guarantees are those of `protocol.clipping`, which is the NumPy reference;
tests hold the two together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_dpfl.protocol.clipping import CLIP_MARGIN

# Partial sums of at most this many terms: one long float32 sum over a large
# model loses up to a percent of the norm, and with it the clipping bound.
_TERMS_PER_SUM = 64

_EPSILON = 2.0**-24  # of one rounding in float32
SMALLEST_NORMAL = 2.0**-126
"""Of float32: smaller numbers may be flushed to zero."""


def sum_of_squares(values: tf.Tensor) -> tf.Tensor:
    """Sums of the squares along the last axis of `values` (float32 [..., d], static).

    Added up as a tree; the result has shape [...].
    """
    return _tree_sum(tf.square(values))


def sum_of_squares_of_matrices(values: tf.Tensor) -> tf.Tensor:
    """The same over the last two axes of `values` (float32 [..., p, q], static)."""
    *outer, rows, columns = values.shape
    squares = tf.square(values)
    if rows > _TERMS_PER_SUM:
        return _tree_sum(tf.reshape(squares, [*outer, rows * columns]))
    # Whole rows first: no copy into another shape.
    return _tree_sum(tf.reduce_sum(squares, axis=-2))


def _tree_sum(sums: tf.Tensor) -> tf.Tensor:
    *outer, size = sums.shape
    while size > 1:
        terms = _terms_of_one_sum(size)
        if size % terms:
            sums = tf.pad(sums, [[0, 0]] * len(outer) + [[0, -size % terms]])
        size = -(-size // terms)
        # Interpreters add long rows fastest, whole rows or within a row.
        if size == 1:
            return tf.reduce_sum(sums, axis=-1)
        if size < terms:
            sums = tf.reduce_sum(tf.reshape(sums, [*outer, size, terms]), axis=-1)
        else:
            sums = tf.reduce_sum(tf.reshape(sums, [*outer, terms, size]), axis=-2)
    return tf.reshape(sums, outer)


def _terms_of_one_sum(size: int) -> int:
    """How many of `size` terms to add up at once; a divisor saves padding."""
    most = min(_TERMS_PER_SUM, size)
    divisor = max(n for n in range(1, most + 1) if size % n == 0)
    return divisor if divisor * divisor >= most else most


def squared_norm(update: tf.Tensor) -> tf.Tensor:
    """The same of `update` (float32 [d]) by one kernel of TensorFlow, which sums in pairs.

    Not for TFLite, whose sums run through one float32 number.
    """
    return 2.0 * tf.nn.l2_loss(update)


def clip_factor(squared_norm: tf.Tensor, clip_norm: tf.Tensor) -> tf.Tensor:
    """What scales an update of that squared norm to `clip_norm`, at most 1."""
    bound = clip_norm * (1.0 - CLIP_MARGIN)
    return bound / tf.maximum(tf.sqrt(squared_norm), bound)


def rounding_of_products(lengths: tf.Tensor, terms: int) -> tf.Tensor:
    """What rounding may take from a squared norm that is a sum of inner products.

    Args:
      lengths: the norm that the summed vectors would have if all pointed one way.
      terms: of one inner product; errors of so many roundings add up like a random walk.
    """
    return tf.square(lengths) * (_EPSILON * math.sqrt(terms))


def flushed_of_products(
    rows: tf.Tensor, columns: tf.Tensor, *, sizes: tuple[int, int], count: Any
) -> tf.Tensor:
    """What flushing to zero may take from the squared norm of a sum of `count` outer products.

    The norm is made of inner products of rows and of columns. An inner product that is
    flushed in one factor may count through the other: of a row of 1e18 and a column of
    1e-19, whose square is no normal number, the outer product has norm 0.1.

    Args:
      rows, columns: the sums of their norms.
      sizes: how long a row and how long a column is.
      count: a number, or float32 [].
    """
    # Each term of an inner product may lose SMALLEST_NORMAL. Roots first: squares overflow.
    lost = [math.sqrt(size * SMALLEST_NORMAL) for size in sizes]
    return (
        tf.square(rows * lost[1]) + tf.square(columns * lost[0]) + count * count * SMALLEST_NORMAL
    )


def clip_by_global_norm(update: tf.Tensor, clip_norm: tf.Tensor) -> tf.Tensor:
    """Scales `update` (float32 [d]) to L2 norm at most `clip_norm` (float32 []).

    A non-finite update becomes the zero update.
    """
    squared = sum_of_squares(update)
    factor = clip_factor(squared, clip_norm)
    # Select, not multiply: NaN times 0 is NaN. A scalar, because zeros_like would
    # be a constant of the update's size in every TFLite file.
    return tf.where(squared < update.dtype.max, update * factor, 0.0)


def bounded(
    update: tf.Tensor,
    clip_norm: tf.Tensor,
    *,
    clipping: str,
    sizes: Sequence[int],
    squares: Callable[[tf.Tensor], tf.Tensor] = sum_of_squares,
) -> tf.Tensor:
    """A finite `update` (float32 [d]) clipped variable by variable, or entry by entry.

    Args:
      update: finite, its squared norm too.
      clip_norm: float32 [], bound of the whole.
      clipping: "per_layer" or "value", as in `protocol.clipping`.
      sizes: entries of each variable, in order.
      squares: gives the squared norm of one variable, float32 [n] to [].
    """
    if clipping == "value":
        largest = clip_norm * ((1.0 - CLIP_MARGIN) / math.sqrt(max(sum(sizes), 1)))
        return tf.clip_by_value(update, -largest, largest)
    bound = clip_norm * (1.0 / math.sqrt(max(len(sizes), 1)))
    variables = tf.split(update, list(sizes))
    return tf.concat([v * clip_factor(squares(v), bound) for v in variables], axis=0)


def clip_update(
    update: tf.Tensor, clip_norm: tf.Tensor, *, clipping: str, sizes: Sequence[int]
) -> tf.Tensor:
    """`update` (float32 [d]) clipped to L2 norm at most `clip_norm` (float32 []).

    `clipping` is "global", "per_layer" or "value"; `sizes` are the entries of each
    variable. A non-finite update becomes the zero update.
    """
    if clipping == "global":
        return clip_by_global_norm(update, clip_norm)
    finite = sum_of_squares(update) < update.dtype.max
    return tf.where(finite, bounded(update, clip_norm, clipping=clipping, sizes=sizes), 0.0)


def privatize(
    update: tf.Tensor,
    *,
    clip_norm: tf.Tensor,
    noise: tf.Tensor,
    clipping: str,
    sizes: Sequence[int],
) -> tf.Tensor:
    """The report: clip(update) + noise.

    Args:
      update: float32 [d], local weights minus initial weights.
      clip_norm: float32 [], finite and > 0.
      noise: float32 [d], already scaled to the share's standard deviation;
        zeros where the server adds the noise.
      clipping, sizes: as for `clip_update`.
    """
    return clip_update(update, clip_norm, clipping=clipping, sizes=sizes) + noise
