"""Windows taken together, against TensorFlow's own convolutions and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfl.client_work.convolutions import (
    Axis,
    convolved,
    kernel_products,
    patches,
    smaller_kernel_products,
)
from tf_dpfl.client_work.convolutions.wide_windows import wide_kernel, windows_at_once

# size of the kernel, stride, dilation; input channels, outputs; windows taken together.
CONVOLUTIONS = [
    ((3, 3), (1, 1), (1, 1), (16, 16), 2),
    ((3, 3), (1, 1), (1, 1), (3, 5), 4),
    ((8, 8), (2, 2), (1, 1), (1, 16), 2),
    ((2, 3), (2, 1), (1, 1), (2, 7), 4),
    ((3, 1), (1, 1), (1, 1), (2, 4), 1),
    ((3, 3), (1, 1), (1, 2), (3, 5), 1),
    ((3, 3), (1, 1), (1, 1), (3, 32), 1),
    ((3, 2), (1, 3), (1, 1), (2, 10), 1),
]
IMAGES, HEIGHT, WIDTH = 3, 9, 16


def axes(padding: str, size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]):
    found = []
    for pixels, taps, ahead, gap in zip((HEIGHT, WIDTH), size, stride, dilation):
        extent = (taps - 1) * gap + 1
        outputs = -(-pixels // ahead) if padding == "SAME" else (pixels - extent) // ahead + 1
        before = max((outputs - 1) * ahead + extent - pixels, 0) // 2
        before = before if padding == "SAME" else 0
        found.append(Axis(pixels, outputs, taps, ahead, gap, before))
    return found


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution_and_kernel_gradient_are_tensorflows(case: tuple, padding: str) -> None:
    size, stride, dilation, (channels, outputs), _ = case
    rng = np.random.default_rng(2)
    image = tf.constant(rng.normal(size=(IMAGES, HEIGHT, WIDTH, channels)).astype(np.float32))
    kernel = tf.constant(rng.normal(size=(*size, channels, outputs)).astype(np.float32))
    rows, columns = axes(padding, size, stride, dilation)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(kernel)
        expected = tf.nn.conv2d(image, kernel, stride, padding, dilations=dilation)
        grad = tf.constant(rng.normal(size=expected.shape).astype(np.float32))
        losses = tf.reduce_sum(expected * grad, axis=[1, 2, 3])
    of_each = tape.jacobian(losses, kernel, experimental_use_pfor=False)
    np.testing.assert_allclose(convolved(image, kernel, rows, columns), expected, atol=2e-4)
    each = kernel_products(image, grad, rows, columns, each_image=True)
    turned = tf.transpose(tf.reshape(of_each, [IMAGES, -1, outputs]), [0, 2, 1])
    np.testing.assert_allclose(each, turned, atol=2e-4)
    summed = tf.reduce_sum(kernel_products(image, grad, rows, columns, each_image=False), axis=0)
    np.testing.assert_allclose(summed, tf.reduce_sum(turned, axis=0), atol=5e-4)
    chosen, entries = smaller_kernel_products(image, grad, rows, columns, each_image=True)
    flat = np.reshape(of_each, [IMAGES, -1])
    np.testing.assert_allclose(chosen, flat[:, entries], atol=2e-4)
    assert sorted(entries.reshape(-1)) == list(range(flat.shape[1]))


@pytest.mark.parametrize(
    ("channels", "outputs", "stride", "over_grad"),
    [(16, 16, 1, True), (32, 4, 1, True), (1, 16, 1, False), (16, 16, 2, False)],
)
def test_the_kernels_gradient_comes_from_the_smaller_patches(
    channels: int, outputs: int, stride: int, *, over_grad: bool
) -> None:
    rows, columns = axes("SAME", (3, 3), (stride, stride), (1, 1))
    image = tf.zeros([IMAGES, HEIGHT, WIDTH, channels])
    grad = tf.zeros([IMAGES, rows.outputs, columns.outputs, outputs])
    _, entries = smaller_kernel_products(image, grad, rows, columns, each_image=True)
    assert entries.shape[0] == (channels if over_grad else outputs)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_as_many_windows_are_taken_together_as_pay(case: tuple) -> None:
    size, stride, dilation, (_, outputs), expected = case
    _, columns = axes("SAME", size, stride, dilation)
    assert windows_at_once(columns, outputs) == expected


def test_windows_together_meet_what_each_of_them_meets() -> None:
    image = tf.reshape(tf.range(2.0 * 5 * 8), [2, 5, 8, 1])
    rows, columns = Axis(5, 5, 3, 1, 1, 1), Axis(8, 8, 3, 1, 1, 1)
    single = tf.reshape(patches(image, rows, columns), [2, 5, 8, 3, 3])
    wide = tf.reshape(patches(image, rows, columns.together(4)), [2, 5, 2, 3, 6])
    for window in range(8):
        first = window % 4
        np.testing.assert_array_equal(
            wide[:, :, window // 4, :, first : first + 3], single[:, :, window]
        )


def test_a_kernel_of_windows_together_holds_each_window_among_zeros() -> None:
    kernel = tf.reshape(tf.range(1.0, 7.0), [1, 3, 1, 2])
    np.testing.assert_array_equal(
        wide_kernel(kernel, Axis(9, 4, 3, 2, 1, 0), 2),
        [[1, 2, 0, 0], [3, 4, 0, 0], [5, 6, 1, 2], [0, 0, 3, 4], [0, 0, 5, 6]],
    )
