"""Norms from inner products are never too small, whatever float32 flushes to zero."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfl.client_work.dense_users import training
from tf_dpfl.client_work.per_example.groups import LookupGroup, ProductGroup

SIZES = (6, 5)
POSITIONS = np.arange(1, 31).reshape(SIZES)
# Of a row and of a column: their squares are no normal numbers, what they make together is.
MAGNITUDES = [(1e18, 1e-19), (1e17, 1e-21), (2e18, 4e-23), (1e-20, 1e18), (1e-3, 1e-2), (1.0, 0.0)]


def vectors(times: int, magnitudes: tuple[float, float]) -> list[np.ndarray]:
    """Rows [8, times, p] and columns [8, times, q]: most of those magnitudes, some far smaller."""
    draw = np.random.default_rng(3)
    made = []
    for size, magnitude in zip(SIZES, magnitudes):
        values = draw.normal(size=(8, times, size)) * magnitude
        values[draw.random((8, times, size)) < 0.3] *= 1e-3
        made.append(values.astype(np.float32))
    return made


def true_norms(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    products = np.einsum("btp,btq->bpq", rows.astype(np.float64), columns.astype(np.float64))
    return np.sqrt((products**2).sum(axis=(1, 2)))


def assert_never_too_small(squared: tf.Tensor, norms: np.ndarray) -> None:
    found = np.sqrt(squared.numpy().astype(np.float64))
    assert np.all(found >= norms * (1 - 1e-6)), (found, norms)


@pytest.mark.parametrize("magnitudes", MAGNITUDES, ids=str)
@pytest.mark.parametrize("times", [1, 3])
def test_norms_of_products(times, magnitudes):
    rows, columns = vectors(times, magnitudes)

    @tf.function(autograph=False)
    def squared_norms(rows, columns):
        return ProductGroup(rows, columns, POSITIONS).squared_norms()

    assert_never_too_small(squared_norms(rows, columns), true_norms(rows, columns))


@pytest.mark.parametrize("magnitudes", MAGNITUDES, ids=str)
def test_norms_of_a_table_that_is_a_factor_of_products_too(magnitudes):
    rows, columns = vectors(3, magnitudes)
    ids = np.random.default_rng(4).integers(0, SIZES[0], (8, 4)).astype(np.int32)
    looked_up = vectors(4, (1.0, magnitudes[1]))[1]

    @tf.function(autograph=False)
    def squared_norms(ids, looked_up, rows, columns):
        products = ProductGroup(rows, columns, POSITIONS)
        return LookupGroup(ids, looked_up, POSITIONS, products).squared_norms()

    every_row = np.concatenate([rows, np.eye(SIZES[0], dtype=np.float32)[ids]], axis=1)
    every_column = np.concatenate([columns, looked_up], axis=1)
    assert_never_too_small(
        squared_norms(ids, looked_up, rows, columns), true_norms(every_row, every_column)
    )


@pytest.mark.parametrize("magnitudes", MAGNITUDES, ids=str)
def test_norms_of_a_users_low_rank_update(magnitudes):
    rows, columns = vectors(3, magnitudes)

    @tf.function(autograph=False)
    def squared_norms(rows, columns):
        gram = tf.matmul(rows, rows, transpose_b=True)
        return training._squared_norm(rows, gram, columns)

    assert_never_too_small(squared_norms(rows, columns), true_norms(rows, columns))
