"""Convolutions with kernels of three rows, by two thirds of the multiplications.

Two neighbouring rows of outputs meet four rows of the image, d0 to d3, through the
kernel's rows g0, g1 and g2. Winograd's minimal filtering F(2, 3) makes them of four
products, where window by window there are six:

    m0 = (d0 - d2) g0    m1 = (d1 + d2) (g0 + g1 + g2) / 2
    m3 = (d1 - d3) g2    m2 = (d2 - d1) (g0 - g1 + g2) / 2

    outputs: m0 + m1 + m2 and m1 - m2 - m3

(Lavin & Gray 1509.09308, section 4.1.) The kernel's gradient is the same form read
backwards. Along a row windows are patches as ever. Sums and differences of whole rows are
made before the windows, so that a third less is copied and packed too. Forward and backward
a convolution of 16 images of 32 x 32 pixels, 16 to 16 channels, takes 5.8 milliseconds window
by window and 4.4 so (LiteRT 2.3; tflite-runtime 2.14: 6.3 and 4.7).
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_dpfl.client_work.convolutions.image_ops import TENSORFLOW, ImageOps, T
from tf_dpfl.client_work.convolutions.patch_products import times_matrix, times_outputs
from tf_dpfl.client_work.convolutions.windows import Axis, padded, patches

# With fewer channels on either side the sums cost more than they save, with fewer entries
# starting the ops does: 16 images of 32 x 32 pixels with 4 channels take a tenth longer, of
# 8 x 8 with 16 too, and one of 16 x 16 with 16 takes a quarter longer (LiteRT 2.3).
_FEWEST_CHANNELS = 8
_FEWEST_ENTRIES = 20_000


def pays(rows: Axis, columns: Axis, *, images: int, channels: int, outputs: int) -> bool:
    """Whether a convolution, window by window over `rows` and `columns`, is to be made this way."""
    fewer = min(channels, outputs)
    return (
        (rows.kernel, rows.stride, rows.dilation) == (3, 1, 1)
        and rows.outputs % 2 == 0
        and min(rows.before, rows.after) >= 0
        and fewer >= _FEWEST_CHANNELS
        and images * rows.outputs * columns.outputs * fewer >= _FEWEST_ENTRIES
    )


def product(image: T, matrix: T, rows: Axis, columns: Axis, *, ops: ImageOps[T] = TENSORFLOW) -> T:
    """What the windows over `image` [B, H, W, C] meet, times `matrix` [3 * kw * C, n].

    [B, R / 2, 2 * S * n]: for each pair of rows the products of the first, and of the second.
    """
    size, outputs = ops.shape(matrix)[0] // 3, ops.shape(matrix)[1]
    first, middle, last = (ops.cut(matrix, [i * size, 0], [size, outputs]) for i in range(3))
    outer, inner = ops.scale(ops.add(first, last), 0.5), ops.scale(middle, 0.5)
    factors = [first, ops.add(outer, inner), ops.subtract(outer, inner), last]
    batch, *_ = ops.shape(image)
    pairs = [batch, rows.outputs // 2, columns.outputs * outputs]
    m0, m1, m2, m3 = (
        ops.reshape(times_matrix(met, factor, ops=ops), pairs)
        for met, factor in zip(_patches(image, rows, columns, ops), factors)
    )
    upper = ops.add(m0, ops.add(m1, m2))
    lower = ops.subtract(ops.subtract(m1, m2), m3)
    return ops.join([upper, lower], 2)


def kernel_products(
    image: tf.Tensor, grad: tf.Tensor, rows: Axis, columns: Axis, *, each_image: bool
) -> tf.Tensor:
    """What the windows over `image` meet, times `grad` [B, R, S, n] of their outputs.

    [B, n, 3 * kw * C], of each image, or the sums of several.
    """
    batch, height, width, outputs = grad.shape
    line = width * outputs
    lines = tf.reshape(grad, [batch, height // 2, 2 * line])
    upper, lower = (tf.slice(lines, [0, 0, i * line], [batch, height // 2, line]) for i in (0, 1))
    factors = [upper, upper + lower, upper - lower, lower]
    m0, m1, m2, m3 = (
        times_outputs(met, tf.reshape(factor, [batch, -1, outputs]), each_image=each_image)
        for met, factor in zip(_patches(image, rows, columns, TENSORFLOW), factors)
    )
    outer, inner = (m1 + m2) * 0.5, (m1 - m2) * 0.5
    return tf.concat([m0 + outer, inner, outer - m3], axis=2)


def _patches(image: T, rows: Axis, columns: Axis, ops: ImageOps[T]) -> Sequence[T]:
    """What windows of one row meet in d0 - d2, d1 + d2, d2 - d1 and d1 - d3."""
    image, _, columns = padded(image, rows, columns, ops=ops)
    batch, height, width, channels = ops.shape(image)
    pairs, line = rows.outputs // 2, width * channels
    lines = ops.reshape(image, [batch, height // 2, 2 * line])

    def row(number: int) -> T:
        return ops.cut(lines, [0, number // 2, number % 2 * line], [batch, pairs, line])

    d0, d1, d2, d3 = (row(number) for number in range(4))
    sums = [ops.subtract(d0, d2), ops.add(d1, d2), ops.subtract(d2, d1), ops.subtract(d1, d3)]
    along = Axis(size=pairs, outputs=pairs, kernel=1, stride=1, dilation=1, before=0)
    images = [ops.reshape(values, [batch, pairs, width, channels]) for values in sums]
    return [patches(values, along, columns, ops=ops) for values in images]
