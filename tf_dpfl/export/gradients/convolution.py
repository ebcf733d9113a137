"""Gradients of convolutions."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.convolutions import convolved, kernel_products, smaller_kernel_products
from tf_dpfl.client_work.per_example.positions import in_weight_order, number_entries
from tf_dpfl.export.gradients.rules import gradient_of
from tf_dpfl.export.gradients.shapes import refuse, static_shape
from tf_dpfl.export.gradients.windows import Blocks, Window, pad_or_crop


@gradient_of("Conv2D")
def _conv2d(op: Any, grad: Any) -> Any:
    image, kernel = op.inputs
    height, width, kernel_channels, _ = static_shape(kernel)
    if kernel_channels != static_shape(image)[3]:
        refuse(op, "a grouped convolution has no gradient rule; use groups=1")
    window = Window.of(op, kernel=(height, width))
    if not window.is_plain:
        refuse(op, "a stride together with a dilation has no gradient rule")
    products, entries = smaller_kernel_products(
        image, grad, window.rows, window.columns, each_image=False
    )
    (entry_numbers,) = number_entries([kernel])
    kernel_gradient = in_weight_order(
        tf.reduce_sum(products, axis=0), entry_numbers.reshape(-1)[entries], entry_numbers
    )
    return _image_gradient(image, kernel, grad, window), kernel_gradient


def _image_gradient(image: Any, kernel: Any, grad: Any, window: Window) -> Any:
    """A convolution of `grad` with stride 1, whose outputs are blocks of pixels.

    Pixel s Y + r gets grad[Y - a] kernel[s a + r] for every a: all pixels of a
    block of the stride's size meet the same outputs.
    """
    rows, columns = Blocks.of(window.rows), Blocks.of(window.columns)
    batch, _, _, channels = static_shape(image)
    blocks = convolved(
        grad, _kernel_of_blocks(kernel, rows, columns), rows.outputs, columns.outputs
    )
    down, right = rows.outputs.outputs, columns.outputs.outputs
    if rows.size == columns.size:
        pixels = tf.nn.depth_to_space(blocks, rows.size) if rows.size > 1 else blocks
    else:
        pixels = tf.reshape(blocks, [batch * down, right, rows.size, columns.size * channels])
        pixels = tf.transpose(pixels, [0, 2, 1, 3])
        pixels = tf.reshape(pixels, [batch, down * rows.size, right * columns.size, channels])
    return pad_or_crop(pixels, rows=rows.surplus, columns=columns.surplus)


def _kernel_of_blocks(kernel: Any, rows: Blocks, columns: Blocks) -> Any:
    """[taps down, taps across, q, pixels of a block * C], from `kernel` [kh, kw, C, q]."""
    height, width, channels, outputs = static_shape(kernel)
    kernel = pad_or_crop(
        kernel,
        axis=0,
        rows=(0, rows.taps * rows.size - height),
        columns=(0, columns.taps * columns.size - width),
    )
    tap = (rows.tap_of()[:, None, :, None], columns.tap_of()[None, :, None, :])
    order = (tap[0] * columns.taps * columns.size + tap[1]).reshape(-1)
    pixels = rows.size * columns.size
    kernel = tf.gather(tf.reshape(kernel, [-1, channels * outputs]), order)
    kernel = tf.reshape(kernel, [rows.taps * columns.taps, pixels * channels, outputs])
    turned = tf.transpose(kernel, [0, 2, 1])
    return tf.reshape(turned, [rows.taps, columns.taps, outputs, pixels * channels])


@gradient_of("Conv2DBackpropInput")
def _transposed_conv2d(op: Any, grad: Any) -> Any:
    """The op is the transpose of a convolution, so its gradient is that convolution."""
    _, kernel, image = op.inputs
    height, width, *_ = static_shape(kernel)
    window = Window.of(op, kernel=(height, width), image=grad, result=image)
    if (window.rows.dilation, window.columns.dilation) != (1, 1):
        refuse(op, "a dilated transposed convolution has no gradient rule; use dilation_rate=1")
    padding, strides = op.get_attr("padding").decode(), op.get_attr("strides")
    image_gradient = tf.nn.conv2d(grad, kernel, strides=strides, padding=padding)
    products = kernel_products(grad, image, window.rows, window.columns, each_image=False)
    kernel_gradient = tf.transpose(tf.reduce_sum(products, axis=0))
    return None, tf.reshape(kernel_gradient, static_shape(kernel)), image_gradient


@gradient_of("DepthwiseConv2dNative")
def _depthwise_conv2d(op: Any, grad: Any) -> Any:
    image, kernel = op.inputs
    height, width, channels, multiplier = static_shape(kernel)
    window = Window.of(op, kernel=(height, width))
    if (window.rows.dilation, window.columns.dilation) != (1, 1):
        refuse(op, "a dilated depthwise op has no gradient rule")
    padded = _repeat_channels(window.pad(image), multiplier)
    taps = [tf.reduce_sum(window.read(padded, tap) * grad, axis=[0, 1, 2]) for tap in window.taps()]
    kernel_gradient = tf.reshape(tf.stack(taps), [height, width, channels, multiplier])

    turned = tf.reshape(_reversed(kernel), [height, width, channels * multiplier, 1])
    full = tf.nn.depthwise_conv2d(
        window.spread_full(grad), turned, strides=[1, 1, 1, 1], padding="VALID"
    )
    if multiplier > 1:
        batch, rows, columns, _ = static_shape(full)
        by_channel = tf.reshape(full, [batch, rows * columns, channels, multiplier])
        full = tf.reshape(tf.reduce_sum(by_channel, axis=3), [batch, rows, columns, channels])
    return window.unpad(full), kernel_gradient


def _repeat_channels(image: Any, times: int) -> Any:
    """Every channel `times` times in a row: the order of depthwise outputs."""
    if times == 1:
        return image
    batch, rows, columns, channels = static_shape(image)
    single = tf.reshape(image, [batch, rows * columns, channels, 1])
    return tf.reshape(tf.concat([single] * times, axis=3), [batch, rows, columns, channels * times])


def _reversed(kernel: Any) -> Any:
    """The kernel turned by 180 degrees.

    One axis at a time: REVERSE_V2 over two axes is wrong in tflite-runtime 2.14.
    """
    return tf.reverse(tf.reverse(kernel, axis=[0]), axis=[1])
