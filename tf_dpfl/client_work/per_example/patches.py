"""Reading the window of a convolution that weights meet the batch in."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.convolutions.windows import Axis
from tf_dpfl.client_work.per_example.refusals import refuse, static_shape


def window_of(op: Any, *, image: Any, outputs: Any, kernel: Any) -> tuple[Axis, Axis]:
    """The window of a convolution op over `image` [B, H, W, C], rows first.

    `outputs`: the tensor with one pixel for each window; `kernel`: [kh, kw, ...].
    """
    if op.get_attr("data_format") != b"NHWC":
        refuse(op, "only channels_last has a rule")
    padding, strides = op.get_attr("padding"), op.get_attr("strides")
    dilations = op.get_attr("dilations")
    axes = []
    for axis in (1, 2):
        size, count = static_shape(image)[axis], static_shape(outputs)[axis]
        taps = static_shape(kernel)[axis - 1]
        total = (count - 1) * strides[axis] + (taps - 1) * dilations[axis] + 1 - size
        if padding == b"EXPLICIT":
            before = op.get_attr("explicit_paddings")[2 * axis]
        else:
            before = max(total, 0) // 2 if padding == b"SAME" else 0
        axes.append(Axis(size, count, taps, strides[axis], dilations[axis], before))
    return axes[0], axes[1]


def padded(image: Any, rows: Axis, columns: Axis) -> Any:
    """`image` [B, H, W, C] with exactly the pixels the windows read."""
    paddings = [[axis.before, max(axis.after, 0)] for axis in (rows, columns)]
    if any(map(any, paddings)):
        image = tf.pad(image, [[0, 0], *paddings, [0, 0]])
    return image[:, : rows.padded, : columns.padded]
