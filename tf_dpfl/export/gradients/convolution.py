"""Gradients of convolutions."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_dpfl.export.gradients.rules import gradient_of
from tf_dpfl.export.gradients.shapes import refuse, static_shape
from tf_dpfl.export.gradients.windows import Window


@gradient_of("Conv2D")
def _conv2d(op: Any, grad: Any) -> Any:
    image, kernel = op.inputs
    height, width, kernel_channels, _ = static_shape(kernel)
    if kernel_channels != static_shape(image)[3]:
        refuse(op, "a grouped convolution has no gradient rule; use groups=1")
    window = Window.of(op, kernel=(height, width))
    return _image_gradient(op, grad, window), _kernel_gradient(image, grad, window)


def _image_gradient(op: Any, grad: Any, window: Window) -> Any:
    image, kernel = op.inputs
    dilations = [window.rows.dilation, window.columns.dilation]
    if dilations == [1, 1]:
        return tf.raw_ops.Conv2DBackpropInput(  # TRANSPOSE_CONV
            input_sizes=static_shape(image),
            filter=kernel,
            out_backprop=grad,
            strides=op.get_attr("strides"),
            padding=op.get_attr("padding").decode(),
        )
    turned = tf.transpose(_reversed(kernel), [0, 1, 3, 2])
    full = tf.nn.conv2d(
        window.spread_full(grad), turned, strides=1, padding="VALID", dilations=dilations
    )
    return window.unpad(full)


def _kernel_gradient(image: Any, grad: Any, window: Window) -> Any:
    """One convolution of the image with `grad` as its kernel.

    Channels take the place of the batch, and stride and dilation change roles.
    """
    result = tf.nn.conv2d(
        tf.transpose(window.pad(image), [3, 1, 2, 0]),
        tf.transpose(grad, [1, 2, 0, 3]),
        strides=[window.rows.dilation, window.columns.dilation],
        padding="VALID",
        dilations=[window.rows.stride, window.columns.stride],
    )
    return tf.transpose(result, [1, 2, 0, 3])


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
    return None, _kernel_gradient(grad, image, window), image_gradient


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
