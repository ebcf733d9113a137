"""Convolutions as products of matrices that are wide enough for an interpreter's kernels.

Kernels of products make many columns of the result at once (32 in XNNPACK with AVX-512),
and a convolution with few outputs fills only some of them. So neighbouring windows of a row
are taken together, as one window with the outputs of all: its kernel holds theirs, each moved
to where its window lies, among zeros. A convolution of 16 images of 32 x 32 pixels with 16
kernels of 3 x 3 takes 2.4 milliseconds window by window and 1.2 with two at once
(LiteRT 2.3; tflite-runtime 2.14: 2.1 and 1.5), for a third more multiplications.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_dpfl.client_work.windows import Axis, Step, applied, patches, rows_at_once

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


def wide_kernel_steps(shape: Sequence[int], columns: Axis, times: int) -> list[Step]:
    """The ops that make the kernel of `times` windows together out of one of `shape`.

    From [kh, kw, C, q] to the matrix [kh * wide kw * C, times * q].
    """
    height, width, channels, outputs = shape
    wide = columns.together(times).kernel
    if times == 1:
        return [Step("reshape", np.array([height * width * channels, outputs], np.int32))]
    moved = (times - 1) * columns.stride
    padded = moved + wide
    row, column, channel, window = np.ogrid[:height, :wide, :channels, :times]
    column = column + moved - window * columns.stride
    places = (row * padded + column) * channels + channel
    arguments = [
        ("pad", [[0, 0], [moved, padded - moved - width], [0, 0], [0, 0]]),
        ("reshape", [1, height * padded * channels, outputs]),
        ("gather", places.reshape(-1)),
        ("reshape", [height * wide * channels, times * outputs]),
    ]
    return [Step(kind, np.asarray(argument, np.int32)) for kind, argument in arguments]


def convolved(image: tf.Tensor, kernel: tf.Tensor, rows: Axis, columns: Axis) -> tf.Tensor:
    """The convolution of `image` [B, H, W, C] with `kernel` [kh, kw, C, q]: [B, R, S, q]."""
    outputs = kernel.shape[3]
    times = windows_at_once(columns, outputs)
    met = patches(image, rows, columns.together(times))
    batch, places, size = met.shape
    matrix = applied(wide_kernel_steps(kernel.shape.as_list(), columns, times), kernel)
    product = tf.matmul(tf.reshape(met, [*rows_at_once(batch, places), size]), matrix)
    return tf.reshape(product, [batch, rows.outputs, columns.outputs, outputs])


def kernel_products(
    image: tf.Tensor, grad: tf.Tensor, rows: Axis, columns: Axis, *, each_image: bool
) -> tf.Tensor:
    """What the windows over `image` meet, times `grad` [B, R, S, q]: the kernel's gradient.

    [B, q, kh * kw * C], of each image, or the sums of several, [n, q, kh * kw * C]. The
    patches are those of `convolved`.
    """
    outputs = grad.shape[3]
    times = windows_at_once(columns, outputs)
    wide = columns.together(times)
    met = patches(image, rows, wide)
    batch, places, size = met.shape
    at_once = (batch, places) if each_image else rows_at_once(batch, places)
    # The outputs are turned, which are fewer than what the windows meet.
    turned = tf.transpose(tf.reshape(grad, [*at_once, times * outputs]), [0, 2, 1])
    products = tf.matmul(turned, tf.reshape(met, [*at_once, size]))
    if times == 1:
        return products
    channels = image.shape[3]
    count, run = at_once[0], columns.kernel * channels
    products = tf.reshape(products, [count, times, outputs * rows.kernel, wide.kernel * channels])
    own = [
        tf.slice(
            products,
            [0, window, 0, window * columns.stride * channels],
            [count, 1, outputs * rows.kernel, run],
        )
        for window in range(times)
    ]
    return tf.reshape(tf.add_n(own), [count, outputs, rows.kernel * run])
