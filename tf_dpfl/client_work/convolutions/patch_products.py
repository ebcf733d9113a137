"""Products of what windows meet: with the kernel, and with what came back of its outputs."""

from __future__ import annotations

import tensorflow as tf

from tf_dpfl.client_work.convolutions.image_ops import TENSORFLOW, ImageOps, T

# Rows of patches that one product of matrices takes at most, unless an image has more: with
# fewer its start counts, with more its factors leave the cache. Products of 196 rows by
# 64 x 16 take 200 microseconds for 32 images, of 784 rows 177 (tflite-runtime 2.14).
_MOST_ROWS = 784


def rows_at_once(batch: int, places: int) -> tuple[int, int]:
    """How to cut `batch` x `places` rows up for products with a kernel: (products, rows of each).

    Each product has whole images.
    """
    images = max(
        n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or n * places <= _MOST_ROWS)
    )
    return batch // images, images * places


def times_matrix(met: T, matrix: T, *, ops: ImageOps[T] = TENSORFLOW) -> T:
    """`met` [B, T, k] times `matrix` [k, n], in B * T * n entries."""
    batch, places, size = ops.shape(met)
    return ops.matmul(ops.reshape(met, [*rows_at_once(batch, places), size]), matrix)


def times_outputs(met: tf.Tensor, values: tf.Tensor, *, each_image: bool) -> tf.Tensor:
    """`values` [B, .., n], one for each of the T places of an image, times `met` [B, T, k].

    [B, n, k], of each image, or the sums of several, [m, n, k].
    """
    batch, places, size = met.shape
    at_once = (batch, places) if each_image else rows_at_once(batch, places)
    # The outputs are turned, which are fewer than what the windows meet.
    turned = tf.transpose(tf.reshape(values, [*at_once, values.shape[-1]]), [0, 2, 1])
    return tf.matmul(turned, tf.reshape(met, [*at_once, size]))
