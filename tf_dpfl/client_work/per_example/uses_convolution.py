"""Kernels of convolutions over images (and series, which Keras makes into images)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.convolutions import (
    Axis,
    kernel_products,
    patches,
    smaller_kernel_products,
)
from tf_dpfl.client_work.per_example.groups import gram_is_cheaper
from tf_dpfl.client_work.per_example.layouts import by_example
from tf_dpfl.client_work.per_example.patches import padded, window_of
from tf_dpfl.client_work.per_example.refusals import static_shape
from tf_dpfl.client_work.per_example.sites import Site
from tf_dpfl.client_work.per_example.uses import Entries, Products, Use, use_of


@use_of("Conv2D", 1)
def _convolution(site: Site, grad: tf.Tensor) -> Use:
    image = site.op.inputs[0]
    window = window_of(site.op, image=image, outputs=grad, kernel=site.op.inputs[1])
    groups = static_shape(image)[3] // site.positions.shape[2]
    if groups > 1:
        return _grouped(site, patches(image, *window), grad, groups)
    by_gram = _by_gram(site, image, window, grad)
    if by_gram is not None:
        return by_gram
    values, entries = smaller_kernel_products(image, grad, *window, each_image=True)
    return Entries(_summed(site, values), site.positions.reshape(-1)[entries])


@use_of("Conv2DBackpropInput", 1)
def _transposed_convolution(site: Site, grad: tf.Tensor) -> Use:
    """The roles of image and output are exchanged."""
    image = site.op.inputs[2]
    window = window_of(site.op, image=grad, outputs=image, kernel=site.op.inputs[1])
    by_gram = _by_gram(site, grad, window, image)
    if by_gram is not None:
        return by_gram
    values = kernel_products(grad, image, *window, each_image=True)
    return Entries(_summed(site, values), site.positions.reshape(-1, values.shape[1]).T)


def _by_gram(
    site: Site, image: tf.Tensor, window: tuple[Axis, Axis], outputs: tf.Tensor
) -> Products | None:
    """What the windows over `image` meet, and `outputs` [.., h, w, q], one place a window.

    Where Gram matrices of these cost less than their products.
    """
    rows, columns = window
    places, width = rows.outputs * columns.outputs, static_shape(outputs)[3]
    size = rows.kernel * columns.kernel * static_shape(image)[3]
    if not gram_is_cheaper(places * _images_of_one_example(site, outputs), size, width):
        return None
    pixels = tf.reshape(outputs, [-1, places, width])
    met = patches(image, rows, columns)
    matrix = site.positions.reshape(size, width)
    return Products(_by_example(site, met), _by_example(site, pixels), matrix)


def _grouped(site: Site, met: tf.Tensor, grad: tf.Tensor, groups: int) -> Entries:
    """Every group of outputs meets only its own group of channels."""
    images, places, _ = met.shape
    kernel = site.positions.shape
    taps, channels, columns = kernel[0] * kernel[1], kernel[2], kernel[3] // groups
    met = tf.reshape(met, [images, places, taps, groups, channels])
    met = tf.reshape(tf.transpose(met, [0, 3, 2, 4, 1]), [-1, taps * channels, places])
    pixels = tf.reshape(grad, [images, places, groups, columns])
    pixels = tf.reshape(tf.transpose(pixels, [0, 2, 1, 3]), [-1, places, columns])
    values = tf.matmul(met, pixels)
    values = tf.reshape(values, [images, -1])
    order = site.positions.reshape(taps * channels, groups, columns).transpose(1, 0, 2)
    return Entries(_summed(site, values), order.reshape(-1))


@use_of("DepthwiseConv2dNative", 1)
def _depthwise_convolution(site: Site, grad: tf.Tensor) -> Entries:
    image = site.op.inputs[0]
    rows, columns = window_of(site.op, image=image, outputs=grad, kernel=site.op.inputs[1])
    images, height, width, outputs = static_shape(grad)
    channels, multiplier = site.positions.shape[2:]
    full = padded(image, rows, columns)
    grad = tf.reshape(grad, [images, height * width, channels, multiplier])
    taps = []
    for i in range(rows.kernel):
        for j in range(columns.kernel):
            met = full[:, rows.reads(i), columns.reads(j), :]
            met = tf.reshape(met, [images, height * width, channels, 1])
            taps.append(tf.reshape(tf.reduce_sum(met * grad, axis=1), [images, outputs]))
    return Entries(_summed(site, tf.concat(taps, axis=1)), site.positions.reshape(-1))


def _images_of_one_example(site: Site, images: Any) -> int:
    """More than one where other axes were folded into the batch's."""
    return static_shape(images)[0] // site.examples


def _by_example(site: Site, values: tf.Tensor) -> tf.Tensor:
    return by_example(values, site.layout, examples=site.examples)


def _summed(site: Site, values: tf.Tensor) -> tf.Tensor:
    """Sums `values` [images, ...] over the images of each example: [B, n]."""
    values = tf.reshape(values, [values.shape[0], -1])
    repeats = _images_of_one_example(site, values)
    if repeats == 1:
        return values
    return tf.reduce_sum(_by_example(site, values), axis=1)
