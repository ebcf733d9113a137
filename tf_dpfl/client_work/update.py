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


def sum_of_squares(flat: tf.Tensor) -> tf.Tensor:
    """Sum of the squares of `flat` (float32 [d], d static), added up as a tree."""
    values = tf.square(flat)
    while values.shape[0] > 1:
        size = values.shape[0]
        terms = min(_TERMS_PER_SUM, size)
        values = tf.pad(values, [[0, -size % terms]])
        values = tf.reduce_sum(tf.reshape(values, [-1, terms]), axis=1)
    return tf.reshape(values, [])


def is_finite_update(update: tf.Tensor) -> tf.Tensor:
    """Whether the squared norm of `update` is finite: bool [].

    A comparison, because TFLite has no builtin for is_finite; NaN compares false.
    """
    return sum_of_squares(update) < update.dtype.max


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
