"""Kernels of three rows by fewer multiplications, against sums in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfl.client_work.convolutions import Axis, convolved, kernel_products, minimal_filtering

IMAGES = 16

# Height, width, kernel's width, stride and padding of columns; channels, outputs.
CONVOLUTIONS = [
    (18, 16, 3, 1, 1, 8, 8),
    (16, 14, 3, 1, 1, 16, 9),
    (18, 13, 1, 1, 0, 8, 32),
    (16, 27, 5, 2, 1, 9, 16),
    (18, 17, 2, 1, -1, 8, 10),
]


def axes(case: tuple[int, ...], before: int) -> tuple[Axis, Axis]:
    height, width, taps, stride, left, *_ = case
    rows = Axis(height, height - 2 + 2 * before, 3, 1, 1, before)
    outputs = (width + 2 * left - taps) // stride + 1
    return rows, Axis(width, outputs, taps, stride, 1, left)


def windows(image: np.ndarray, rows: Axis, columns: Axis) -> np.ndarray:
    """[B, R, S, kh, kw, C] in double precision, pixel by pixel."""
    met = np.zeros(
        (len(image), rows.outputs, columns.outputs, rows.kernel, columns.kernel, image.shape[3])
    )
    for r, s, i, j in np.ndindex(*met.shape[1:5]):
        row, column = r + i - rows.before, s * columns.stride + j - columns.before
        if 0 <= row < rows.size and 0 <= column < columns.size:
            met[:, r, s, i, j] = image[:, row, column]
    return met


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_outputs_and_kernel_gradients_are_those_of_the_sums(case: tuple, before: int) -> None:
    rows, columns = axes(case, before)
    channels, outputs = case[5:]
    assert minimal_filtering.pays(rows, columns, images=IMAGES, channels=channels, outputs=outputs)
    rng = np.random.default_rng(3)
    image = rng.normal(size=(IMAGES, *case[:2], channels)).astype(np.float32)
    kernel = rng.normal(size=(3, columns.kernel, channels, outputs)).astype(np.float32)
    grad = rng.normal(size=(IMAGES, rows.outputs, columns.outputs, outputs)).astype(np.float32)
    met = windows(image, rows, columns)
    result = convolved(tf.constant(image), tf.constant(kernel), rows, columns)
    expected = np.einsum("brsijc,ijcq->brsq", met, kernel.astype(np.float64))
    np.testing.assert_allclose(result, expected, atol=2e-6 * np.abs(expected).max())
    expected = np.einsum("brsijc,brsq->bqijc", met, grad.astype(np.float64))
    arguments = (tf.constant(image), tf.constant(grad), rows, columns)
    each = kernel_products(*arguments, each_image=True)
    bound = 2e-6 * np.abs(expected).max()
    np.testing.assert_allclose(each, expected.reshape(each.shape), atol=bound)
    summed = tf.reduce_sum(kernel_products(*arguments, each_image=False), axis=0)
    np.testing.assert_allclose(
        summed, expected.sum(axis=0).reshape(summed.shape), atol=IMAGES * bound
    )


@pytest.mark.parametrize("broken", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_stays_in_its_image(broken: float) -> None:
    rows = columns = Axis(10, 10, 3, 1, 1, 1)
    rng = np.random.default_rng(4)
    image, grad = rng.normal(size=(2, IMAGES, 10, 10, 16)).astype(np.float32)
    kernel = tf.constant(rng.normal(size=(3, 3, 16, 16)).astype(np.float32))

    def results() -> list[np.ndarray]:
        products = kernel_products(
            tf.constant(image), tf.constant(grad), rows, columns, each_image=True
        )
        return [convolved(tf.constant(image), kernel, rows, columns).numpy(), products.numpy()]

    whole = results()
    image[1, 4, 4, 3] = broken
    others = [number for number in range(IMAGES) if number != 1]
    for before, after in zip(whole, results()):
        np.testing.assert_array_equal(after[others], before[others])


def multiplications(rows: Axis, columns: Axis, channels: int) -> int:
    image = tf.TensorSpec([IMAGES, rows.size, columns.size, channels])
    kernel = tf.TensorSpec([rows.kernel, columns.kernel, channels, 32])
    traced = tf.function(lambda x, k: convolved(x, k, rows, columns), autograph=False)
    graph = traced.get_concrete_function(image, kernel).graph
    products = [op for op in graph.get_operations() if op.type in ("BatchMatMulV2", "MatMul")]
    return sum(int(np.prod(op.inputs[0].shape)) * op.inputs[1].shape[-1] for op in products)


def test_a_third_of_the_multiplications_is_spared() -> None:
    few = multiplications(Axis(12, 12, 3, 1, 1, 1), Axis(12, 12, 3, 1, 1, 1), 16)
    assert few * 3 == IMAGES * 12 * 12 * 9 * 16 * 32 * 2


@pytest.mark.parametrize(
    ("rows", "columns", "channels"),
    [
        (Axis(13, 13, 3, 1, 1, 1), Axis(12, 12, 3, 1, 1, 1), 16),
        (Axis(12, 6, 3, 2, 1, 0), Axis(24, 24, 3, 1, 1, 1), 16),
        (Axis(14, 10, 3, 1, 2, 0), Axis(12, 12, 3, 1, 1, 1), 16),
        (Axis(13, 10, 3, 1, 1, -1), Axis(12, 12, 3, 1, 1, 1), 16),
        (Axis(12, 10, 2, 1, 1, 0), Axis(12, 12, 3, 1, 1, 1), 16),
        (Axis(12, 12, 3, 1, 1, 1), Axis(12, 12, 3, 1, 1, 1), 7),
        (Axis(8, 8, 3, 1, 1, 1), Axis(8, 8, 3, 1, 1, 1), 16),
    ],
)
def test_other_convolutions_go_window_by_window(rows: Axis, columns: Axis, channels: int) -> None:
    assert not minimal_filtering.pays(rows, columns, images=IMAGES, channels=channels, outputs=32)
