"""Values of a traced graph that are known while it is traced."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.eager import context

# What Keras and TensorFlow compute axes, permutations and positions with. Moving
# and integer arithmetic: no result depends on where it is computed.
_OF_SHAPES = frozenset(
    "AddV2 ConcatV2 ExpandDims FloorDiv FloorMod GatherV2 Maximum Minimum Mul Neg Pack Prod "
    "Range Reshape StridedSlice Sub Tile".split()
)


def static_value(tensor: Any) -> NDArray[Any] | None:
    """The value of `tensor`, or None where the trace does not tell.

    Beyond `tf.get_static_value`: integers computed from shapes, like the positions
    `tf.range(tf.shape(x)[1])`, or what `tf.nn.softmax(x, axis=1)` transposes by.
    """
    value: NDArray[Any] | None = tf.get_static_value(tensor)
    op = tensor.op
    if value is not None or op.type not in _OF_SHAPES or not tensor.dtype.is_integer:
        return value
    values = [static_value(each) for each in op.inputs]
    known = [each for each in values if each is not None]
    return run_eagerly(op, known)[0] if len(known) == len(values) else None


def run_eagerly(op: Any, values: Sequence[Any]) -> list[NDArray[Any]]:
    """The outputs of an op like `op`, with `values` in the places of its inputs."""
    attributes = {
        a.name: op.get_attr(a.name) for a in op.op_def.attr if a.type != "type" and a.name != "N"
    }
    arguments = list(values)
    if op.type in ("Pack", "ConcatV2"):  # their first argument is a list
        count = len(values) - (op.type == "ConcatV2")
        arguments = [arguments[:count], *arguments[count:]]
    run = getattr(tf.raw_ops, op.type)
    # The inputs in their order; the wrapper names some of them otherwise than the op.
    names = [name for name in signature(run).parameters if name not in (*attributes, "name")]
    with context.eager_mode():
        result = run(**dict(zip(names, arguments)), **attributes)
        outputs = result if isinstance(result, (list, tuple)) else [result]
        return [np.asarray(output.numpy()) for output in outputs]
