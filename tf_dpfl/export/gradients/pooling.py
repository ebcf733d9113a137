"""Gradients of pooling windows (global pooling is a reduction: arithmetic)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfl.client_work.convolutions.windows import Axis
from tf_dpfl.export.gradients.rules import gradient_of
from tf_dpfl.export.gradients.shapes import as_float, refuse
from tf_dpfl.export.gradients.windows import Window

# Below every finite activation; padding with it never wins a maximum.
_LOWEST = float(np.finfo(np.float32).min)


def _window(op: Any) -> Window:
    batch, height, width, channels = op.get_attr("ksize")
    if (batch, channels) != (1, 1):
        refuse(op, "pooling over batch or channels has no gradient rule")
    return Window.of(op, kernel=(height, width))


@gradient_of("MaxPool")
def _max_pool(op: Any, grad: Any) -> Any:
    """First down to the largest of a window's rows, then to the largest in that row.

    Two windows of one axis each: fewer comparisons and copies than one of both.
    """
    window = _window(op)
    padded = window.pad(op.inputs[0], value=_LOWEST)
    across = Window(_every(window.rows.padded), window.columns)
    down = Window(window.rows, _every(window.columns.outputs))
    in_row = functools.reduce(tf.maximum, [across.read(padded, tap) for tap in across.taps()])
    of_row = _to_largest(down, in_row, op.outputs[0], grad)
    return window.unpad(_to_largest(across, padded, in_row, of_row))


def _every(size: int) -> Axis:
    """Windows of one pixel."""
    return Axis(size=size, outputs=size, kernel=1, stride=1, dilation=1, before=0)


def _to_largest(window: Window, values: Any, largest: Any, grad: Any) -> Any:
    """`grad` of the `largest` of each window over `values`, at that one of `values`."""
    parts = []
    for tap in window.taps()[:-1]:
        # Of equal values the first one gets the gradient, as in TensorFlow: it takes
        # it away from the rest.
        part = grad * as_float(window.read(values, tap) >= largest)
        grad = grad - part
        parts.append(part)
    return window.placed([*parts, grad])


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
