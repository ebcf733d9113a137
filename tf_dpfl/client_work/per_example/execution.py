"""Running an op of the traced graph on labels instead of its data.

An op that only moves entries about (reshape, split, pad, ...) moves labels the
same way; so what it does to examples, or to the entries of a weight, is found
by running it, and needs no formula of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.client_work.per_example.refusals import refuse, static_shape
from tf_dpfl.client_work.static_values import run_eagerly, static_value

Labels = NDArray[np.int64]

MOVES = frozenset(
    {
        "BatchToSpaceND",
        "BroadcastTo",
        "ConcatV2",
        "EnsureShape",
        "ExpandDims",
        "GatherV2",
        "Identity",
        "MirrorPad",
        "Pack",
        "Pad",
        "PadV2",
        "Reshape",
        "ResizeNearestNeighbor",
        "ReverseV2",
        "Slice",
        "SpaceToBatchND",
        "Split",
        "SplitV",
        "Squeeze",
        "StopGradient",
        "StridedSlice",
        "Tile",
        "Transpose",
        "Unpack",
    }
)
"""Ops whose every output entry is one entry of an input, or a constant."""

_SAME_ORDER = frozenset(
    {"EnsureShape", "ExpandDims", "Identity", "Reshape", "Squeeze", "StopGradient"}
)

# What these take besides data must be known while tracing: shapes, axes, paddings.
_DATA_INPUTS = {"Pack": None, "ConcatV2": slice(0, -1), "Split": slice(1, 2)}


def data_inputs(op: Any) -> range:
    """The indices of those inputs of `op` that it moves; the others say how."""
    count = len(op.inputs)
    return range(count)[_DATA_INPUTS.get(op.type, slice(0, 1)) or slice(0, count)]


def run_on_labels(op: Any, labels: Sequence[Labels | None]) -> list[Labels]:
    """The labels of the outputs of `op`, one of `MOVES` (or Neg).

    Args:
      op: an op of the graph being traced.
      labels: for each input its labels, or None for an input without: constants
        are labelled 0, and so is what a padding adds.
    """
    if op.type in _SAME_ORDER:
        known = labels[0]
        shape = static_shape(op.outputs[0])
        return [np.zeros(shape, np.int64) if known is None else known.reshape(shape)]
    moved = data_inputs(op)
    values: list[Any] = []
    for index, tensor in enumerate(op.inputs):
        if index in moved:
            known = labels[index]
            values.append(np.zeros(static_shape(tensor), np.int64) if known is None else known)
        elif op.type == "PadV2" and index == 2:
            values.append(np.int64(0))
        else:
            value: Any = static_value(tensor)
            if value is None and op.type == "ResizeNearestNeighbor":
                value = static_shape(op.outputs[0])[1:3]  # Keras computes it from shapes
            if value is None:
                refuse(op, f"its input {index} is not a constant")
            values.append(value)
    return [np.asarray(output, np.int64) for output in run_eagerly(op, values)]
