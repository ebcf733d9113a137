"""The few ops that convolutions are made of, of whatever makes a graph out of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

T = TypeVar("T")


class ImageOps(Protocol[T]):
    """Ops over float32 tensors `T` of static shapes.

    TensorFlow's (`TENSORFLOW`) where a client is traced, a TFLite file's where one is
    rewritten: what a convolution does is written once for both.
    """

    def shape(self, values: T) -> tuple[int, ...]:
        """The sizes of `values`."""

    def pad(self, values: T, paddings: Sequence[Sequence[int]]) -> T:
        """`values` among zeros: how many before and behind, of each axis."""

    def reshape(self, values: T, shape: Sequence[int]) -> T:
        """The same entries in another shape."""

    def gather(self, values: T, indices: NDArray[np.int32]) -> T:
        """The slices `indices` [n] of the second axis."""

    def cut(self, values: T, begin: Sequence[int], size: Sequence[int]) -> T:
        """`size` entries along each axis from `begin` on."""

    def join(self, parts: Sequence[T], axis: int) -> T:
        """`parts`, one behind the other."""

    def add(self, left: T, right: T) -> T:
        """The sum of two of the same shape."""

    def subtract(self, left: T, right: T) -> T:
        """The difference of two of the same shape."""

    def scale(self, values: T, factor: float) -> T:
        """`factor` times `values`."""

    def matmul(self, left: T, right: T) -> T:
        """[B, m, k] times [k, n]."""


class _TensorFlowOps:
    def shape(self, values: Any) -> tuple[int, ...]:
        return tuple(values.shape.as_list())

    def pad(self, values: Any, paddings: Sequence[Sequence[int]]) -> Any:
        # PadV2, because XNNPACK's PAD takes five times as long as the plain one.
        zero = tf.constant(0.0)
        return tf.raw_ops.PadV2(input=values, paddings=paddings, constant_values=zero)

    def reshape(self, values: Any, shape: Sequence[int]) -> Any:
        return tf.reshape(values, shape)

    def gather(self, values: Any, indices: NDArray[np.int32]) -> Any:
        return tf.gather(values, indices, axis=1)

    def cut(self, values: Any, begin: Sequence[int], size: Sequence[int]) -> Any:
        return tf.slice(values, begin, size)

    def join(self, parts: Sequence[Any], axis: int) -> Any:
        return tf.concat(parts, axis)

    def add(self, left: Any, right: Any) -> Any:
        return left + right

    def subtract(self, left: Any, right: Any) -> Any:
        return left - right

    def scale(self, values: Any, factor: float) -> Any:
        return values * factor

    def matmul(self, left: Any, right: Any) -> Any:
        return tf.matmul(left, right)


TENSORFLOW: ImageOps[Any] = _TensorFlowOps()
"""TensorFlow's own."""
