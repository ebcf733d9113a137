"""A convolution and the gradient of its kernel, by the form that costs least."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_dpfl.client_work.convolutions import minimal_filtering
from tf_dpfl.client_work.convolutions.image_ops import TENSORFLOW, ImageOps, T
from tf_dpfl.client_work.convolutions.patch_products import times_matrix, times_outputs
from tf_dpfl.client_work.convolutions.wide_windows import (
    each_window,
    wide_kernel,
    windows_at_once,
)
from tf_dpfl.client_work.convolutions.windows import Axis, patches


def convolved(
    image: T, kernel: T, rows: Axis, columns: Axis, *, ops: ImageOps[T] = TENSORFLOW
) -> T:
    """The convolution of `image` [B, H, W, C] with `kernel` [kh, kw, C, q]: [B, R, S, q]."""
    images, *_, channels = ops.shape(image)
    outputs = ops.shape(kernel)[3]
    times = windows_at_once(columns, outputs)
    matrix, wide = wide_kernel(kernel, columns, times, ops=ops), columns.together(times)
    if minimal_filtering.pays(rows, columns, images=images, channels=channels, outputs=outputs):
        product = minimal_filtering.product(image, matrix, rows, wide, ops=ops)
    else:
        product = times_matrix(patches(image, rows, wide, ops=ops), matrix, ops=ops)
    return ops.reshape(product, [images, rows.outputs, columns.outputs, outputs])


def smaller_kernel_products(
    image: tf.Tensor, grad: tf.Tensor, rows: Axis, columns: Axis, *, each_image: bool
) -> tuple[tf.Tensor, NDArray[np.int64]]:
    """The kernel's gradient of a convolution over `image`, from the smaller patches.

    Either of those over `image`, of `convolved`, or of those that the gradient of the image
    takes over `grad` [B, R, S, q]: these are made and used in one place, and the others
    need not be kept from the forward pass.

    Returns:
      [B, p, m] of each image, or of several, as `kernel_products`, and which entry of the
      flat kernel each of the [p, m] is.
    """
    images, channels, outputs = image.shape[0], image.shape[3], grad.shape[3]
    taps = np.arange(rows.kernel * columns.kernel * channels * outputs)
    kernel = taps.reshape(rows.kernel, columns.kernel, channels, outputs)
    behind = (rows.behind, columns.behind)
    met = _entries_met(rows, columns, images=images, channels=channels, outputs=outputs)
    if rows.stride == columns.stride == 1 and met >= _entries_met(
        *behind, images=images, channels=outputs, outputs=channels
    ):
        turned = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(channels, -1)
        return kernel_products(grad, image, *behind, each_image=each_image), turned
    products = kernel_products(image, grad, rows, columns, each_image=each_image)
    return products, kernel.reshape(-1, outputs).T


def _entries_met(rows: Axis, columns: Axis, *, images: int, channels: int, outputs: int) -> int:
    """The size of the patches of one image."""
    wide = columns.together(windows_at_once(columns, outputs))
    # Two rows of windows meet four rows of sums, or six of pixels.
    fewer = minimal_filtering.pays(rows, columns, images=images, channels=channels, outputs=outputs)
    height = 2 if fewer else rows.kernel
    return rows.outputs * wide.outputs * height * wide.kernel * channels


def kernel_products(
    image: tf.Tensor, grad: tf.Tensor, rows: Axis, columns: Axis, *, each_image: bool
) -> tf.Tensor:
    """What the windows over `image` meet, times `grad` [B, R, S, q]: the kernel's gradient.

    [B, q, kh * kw * C], of each image, or the sums of several, [n, q, kh * kw * C]. The
    patches are those of `convolved`.
    """
    images, channels, outputs = image.shape[0], image.shape[3], grad.shape[3]
    times = windows_at_once(columns, outputs)
    wide = columns.together(times)
    grad = tf.reshape(grad, [images, rows.outputs, wide.outputs, times * outputs])
    if minimal_filtering.pays(rows, columns, images=images, channels=channels, outputs=outputs):
        products = minimal_filtering.kernel_products(image, grad, rows, wide, each_image=each_image)
    else:
        products = times_outputs(patches(image, rows, wide), grad, each_image=each_image)
    return each_window(products, columns, times, channels=channels)
