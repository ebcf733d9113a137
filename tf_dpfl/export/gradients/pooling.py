"""Gradients of pooling windows (global pooling is a reduction: arithmetic)."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfl.export.gradients.rules import gradient_of
from tf_dpfl.export.gradients.shapes import as_float, refuse
from tf_dpfl.export.gradients.windows import Axis, Window

# Below every finite activation; padding with it never wins a maximum.
_LOWEST = float(np.finfo(np.float32).min)


def _window(op: Any) -> Window:
    batch, height, width, channels = op.get_attr("ksize")
    if (batch, channels) != (1, 1):
        refuse(op, "pooling over batch or channels has no gradient rule")
    return Window.of(op, kernel=(height, width))


@gradient_of("MaxPool")
def _max_pool(op: Any, grad: Any) -> Any:
    window = _window(op)
    padded = window.pad(op.inputs[0], value=_LOWEST)
    untaken: Any = None  # 1 while no earlier position of the window held the maximum
    parts = []
    for tap in window.taps():
        chosen = as_float(window.read(padded, tap) >= op.outputs[0])
        if untaken is None:
            untaken = 1.0 - chosen
        else:  # of equal values the first one gets the gradient, as in TensorFlow
            chosen *= untaken
            untaken -= chosen
        parts.append(window.place(chosen * grad, tap))
    return window.unpad(tf.add_n(parts))


def _pixels_in_window(axis: Axis) -> Any:
    """For every output, how many pixels of the image (not padding) it averages."""
    starts = np.arange(axis.outputs) * axis.stride - axis.before
    return np.minimum(starts + axis.kernel, axis.size) - np.maximum(starts, 0)


@gradient_of("AvgPool")
def _average_pool(op: Any, grad: Any) -> Any:
    window = _window(op)
    rows, columns = window.rows, window.columns
    counts = np.outer(_pixels_in_window(rows), _pixels_in_window(columns))
    share = grad * (1.0 / counts[np.newaxis, :, :, np.newaxis]).astype(np.float32)
    kernel = (rows.kernel, columns.kernel)
    mean = tf.nn.avg_pool2d(window.spread_full(share), kernel, strides=1, padding="VALID")
    return window.unpad(mean * float(rows.kernel * columns.kernel))
