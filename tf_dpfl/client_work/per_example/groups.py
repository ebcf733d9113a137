"""The gradients of some weights, of every example: their norms and their clipped sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import tensorflow as tf

from tf_dpfl.client_work.per_example.clipping import Selection
from tf_dpfl.client_work.per_example.positions import Positions
from tf_dpfl.client_work.per_example.uses import Lookups, Products
from tf_dpfl.client_work.update import (
    SMALLEST_NORMAL,
    flushed_of_products,
    rounding_of_products,
    sum_of_squares,
    sum_of_squares_of_matrices,
)

# Reading and writing an entry of a gradient costs about as much as so many
# multiplications of a matrix product (measured in tflite-runtime 2.14).
_MULTIPLICATIONS_PER_ENTRY = 12

# Counting the ids of an example in a byte for each row of the table costs less than sorting
# them while the table has not more rows for each id (measured in LiteRT 2.3).
_ROWS_PER_LOOKUP = 256


class Group(Protocol):
    """Gradients with respect to the weights at `positions`."""

    @property
    def positions(self) -> Positions:
        """Which weights, in the order of `clipped_sum`."""

    def squared_norms(self) -> tf.Tensor:
        """Squared L2 norm of each example's gradient, float32 [B].

        Not smaller than that of what `clipped_sum` adds up, but for the rounding
        that the clipping's margin covers.
        """

    def clipped_sum(self, selection: Selection) -> tf.Tensor:
        """Sum over the examples that count of factor * gradient, shaped as `positions`."""


@dataclass(frozen=True)
class EntryGroup:
    """Gradients held entry by entry: `values` float32 [B, n] or [B, p, q].

    Their entries are those of `positions`, in order.
    """

    values: tf.Tensor
    positions: Positions

    def squared_norms(self) -> tf.Tensor:
        """As `Group`."""
        if len(self.values.shape) == 2:
            return sum_of_squares(self.values)
        return sum_of_squares_of_matrices(self.values)

    def clipped_sum(self, selection: Selection) -> tf.Tensor:
        """As `Group`."""
        total = tf.reduce_sum(selection.scaled_rows(self.values), axis=0)
        return tf.reshape(total, self.positions.shape)


@dataclass(frozen=True)
class ProductGroup:
    """Gradients rows^T columns, never written out: `rows` [B, T, p], `columns` [B, T, q]."""

    rows: tf.Tensor
    columns: tf.Tensor
    positions: Positions

    def squared_norms(self) -> tf.Tensor:
        """As `Group`: from the Gram matrices of rows and columns.

        Their terms may cancel, and then rounding errors stay, and small ones are
        flushed: what that can come to is added, so that the norm is never too small.
        """
        if self.rows.shape[1] == 1:
            # What was flushed to zero in one factor may count through the other.
            squares = [
                sum_of_squares(side[:, 0]) + side.shape[2] * SMALLEST_NORMAL
                for side in (self.rows, self.columns)
            ]
            return squares[0] * squares[1]
        return _sum_of_products(_gram(self.rows), _gram(self.columns)) + _what_may_be_lost(
            [(norms(self.rows), norms(self.columns))],
            sizes=(self.rows.shape[2], self.columns.shape[2]),
        )

    def clipped_sum(self, selection: Selection) -> tf.Tensor:
        """As `Group`."""
        rows, columns = self.rows, self.columns
        smaller_rows = rows.shape[2] < columns.shape[2]
        rows = selection.scaled_rows(rows) if smaller_rows else selection.rows(rows)
        columns = selection.rows(columns) if smaller_rows else selection.scaled_rows(columns)
        return tf.matmul(
            tf.reshape(rows, [-1, rows.shape[2]]),
            tf.reshape(columns, [-1, columns.shape[2]]),
            transpose_a=True,
        )


@dataclass(frozen=True)
class LookupGroup:
    """Gradients of a table looked up by `ids` [B, S], each with `columns` [B, S, q].

    With `columns` [B, 1, q] all lookups of an example have the same, and no products.
    `products`: what the same table gets as a factor of a product (tied weights).
    """

    ids: tf.Tensor
    columns: tf.Tensor
    positions: Positions
    products: ProductGroup | None

    def squared_norms(self) -> tf.Tensor:
        """As `Group`."""
        if self._is_repeated():
            # A row that is looked up n times gets n times the column.
            counts = _squared_counts(self.ids, table=self.positions.shape[0])
            smallest = self.columns.shape[2] * SMALLEST_NORMAL  # as for products
            return counts * (sum_of_squares(self.columns[:, 0]) + smallest)
        squared = sum_of_squares(_sums_of_equal_ids(self.ids, self.columns))
        if self.products is None:
            return squared
        rows, columns = self.products.rows, self.products.columns
        # cross[b, s, t]: what lookup s and product t have in common.
        at_ids = tf.gather(tf.transpose(rows, [0, 2, 1]), self.ids, axis=1, batch_dims=1)
        cross = _sum_of_products(at_ids, tf.matmul(self.columns, columns, transpose_b=True))
        return (
            squared
            + 2.0 * cross
            + self.products.squared_norms()
            + _what_may_be_lost(
                [
                    (norms(rows), norms(columns)),
                    (tf.ones(self.ids.shape), norms(self.columns)),
                ],
                sizes=(rows.shape[2], columns.shape[2]),
            )
        )

    def clipped_sum(self, selection: Selection) -> tf.Tensor:
        """As `Group`."""
        columns = selection.scaled_rows(self.columns)
        if self._is_repeated():
            columns = _repeated(columns, self.ids.shape[1])
        total = tf.scatter_nd(
            tf.reshape(self.ids, [-1, 1]),
            tf.reshape(columns, [-1, columns.shape[2]]),
            self.positions.shape,
        )
        return total if self.products is None else total + self.products.clipped_sum(selection)

    def _is_repeated(self) -> bool:
        return bool(self.columns.shape[1] < self.ids.shape[1])


def group_of_products(products: Sequence[Products], lookups: Sequence[Lookups]) -> Group:
    """The group of uses with the same positions, in the form that costs least."""
    product = None
    if products:
        rows, columns = (
            parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)
            for parts in ([p.rows for p in products], [p.columns for p in products])
        )
        product = ProductGroup(rows, columns, products[0].positions)
    if lookups:
        columns = [use.columns for use in lookups]
        if product is not None or len(lookups) > 1:
            columns = [_repeated(use.columns, use.ids.shape[1]) for use in lookups]
        return LookupGroup(
            tf.concat([use.ids for use in lookups], axis=1),
            tf.concat(columns, axis=1),
            lookups[0].positions,
            product,
        )
    if product is None:
        raise ValueError("a group needs a use")
    _, times, p = product.rows.shape
    return product if gram_is_cheaper(times, p, product.columns.shape[2]) else write_out(product)


def write_out(group: ProductGroup) -> EntryGroup:
    """The same gradients entry by entry."""
    values = tf.matmul(group.rows, group.columns, transpose_a=True)
    return EntryGroup(values, group.positions)


def gram_is_cheaper(times: int, p: int, q: int) -> bool:
    """Whether Gram matrices cost less than writing `times` products [p, q] out."""
    return times == 1 or times * times * (p + q) < _MULTIPLICATIONS_PER_ENTRY * p * q


def _repeated(columns: tf.Tensor, times: int) -> tf.Tensor:
    """`columns` of every lookup, [B, `times`, q]."""
    return columns if columns.shape[1] == times else tf.tile(columns, [1, times, 1])


def _sums_of_equal_ids(ids: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """The rows of the table's gradient that are not zero, of each example: [B, S * q].

    Equal ids of one example are one row. Sorted they lie side by side, and each run
    of them is added up in a slot of its own; slots that are left over stay zero.
    """
    examples, size = ids.shape
    width = columns.shape[2]
    if size == 1:
        return tf.reshape(columns, [examples, width])
    order, slot = _slots(ids)
    flat = tf.reshape(columns, [examples * size, width])
    sums = tf.scatter_nd(slot, tf.gather(flat, order), [examples * size, width])
    return tf.reshape(sums, [examples, size * width])


def _squared_counts(ids: tf.Tensor, *, table: int) -> tf.Tensor:
    """The sum of squares of how often each id of an example occurs, exact, float32 [B].

    `table` is the number of ids there are.
    """
    examples, size = ids.shape
    if size > tf.int8.max or table > _ROWS_PER_LOOKUP * size:
        _, slot = _slots(ids)
        counts = tf.scatter_nd(slot, tf.ones([examples * size]), [examples * size])
        return sum_of_squares(tf.reshape(counts, [examples, size]))
    # Each example has counters of its own. Whoever looks up an id finds how often it occurs.
    counter = ids + np.arange(examples, dtype=np.int32)[:, np.newaxis] * table
    ones = tf.ones([examples * size], tf.int8)
    counts = tf.scatter_nd(tf.reshape(counter, [-1, 1]), ones, [examples * table])
    found = tf.gather(counts, counter)
    return tf.reduce_sum(tf.cast(found, tf.float32), axis=1)


def _slots(ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Lookups in the order of their ids, int32 [B * S], and the slot of each, [B * S, 1]."""
    examples, size = ids.shape
    ordered, order = tf.math.top_k(ids, size)
    begins = tf.cast(tf.not_equal(ordered[:, 1:], ordered[:, :-1]), tf.int32)
    first = np.arange(examples, dtype=np.int32)[:, np.newaxis] * size + np.zeros(size, np.int32)
    slot = tf.pad(tf.cumsum(begins, axis=1), [[0, 0], [1, 0]]) + first
    return tf.reshape(order + first, [-1]), tf.reshape(slot, [-1, 1])


def norms(vectors: tf.Tensor) -> tf.Tensor:
    """L2 norms along the last axis."""
    return tf.sqrt(sum_of_squares(vectors))


def _gram(vectors: tf.Tensor) -> tf.Tensor:
    return tf.matmul(vectors, vectors, transpose_b=True)


def _sum_of_products(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """Sum over the last two axes of left * right, float32 [B]."""
    return tf.reduce_sum(tf.reduce_sum(left * right, axis=2), axis=1)


def _what_may_be_lost(
    factors: Sequence[tuple[tf.Tensor, tf.Tensor]], *, sizes: tuple[int, int]
) -> tf.Tensor:
    """What rounding and flushing may take from the squared norms of outer products, float32 [B].

    Args:
      factors: pairs of norms, float32 [B, T], of the rows and columns involved.
      sizes: how long a row and how long a column is.
    """
    largest = tf.add_n([tf.reduce_sum(rows * columns, axis=1) for rows, columns in factors])
    of_rows, of_columns = (
        tf.add_n([tf.reduce_sum(side, axis=1) for side in sides]) for sides in zip(*factors)
    )
    count = sum(rows.shape[1] for rows, _ in factors)
    flushed = flushed_of_products(of_rows, of_columns, sizes=sizes, count=count)
    return rounding_of_products(largest, sum(sizes)) + flushed
