"""Which inputs of a model hold ids, and how many ids each has."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.python.ops import handle_data_util

# What ids may go through on their way from the input to the table. Keras feeds an
# Embedding that is a model's first layer with floating-point ids, and casts them.
_KEEPS_IDS = frozenset(
    {
        "Cast",
        "EnsureShape",
        "ExpandDims",
        "GatherV2",
        "Identity",
        "Pack",
        "Reshape",
        "Split",
        "SplitV",
        "Squeeze",
        "StridedSlice",
        "Tile",
        "Transpose",
        "Unpack",
    }
)


def ids_of_inputs(model: tf.keras.Model) -> list[int | None]:
    """For each input the number of ids its smallest table has; None where it is no id.

    Found in the model's graph: whatever looks rows of a table up, or makes ids
    one-hot, tells the number of ids.
    """
    function = tf.function(lambda *inputs: model(_one_or_all(inputs), training=False))
    specs = [tf.TensorSpec([1, *tensor.shape[1:]], tensor.dtype) for tensor in model.inputs]
    graph = function.get_concrete_function(*specs).graph
    names = [tensor.name for tensor in graph.inputs]
    found: list[int | None] = [None] * len(model.inputs)
    for op in graph.get_operations():
        looked_up = _ids_and_count(op)
        if looked_up is None:
            continue
        ids, count = looked_up
        for source in _sources(ids):
            if source.name in names[: len(found)]:
                index = names.index(source.name)
                known = found[index]
                found[index] = count if known is None else min(known, count)
    return found


def _one_or_all(inputs: Any) -> Any:
    return inputs[0] if len(inputs) == 1 else list(inputs)


def _ids_and_count(op: Any) -> tuple[Any, int] | None:
    """The ids that `op` looks up and how many there are, if it looks something up."""
    if op.type == "ResourceGather":
        shape = handle_data_util.get_resource_handle_data(op.inputs[0]).shape_and_type[0].shape
        return op.inputs[1], int(shape.dim[0].size)
    if op.type == "GatherV2":
        axis = tf.get_static_value(op.inputs[2])
        size = None if axis is None else op.inputs[0].shape[int(axis)]
        return None if size is None else (op.inputs[1], int(size))
    if op.type == "OneHot":
        depth = tf.get_static_value(op.inputs[1])
        return None if depth is None else (op.inputs[0], int(depth))
    return None


def _sources(ids: Any) -> list[Any]:
    """The tensors that `ids` come from, through ops that leave them as they are."""
    pending, sources = [ids], []
    while pending:
        tensor = pending.pop()
        if tensor.op.type in _KEEPS_IDS:
            pending += list(tensor.op.inputs)
        else:
            sources.append(tensor)
    return sources
