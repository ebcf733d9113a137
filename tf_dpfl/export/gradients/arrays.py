"""Gradients of ops that move values without computing."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfl.export.gradients.rules import gradient_of
from tf_dpfl.export.gradients.shapes import constant, refuse, static_shape


@gradient_of("Reshape", "Squeeze", "ExpandDims")
def _reshape(op: Any, grad: Any) -> Any:
    restored = tf.reshape(grad, static_shape(op.inputs[0]))
    return [restored] + [None] * (len(op.inputs) - 1)


@gradient_of("Transpose")
def _transpose(op: Any, grad: Any) -> Any:
    permutation = tf.get_static_value(op.inputs[1])
    if permutation is None:  # computed from shapes: the converter folds it
        return tf.transpose(grad, tf.math.invert_permutation(op.inputs[1])), None
    return tf.transpose(grad, np.argsort(permutation)), None


@gradient_of("Pad", "PadV2")
def _pad(op: Any, grad: Any) -> Any:
    before = [int(pair[0]) for pair in constant(op, 1)]
    inner = tf.slice(grad, before, static_shape(op.inputs[0]))
    return [inner] + [None] * (len(op.inputs) - 1)


@gradient_of("ConcatV2")
def _concat(op: Any, grad: Any) -> Any:
    *parts, _ = op.inputs
    axis = int(constant(op, len(parts)))
    sizes = [static_shape(part)[axis] for part in parts]
    return [*tf.split(grad, sizes, axis=axis), None]


@gradient_of("Pack")
def _pack(op: Any, grad: Any) -> Any:
    return tf.unstack(grad, axis=op.get_attr("axis"))


@gradient_of("Unpack")
def _unpack(op: Any, *grads: Any) -> Any:
    return tf.stack(grads, axis=op.get_attr("axis"))


@gradient_of("Split")
def _split(op: Any, *grads: Any) -> Any:
    return None, tf.concat(grads, axis=int(constant(op, 0)))


@gradient_of("SplitV")
def _split_by_sizes(op: Any, *grads: Any) -> Any:
    return tf.concat(grads, axis=int(constant(op, 2))), None, None


@gradient_of("Tile")
def _tile(op: Any, grad: Any) -> Any:
    sizes = static_shape(op.inputs[0])
    for axis, (size, total) in enumerate(zip(sizes, static_shape(grad))):
        if total != size:  # copies beside each other along this axis
            grad = tf.add_n(tf.split(grad, total // size, axis=axis))
    return grad, None


@gradient_of("ReverseV2")
def _reverse(op: Any, grad: Any) -> Any:
    for axis in np.atleast_1d(constant(op, 1)):  # one at a time: see convolution
        grad = tf.reverse(grad, axis=[int(axis)])
    return grad, None


@gradient_of("Slice")
def _slice(op: Any, grad: Any) -> Any:
    starts, whole, kept = constant(op, 1), static_shape(op.inputs[0]), static_shape(grad)
    padding = [(int(a), n - int(a) - k) for a, n, k in zip(starts, whole, kept)]
    return tf.pad(grad, padding), None, None


@gradient_of("StridedSlice")
def _strided_slice(op: Any, grad: Any) -> Any:
    padding = []
    for size, piece in zip(static_shape(op.inputs[0]), _pieces(op)):
        start, stop, step = piece.indices(size)
        if step != 1:
            refuse(op, f"a slice with step {step} has no gradient rule")
        padding.append((start, size - max(stop, start)))
    kept = [
        size - before - after for size, (before, after) in zip(static_shape(op.inputs[0]), padding)
    ]
    return tf.pad(tf.reshape(grad, kept), padding), None, None, None


def _pieces(op: Any) -> list[slice]:
    """One slice per axis of the input of a StridedSlice."""
    begin, end, step = (np.asarray(constant(op, index)) for index in (1, 2, 3))
    masks = {
        name: int(op.get_attr(f"{name}_mask"))
        for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    }
    if masks["new_axis"]:
        refuse(op, "a new axis inside a slice has no gradient rule")
    rank = len(static_shape(op.inputs[0]))
    pieces: list[slice] = []
    for axis in range(len(begin)):
        bit = 1 << axis
        if masks["ellipsis"] & bit:
            pieces += [slice(None)] * (rank - len(begin) + 1)
        elif masks["shrink_axis"] & bit:
            index = int(begin[axis])
            pieces.append(slice(index, index + 1 or None))
        else:
            start = None if masks["begin"] & bit else int(begin[axis])
            stop = None if masks["end"] & bit else int(end[axis])
            pieces.append(slice(start, stop, int(step[axis])))
    return pieces + [slice(None)] * (rank - len(pieces))
