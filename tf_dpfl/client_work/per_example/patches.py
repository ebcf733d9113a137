"""What each position of a convolution's window meets, from builtin ops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.per_example.refusals import refuse, static_shape


@dataclass(frozen=True)
class Axis:
    """A sliding window along one axis, in pixels; `before`: padding in front."""

    outputs: int
    kernel: int
    stride: int
    dilation: int
    before: int

    @property
    def extent(self) -> int:
        """Pixels of the padded image that all windows together read."""
        return (self.outputs - 1) * self.stride + (self.kernel - 1) * self.dilation + 1

    def reads(self, tap: int) -> slice:
        """The padded pixels that position `tap` of the kernel meets."""
        start = tap * self.dilation
        return slice(start, start + (self.outputs - 1) * self.stride + 1, self.stride)


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
        axes.append(Axis(count, taps, strides[axis], dilations[axis], before))
    return axes[0], axes[1]


def padded(image: Any, rows: Axis, columns: Axis, *, first: int = 1) -> Any:
    """`image` with exactly the pixels the windows read; its rows are axis `first`."""
    paddings = [[0, 0] for _ in image.shape]
    for axis, window in ((first, rows), (first + 1, columns)):
        size = image.shape[axis]
        paddings[axis] = [window.before, max(window.extent - window.before - size, 0)]
    if any(map(any, paddings)):
        image = tf.pad(image, paddings)
    cut = [slice(None)] * image.shape.rank
    cut[first], cut[first + 1] = slice(0, rows.extent), slice(0, columns.extent)
    return image[tuple(cut)]


def patches(image: Any, rows: Axis, columns: Axis) -> Any:
    """[B, kh * kw * C, T]: for each of the T windows of `image` [B, H, W, C], what it meets.

    Windows innermost: the layout that TFLite's batched product takes as it is.
    """
    batch, _, _, channels = static_shape(image)
    planes = padded(tf.transpose(image, [0, 3, 1, 2]), rows, columns, first=2)
    places = rows.outputs * columns.outputs
    taps = [
        tf.reshape(planes[:, :, rows.reads(i), columns.reads(j)], [batch, channels, places])
        for i in range(rows.kernel)
        for j in range(columns.kernel)
    ]
    size = math.prod([rows.kernel, columns.kernel, channels])
    return tf.reshape(tf.concat(taps, axis=1), [batch, size, places])
