"""Gradients of looking rows up: embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import handle_data_util

from tf_dpfl.export.gradients.rules import gradient_of
from tf_dpfl.export.gradients.shapes import constant, refuse, static_shape


@gradient_of("ResourceGather")
def _resource_gather(op: Any, grad: Any) -> Any:
    handle_data = handle_data_util.get_resource_handle_data(op.inputs[0])
    table = tuple(dim.size for dim in handle_data.shape_and_type[0].shape.dim)
    if op.get_attr("batch_dims"):
        refuse(op, "a lookup with batch_dims has no gradient rule")
    return _rows_added_up(op, grad, table), None


@gradient_of("GatherV2")
def _gather(op: Any, grad: Any) -> Any:
    shape = static_shape(op.inputs[0])
    axis = int(constant(op, 2)) % len(shape)
    if op.get_attr("batch_dims"):
        refuse(op, "a gather with batch_dims has no gradient rule")
    if axis == 0:
        return _rows_added_up(op, grad, shape), None, None
    # The axes of the ids go to the front, and what they pick comes back to its place.
    ids = len(static_shape(op.inputs[1]))
    others = [a for a in range(len(shape)) if a != axis]
    rows = tf.transpose(
        grad, [*range(axis, axis + ids), *range(axis), *range(axis + ids, len(shape) - 1 + ids)]
    )
    added = _rows_added_up(op, rows, (shape[axis], *(shape[a] for a in others)))
    return tf.transpose(added, np.argsort([axis, *others])), None, None


def _rows_added_up(op: Any, grad: Any, table: tuple[int, ...]) -> Any:
    """A dense gradient of shape `table`: SCATTER_ND adds repeated rows up."""
    ids = tf.reshape(op.inputs[1], [-1, 1])
    return tf.scatter_nd(ids, tf.reshape(grad, [-1, *table[1:]]), table)
