"""Windows taken together, so that products are wide enough for an interpreter's kernels.

Kernels of products make many columns of the result at once (32 in XNNPACK with AVX-512),
and a convolution with few outputs fills only some of them. So neighbouring windows of a row
are taken together, as one window with the outputs of all: its kernel holds theirs, each moved
to where its window lies, among zeros. A convolution of 16 images of 32 x 32 pixels with 16
kernels of 3 x 3 takes 2.4 milliseconds window by window and 1.2 with two at once
(LiteRT 2.3; tflite-runtime 2.14: 2.1 and 1.5), for a third more multiplications.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_dpfl.client_work.convolutions.image_ops import TENSORFLOW, ImageOps, T
from tf_dpfl.client_work.convolutions.windows import Axis

_COLUMNS_AT_ONCE = 32


def windows_at_once(columns: Axis, outputs: int) -> int:
    """How many neighbouring windows of a row to take together: a divisor of their number.

    The fewest for which a product with `outputs` columns a window costs least: more of
    them fill the kernels' columns and multiply more zeros.
    """

    def cost(times: int) -> float:
        wide = times * outputs
        full = -(-wide // _COLUMNS_AT_ONCE) * _COLUMNS_AT_ONCE
        return full / wide * columns.together(times).kernel

    if columns.dilation > 1:
        return 1
    return min((n for n in range(1, columns.outputs + 1) if columns.outputs % n == 0), key=cost)


def wide_kernel(kernel: T, columns: Axis, times: int, *, ops: ImageOps[T] = TENSORFLOW) -> T:
    """The kernel of `times` windows together, of a `kernel` [kh, kw, C, q].

    As a matrix, [kh * wide kw * C, times * q].
    """
    height, width, channels, outputs = ops.shape(kernel)
    wide = columns.together(times).kernel
    if times > 1:
        moved = (times - 1) * columns.stride
        size = moved + wide
        row, column, channel, window = np.ogrid[:height, :wide, :channels, :times]
        column = column + moved - window * columns.stride
        places = (row * size + column) * channels + channel
        kernel = ops.pad(kernel, [[0, 0], [moved, size - moved - width], [0, 0], [0, 0]])
        kernel = ops.reshape(kernel, [1, height * size * channels, outputs])
        kernel = ops.gather(kernel, np.asarray(places.reshape(-1), np.int32))
    return ops.reshape(kernel, [height * wide * channels, times * outputs])


def each_window(products: tf.Tensor, columns: Axis, times: int, *, channels: int) -> tf.Tensor:
    """The gradient of the kernel, from that of the kernel of `times` windows together.

    From [n, times * q, kh * wide kw * C] to [n, q, kh * kw * C].
    """
    if times == 1:
        return products
    count, wide_outputs, wide_size = products.shape
    outputs, run = wide_outputs // times, columns.kernel * channels
    wide_run = columns.together(times).kernel * channels
    height = wide_size // wide_run
    products = tf.reshape(products, [count, times, outputs * height, wide_run])
    moved = columns.stride * channels
    own = [
        tf.slice(products, [0, window, 0, window * moved], [count, 1, outputs * height, run])
        for window in range(times)
    ]
    return tf.reshape(tf.add_n(own), [count, outputs, height * run])
