"""Gradients of ops that rearrange, repeat or add up along axes."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_dpfl.export.gradients.rules import gradient_of
from tf_dpfl.export.gradients.shapes import constant, refuse, sum_to


@gradient_of("BroadcastTo")
def _broadcast_to(op: Any, grad: Any) -> Any:
    return sum_to(grad, op.inputs[0]), None


@gradient_of("Cumsum")
def _cumsum(op: Any, grad: Any) -> Any:
    exclusive, reverse = op.get_attr("exclusive"), op.get_attr("reverse")
    axis = int(constant(op, 1))
    return tf.cumsum(grad, axis, exclusive=exclusive, reverse=not reverse), None


@gradient_of("DepthToSpace")
def _depth_to_space(op: Any, grad: Any) -> Any:
    _require_channels_last(op)
    return tf.nn.space_to_depth(grad, op.get_attr("block_size"))


@gradient_of("SpaceToDepth")
def _space_to_depth(op: Any, grad: Any) -> Any:
    _require_channels_last(op)
    return tf.nn.depth_to_space(grad, op.get_attr("block_size"))


def _require_channels_last(op: Any) -> None:
    if op.get_attr("data_format") != b"NHWC":
        refuse(op, "only channels_last has a gradient rule")


@gradient_of("MirrorPad")
def _mirror_pad(op: Any, grad: Any) -> Any:
    """What was mirrored is turned back and added where it came from."""
    shared = 1 if op.get_attr("mode") == b"REFLECT" else 0
    for axis, (before, after) in enumerate(constant(op, 1)):
        size = int(op.inputs[0].shape[axis])
        if not before and not after:
            continue
        front, middle, back = tf.split(grad, [int(before), size, int(after)], axis=axis)
        grad = middle
        for edge, count, at_end in ((front, int(before), False), (back, int(after), True)):
            if count:
                room = size - count - shared
                padding = [(0, 0)] * grad.shape.rank
                padding[axis] = (room, shared) if at_end else (shared, room)
                grad += tf.pad(tf.reverse(edge, axis=[axis]), padding)
    return grad, None
