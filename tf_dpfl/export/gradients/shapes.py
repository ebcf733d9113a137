"""Static shapes and constants of a traced graph, as the rules need them."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import tensorflow as tf

from tf_dpfl.client_work.static_values import static_value
from tf_dpfl.export.gradients.rules import UnsupportedOpError


def refuse(op: Any, why: str) -> NoReturn:
    """Raises UnsupportedOpError for `op`."""
    error = UnsupportedOpError(f"op {op.type} ({op.name}): {why}")
    error.op_name = op.name
    raise error


def static_shape(tensor: Any) -> tuple[int, ...]:
    """The shape of `tensor`; a training graph has a fixed batch, so it is known."""
    if not tensor.shape.is_fully_defined():
        refuse(tensor.op, f"its shape {tensor.shape} is not fixed")
    return tuple(int(size) for size in tensor.shape)


def constant(op: Any, index: int) -> Any:
    """The value of input `index` of `op`, which must be known while tracing."""
    value = static_value(op.inputs[index])
    if value is None:
        refuse(op, f"its input {index} must be a constant")
    return value


def reduced_axes(op: Any) -> tuple[int, ...]:
    """The axes a reduction (Sum, Mean, Max) goes over, sorted, all >= 0."""
    rank = len(static_shape(op.inputs[0]))
    return tuple(sorted({int(axis) % rank for axis in np.atleast_1d(constant(op, 1))}))


def kept_shape(op: Any) -> tuple[int, ...]:
    """The shape of a reduction's result with its axes kept as 1."""
    axes = reduced_axes(op)
    return tuple(
        1 if axis in axes else size for axis, size in enumerate(static_shape(op.inputs[0]))
    )


def sum_to(grad: Any, like: Any) -> Any:
    """Sums `grad` over the axes along which `like` was broadcast."""
    shape, target = static_shape(grad), static_shape(like)
    extra = len(shape) - len(target)
    if extra:
        grad = tf.reduce_sum(grad, axis=list(range(extra)))
    axes = [axis for axis, size in enumerate(target) if size == 1 and shape[extra + axis] != 1]
    return tf.reduce_sum(grad, axis=axes, keepdims=True) if axes else grad


def as_float(condition: Any) -> Any:
    """1.0 where `condition` holds, else 0.0."""
    return tf.cast(condition, tf.float32)
