"""Gradients of looking rows up: embeddings."""

from __future__ import annotations

from typing import Any

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
    if op.get_attr("batch_dims") or int(constant(op, 2)) != 0:
        refuse(op, "a gather along another axis than the first has no gradient rule")
    return _rows_added_up(op, grad, static_shape(op.inputs[0])), None, None


def _rows_added_up(op: Any, grad: Any, table: tuple[int, ...]) -> Any:
    """A dense gradient of shape `table`: SCATTER_ND adds repeated rows up."""
    ids = tf.reshape(op.inputs[1], [-1, 1])
    return tf.scatter_nd(ids, tf.reshape(grad, [-1, *table[1:]]), table)
