"""Losses per example, made of ops that TensorFlow and TFLite both have."""

from __future__ import annotations

import tensorflow as tf


def sparse_softmax_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of each example, float32 [n].

    Args:
      labels: int32 [n], class ids in [0, classes).
      logits: float32 [n, classes].

    TensorFlow's fused op has no TFLite builtin; a one-hot product has.
    """
    one_hot = tf.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return -tf.reduce_sum(one_hot * tf.nn.log_softmax(logits), axis=-1)
