"""Gradients of enlarging images.

Resizing is linear and treats rows and columns apart, so its gradient is a
product with two small constant matrices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfl.export.gradients.rules import gradient_of
from tf_dpfl.export.gradients.shapes import static_shape


@gradient_of("ResizeNearestNeighbor", "ResizeBilinear")
def _resize(op: Any, grad: Any) -> Any:
    batch, height, width, channels = static_shape(op.inputs[0])
    _, rows, columns, _ = static_shape(grad)
    by_row = tf.matmul(
        _weights(op, height, rows),
        tf.reshape(grad, [batch, rows, columns * channels]),
        transpose_a=True,
    )
    by_column = tf.matmul(
        _weights(op, width, columns),
        tf.reshape(by_row, [batch * height, columns, channels]),
        transpose_a=True,
    )
    return tf.reshape(by_column, [batch, height, width, channels]), None


def _weights(op: Any, size: int, enlarged: int) -> Any:
    """[enlarged, size]: how much each pixel counts in each enlarged one."""
    resize = getattr(tf.raw_ops, op.type)
    weights = resize(
        images=np.eye(size, dtype=np.float32).reshape(1, size, 1, size),
        size=[enlarged, 1],
        align_corners=op.get_attr("align_corners"),
        half_pixel_centers=op.get_attr("half_pixel_centers"),
    )
    return tf.reshape(weights, [enlarged, size])
