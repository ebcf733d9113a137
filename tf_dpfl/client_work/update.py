"""From a client's update to its report: clipping the whole update, adding given noise.

The guarantees are those of `protocol.clipping`, which is the NumPy reference;
tests hold the two together.
"""

from __future__ import annotations

import tensorflow as tf

from tf_dpfl.protocol.clipping import CLIP_MARGIN

# Partial sums of at most this many terms: one long float32 sum over a large
# model loses up to a percent of the norm, and with it the clipping bound.
_TERMS_PER_SUM = 64


def sum_of_squares(values: tf.Tensor) -> tf.Tensor:
    """Sums of the squares along the last axis of `values` (float32 [..., d], static).

    Added up as a tree; the result has shape [...].
    """
    *outer, size = values.shape
    sums = tf.square(values)
    while size > 1:
        terms = min(_TERMS_PER_SUM, size)
        if size % terms:
            sums = tf.pad(sums, [[0, 0]] * len(outer) + [[0, -size % terms]])
        size = -(-size // terms)
        sums = tf.reduce_sum(tf.reshape(sums, [*outer, size, terms]), axis=-1)
    return tf.reshape(sums, outer)


def is_finite_update(update: tf.Tensor) -> tf.Tensor:
    """Whether the squared norm of `update` is finite: bool [].

    A comparison, because TFLite has no builtin for is_finite; NaN compares false.
    """
    return sum_of_squares(update) < update.dtype.max


def finite_or_zero(update: tf.Tensor) -> tf.Tensor:
    """`update` (float32 [d]), or zeros when it is not finite."""
    return tf.where(is_finite_update(update), update, 0.0)


def clip_by_global_norm(update: tf.Tensor, clip_norm: tf.Tensor) -> tf.Tensor:
    """Scales `update` (float32 [d]) to L2 norm at most `clip_norm` (float32 []).

    A non-finite update becomes the zero update.
    """
    squared = sum_of_squares(update)
    bound = clip_norm * (1.0 - CLIP_MARGIN)
    factor = bound / tf.maximum(tf.sqrt(squared), bound)
    # Select, not multiply: NaN times 0 is NaN. A scalar, because zeros_like would
    # be a constant of the update's size in every TFLite file.
    return tf.where(squared < update.dtype.max, update * factor, 0.0)


def privatize(update: tf.Tensor, *, clip_norm: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """The report: clip(update) + noise.

    Args:
      update: float32 [d], local weights minus initial weights.
      clip_norm: float32 [], finite and > 0.
      noise: float32 [d], already scaled to the share's standard deviation;
        zeros where the server adds the noise.
    """
    return clip_by_global_norm(update, clip_norm) + noise
