"""Gradients of elementwise arithmetic and of reductions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfl.export.gradients.rules import gradient_of
from tf_dpfl.export.gradients.shapes import (
    as_float,
    kept_shape,
    reduced_axes,
    refuse,
    static_shape,
    sum_to,
)


@gradient_of("Add", "AddV2")
def _add(op: Any, grad: Any) -> Any:
    left, right = op.inputs
    return sum_to(grad, left), sum_to(grad, right)


@gradient_of("Sub")
def _sub(op: Any, grad: Any) -> Any:
    left, right = op.inputs
    return sum_to(grad, left), -sum_to(grad, right)


@gradient_of("Mul")
def _mul(op: Any, grad: Any) -> Any:
    left, right = op.inputs
    return sum_to(grad * right, left), sum_to(grad * left, right)


@gradient_of("RealDiv")
def _real_div(op: Any, grad: Any) -> Any:
    left, right = op.inputs
    return sum_to(grad / right, left), -sum_to(grad * op.outputs[0] / right, right)


@gradient_of("DivNoNan")
def _div_no_nan(op: Any, grad: Any) -> Any:
    left, right = op.inputs
    by_right = tf.math.divide_no_nan(grad, right)
    return sum_to(by_right, left), -sum_to(by_right * op.outputs[0], right)


@gradient_of("SquaredDifference")
def _squared_difference(op: Any, grad: Any) -> Any:
    left, right = op.inputs
    slope = grad * 2.0 * (left - right)
    return sum_to(slope, left), -sum_to(slope, right)


@gradient_of("Maximum")
def _maximum(op: Any, grad: Any) -> Any:
    left, right = op.inputs
    chosen = as_float(left >= right)
    return sum_to(grad * chosen, left), sum_to(grad * (1.0 - chosen), right)


@gradient_of("Minimum")
def _minimum(op: Any, grad: Any) -> Any:
    left, right = op.inputs
    chosen = as_float(left <= right)
    return sum_to(grad * chosen, left), sum_to(grad * (1.0 - chosen), right)


@gradient_of("SelectV2")
def _select(op: Any, grad: Any) -> Any:
    condition, left, right = op.inputs
    chosen = as_float(condition)
    return None, sum_to(grad * chosen, left), sum_to(grad * (1.0 - chosen), right)


@gradient_of("Sign")
def _sign(_op: Any, _grad: Any) -> Any:
    return None  # flat


@gradient_of("Sqrt")
def _sqrt(op: Any, grad: Any) -> Any:
    return grad * 0.5 / op.outputs[0]


@gradient_of("Rsqrt")
def _rsqrt(op: Any, grad: Any) -> Any:
    result = op.outputs[0]
    return grad * -0.5 * result * result * result


@gradient_of("BiasAdd")
def _bias_add(op: Any, grad: Any) -> Any:
    if op.get_attr("data_format") != b"NHWC":
        refuse(op, "only channels_last has a gradient rule")
    return grad, tf.reduce_sum(grad, axis=list(range(len(static_shape(grad)) - 1)))


def _spread(op: Any, grad: Any) -> Any:
    """`grad` of a reduction's result, repeated over the reduced axes.

    By TILE, or along the last axis, where TILE is slow, by a product of matrices: an
    elementwise product with ones, where both sides are broadcast, takes longer than
    either.
    """
    axes, shape = reduced_axes(op), static_shape(op.inputs[0])
    if axes == (len(shape) - 1,):
        ones = np.ones([1, shape[-1]], np.float32)
        return tf.reshape(tf.matmul(tf.reshape(grad, [-1, 1]), ones), shape)
    repeat = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    return tf.tile(tf.reshape(grad, kept_shape(op)), repeat)


@gradient_of("Sum")
def _sum(op: Any, grad: Any) -> Any:
    return _spread(op, grad), None


@gradient_of("Mean")
def _mean(op: Any, grad: Any) -> Any:
    shape = static_shape(op.inputs[0])
    count = math.prod(shape[axis] for axis in reduced_axes(op))
    return _spread(op, grad * (1.0 / count)), None


@gradient_of("Max", "Min")
def _extreme(op: Any, grad: Any) -> Any:
    values, kept = op.inputs[0], kept_shape(op)
    largest = as_float(tf.equal(values, tf.reshape(op.outputs[0], kept)))
    ties = tf.reduce_sum(largest, axis=list(reduced_axes(op)), keepdims=True)
    return largest * (tf.reshape(grad, kept) / ties), None  # ties share, as in TensorFlow
